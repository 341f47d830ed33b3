"""Folders of images, as the backbone of a config takes them."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laud_mm.utils.stack import require_packages

require_packages('reading images by a config', 'mmengine')

import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor

from laud_mm.registry import MODELS
from laud_mm.specs.arguments import type_name

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def image_files(folder: str, count: int, field: str = '--calib') -> list[Path]:
    """So many image files of a folder and those inside it, evenly spread.

    Args:
        folder (str): The folder.
        count (int): How many at most.
        field (str): What the folder is called in an error.

    Raises:
        ValueError: If there is none.
    """
    if count < 1:
        raise ValueError(f'--images must be at least 1, got {count}')
    found = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f'{field} must be a folder with images ({", ".join(SUFFIXES)}), got '
                         f'{folder}')
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def backbone_inputs(cfg: Any, files: list[Path]) -> Iterator[Tensor]:
    """Images as the backbone of a config takes them in a test, one by one."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    steps = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    # Annotations are of the set.
    pipeline = Compose([step for step in steps if 'Annotations' not in type_name(step)])
    settings = dict(cfg.model.get('data_preprocessor') or cfg.data_preprocessor)
    settings.setdefault('type', 'mmpretrain.ClsDataPreprocessor')  # what mmpretrain's models take
    preprocessor = MODELS.build(settings)
    for path in files:
        data = pseudo_collate([pipeline(dict(img_path=str(path)))])
        with torch.no_grad():
            yield preprocessor(data, False)['inputs']
