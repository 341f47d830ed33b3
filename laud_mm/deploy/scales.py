"""Scales of activations: what 1 stands for in the maps of a quantised network."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from laud_mm.utils.files import write_json

FORMAT, VERSION = 'laud_mm scales', 1


@dataclass(frozen=True)
class BlockScales:
    """Scales of a bottleneck block's maps, all rectified: 0 to 255 stand for 0 to 255 x scale.

    Attributes:
        input (float): Of what it reads.
        conv1 (float): Of what conv1 writes.
        conv2 (float): Of what conv3 reads: conv2's result, after squeeze-and-excitation.
        output (float): Of what it writes; the input's where the shortcut is the input.
    """
    input: float
    conv1: float
    conv2: float
    output: float


@dataclass(frozen=True)
class Scales:
    """Scales of a backbone.

    Attributes:
        images (int): Images they were measured on.
        blocks (dict[str, BlockScales]): By block.
        image (float): Of the images.
        zero (int): What stands for 0 in the images, from 0 to 255.
    """
    images: int
    blocks: Mapping[str, BlockScales]
    image: float
    zero: int

    def of(self, block: str) -> BlockScales:
        """Scales of a block.

        Raises:
            ValueError: If they are of another net.
        """
        if block not in self.blocks:
            raise ValueError(f'quantized must have scales of every block of the net, got none of '
                             f'{block}')
        return self.blocks[block]

    def save(self, path: str | Path) -> None:
        """Write the scales, complete or not at all."""
        write_json(dict(format=FORMAT, version=VERSION, images=self.images,
                        image=self.image, zero=self.zero,
                        blocks={name: asdict(own) for name, own in self.blocks.items()}), path)


def load_scales(path: str | Path) -> Scales:
    """Read a file of `Scales.save`.

    Raises:
        ValueError: If it is none.
    """
    try:
        content = json.loads(Path(path).read_text())
        if (content['format'], content['version']) != (FORMAT, VERSION):
            raise ValueError(f'format must be {FORMAT!r} version {VERSION}, got '
                             f'{content["format"]!r} version {content["version"]!r}')
        blocks = {name: BlockScales(**{key: _scale(value) for key, value in own.items()})
                  for name, own in content['blocks'].items()}
        if content['zero'] not in range(256):
            raise ValueError(f'zero must be an int from 0 to 255, got {content["zero"]!r}')
        return Scales(int(content['images']), blocks, _scale(content['image']), content['zero'])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'quantized must be scales or a file of Scales.save, got {str(path)!r}: '
                         f'{error!r}') from error


def _scale(value):
    if not isinstance(value, (int, float)) or not 0 < value < float('inf'):
        raise ValueError(f'scales must be above 0, got {value!r}')
    return float(value)
