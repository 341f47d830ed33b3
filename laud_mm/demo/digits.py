"""scikit-learn's handwritten digits as class folders, for classification on real images.

1,797 images of 8 x 8 pixels (the test part of UCI's optical recognition of handwritten digits),
enlarged by whole-number arithmetic so that every machine writes the same pixels. The split is
fixed: of every class, the last quarter is for validation.
"""
import numpy as np

from .coco_masks import import_cv2
from .data_folder import build_folder
from .objects import resize

FORMAT = 'laud_mm digits, version 1'
CLASSES = tuple('0123456789')


def load_images():
    """Load the digits.

    Returns:
        tuple[np.ndarray, np.ndarray]: (1797, 8, 8) uint8 from 0 to 255, and (1797,) labels.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits are in a package: pip install scikit-learn') from error
    digits = load_digits()
    return (digits.images.astype(np.int32) * 255 // 16).astype(np.uint8), digits.target


def split_indices(labels):
    """Split by class: the first three quarters train, the rest validate.

    Args:
        labels (np.ndarray): (N,) ints.

    Returns:
        dict[str, np.ndarray]: Sorted indices of 'train' and 'val'.
    """
    parts = {'train': [], 'val': []}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        border = len(own) * 3 // 4
        parts['train'].extend(own[:border])
        parts['val'].extend(own[border:])
    return {split: np.sort(indices) for split, indices in parts.items()}


def build_digits(root, image_size=48):
    """Write the digits as PNG files, or find them written.

    Layout: `{train,val}/<digit>/<index>.png` and `settings.json`. The folder
    appears under its name only when it is complete.

    Args:
        root (str | Path): Folder of the set. It must not exist, or be this set.
        image_size (int): Width and height in pixels, at least 8.

    Returns:
        Path: `root`.

    Raises:
        ValueError: If `image_size` is out of its range.
        FileExistsError: If `root` exists and is anything else than this set.
        ImportError: If a package that the build needs is missing.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 8:
        raise ValueError(f'image_size must be an int from 8 on, got {image_size!r}')
    cv2 = import_cv2()

    def write(folder):
        images, labels = load_images()
        for split, indices in split_indices(labels).items():
            for name in CLASSES:
                (folder / split / name).mkdir(parents=True)
            for index in indices:
                path = folder / split / CLASSES[labels[index]] / f'{index:04d}.png'
                if not cv2.imwrite(str(path), resize(images[index][..., None], image_size)):
                    raise OSError(f'{path} could not be written')
    return build_folder(root, dict(format=FORMAT, image_size=image_size), write)
