"""What tools/quantize.py runs: a config, a checkpoint and images to a file of scales."""
from __future__ import annotations

import argparse
from typing import Any

from laud_mm.deploy import deploy, measure_scales
from laud_mm.deploy.check import compare
from laud_mm.utils.run import load_config

from .deploy import build_backbone
from .images import backbone_inputs, image_files


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


def summary(found: dict, out: str) -> str:
    """One line on what was written."""
    return (f'{out}: scales of {found["images"]} images; there {found["decisions_flipped"]} of '
            f'{found["decisions"]} decisions flip, and outputs differ by '
            f'{100 * found["mean_difference"]:.2f} % of their size')
