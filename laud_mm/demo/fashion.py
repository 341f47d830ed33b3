"""Fashion-MNIST's four files as mmpretrain's `FashionMNIST` reads them.

70,000 photographs of clothes, 28 x 28 pixels, grey, in ten classes.
"""
import gzip
import math
import struct
from pathlib import Path

from .data_folder import build_folder

FORMAT = 'laud_mm Fashion-MNIST, version 1'
PACKAGE_FOLDER = Path('/usr/share/datasets/fashion-mnist')  # of Debian's dataset-fashion-mnist
SPLITS = dict(train='train', test='t10k')
NUM_CLASSES = 10


def read_idx(path: str | Path, dims: int) -> tuple[tuple[int, ...], bytes]:
    """Read an IDX file of unsigned bytes, plain or compressed by gzip.

    Args:
        path (str | Path): Its name without `.gz`; the compressed one is taken where the plain
            one is missing.
        dims (int): Dimensions wanted.

    Returns:
        tuple[tuple[int, ...], bytes]: Its sizes, and the whole file, not compressed.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If it is no such file, or one that is cut.
    """
    path = Path(path)
    packed = path.with_name(f'{path.name}.gz')
    if not path.is_file() and not packed.is_file():
        raise FileNotFoundError(
            f'Fashion-MNIST needs the file {path} or {packed.name} beside it, found neither: '
            'install dataset-fashion-mnist (Debian), or name the folder of the four files')
    found = path if path.is_file() else packed
    try:
        content = found.read_bytes() if found == path else gzip.decompress(found.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f'{found} must be a complete gzip file, got {error}') from error
    head = 4 + 4 * dims
    if len(content) < head or content[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(f'{found} must be an IDX file of unsigned bytes in {dims} dimensions, '
                         f'got the first bytes {content[:4].hex(" ")}')
    sizes = struct.unpack(f'>{dims}I', content[4:head])
    if len(content) != head + math.prod(sizes):
        raise ValueError(f'{found} must hold {" x ".join(map(str, sizes))} bytes after its head, '
                         f'got {len(content) - head}')
    return sizes, content


def build_fashion(root, source=None):
    """Write Fashion-MNIST as plain IDX files, or find them written.

    Args:
        root (str | Path): Folder of the set. It must not exist, or be this set.
        source (str | Path, optional): Folder of the four files, plain or compressed; default:
            that of Debian's package.

    Returns:
        Path: `root`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is malformed, or images and labels do not fit.
        FileExistsError: If `root` exists and is anything else than this set.
    """
    source = Path(source or PACKAGE_FOLDER)

    def write(folder):
        for name in SPLITS.values():
            files = {f'{name}-images-idx3-ubyte': 3, f'{name}-labels-idx1-ubyte': 1}
            read = {file: read_idx(source / file, dims) for file, dims in files.items()}
            (images, _), (labels, content) = read.values()
            if images[0] != labels[0] or not labels[0]:
                raise ValueError(f'{source} must hold as many images as labels, got {images[0]} '
                                 f'images and {labels[0]} labels of {name}')
            if max(content[8:]) >= NUM_CLASSES:
                raise ValueError(f'{source / list(files)[1]} must hold labels from 0 to '
                                 f'{NUM_CLASSES - 1}, got {max(content[8:])}')
            for file, (_, content) in read.items():
                (folder / file).write_bytes(content)
    return build_folder(root, dict(format=FORMAT), write)
