"""What tools/quantize.py runs: a config, a checkpoint and images to a file of scales."""
from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor

from laud_mm.deploy import deploy, measure_scales
from laud_mm.deploy.check import compare
from laud_mm.registry import MODELS
from laud_mm.specs.arguments import type_name
from laud_mm.utils.run import load_config

from .deploy import build_backbone

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of tools/quantize.py."""
    parser.add_argument('config', help='config file; its LAUD backbone is quantised')
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    parser.add_argument('--calib', required=True, help='folder of images like those in use')
    parser.add_argument('--images', type=int, default=128, help='how many of them are taken')
    parser.add_argument('--prefix', help="what the backbone's keys in the checkpoint start with, "
                        'such as student.backbone; default: as in the config')
    parser.add_argument('--out', required=True, help='file to write')


def run(args: argparse.Namespace) -> dict:
    """Measure scales, write them, and compare the quantised network with the float one.

    Returns:
        dict: See `compare`, on the same images.

    Raises:
        ValueError: For a bad argument, with its name.
    """
    cfg = load_config(args.config)
    files = image_files(args.calib, args.images)
    backbone = build_backbone(cfg, args.checkpoint, args.prefix)
    scales = measure_scales(backbone, backbone_inputs(cfg, files))
    scales.save(args.out)
    quantized: Any = deploy(backbone, quantized=args.out, with_decisions=True)
    return compare(backbone, quantized, backbone_inputs(cfg, files))


def image_files(folder: str, count: int) -> list[Path]:
    """So many image files of a folder and those inside it, evenly spread.

    Raises:
        ValueError: If there is none.
    """
    if count < 1:
        raise ValueError(f'--images must be at least 1, got {count}')
    found = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f'--calib must be a folder with images ({", ".join(SUFFIXES)}), got '
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


def summary(found: dict, out: str) -> str:
    """One line on what was written."""
    return (f'{out}: scales of {found["images"]} images; there {found["decisions_flipped"]} of '
            f'{found["decisions"]} decisions flip, and outputs differ by '
            f'{100 * found["mean_difference"]:.2f} % of their size')
