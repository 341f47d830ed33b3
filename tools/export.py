"""Write the backbone of a config as TorchScript or ONNX: masked-dense, all sizes fixed.

    export.py CONFIG [CHECKPOINT] [--format onnx] [--size 224 224] [--out FILE]

What is written gives the numbers of the skipping network and skips nothing: neither format can
compute listed patches, channels or tokens only. It is checked against the skipping network.
"""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

import torch

from laud_mm.checkpoints import CheckpointError, load_pretrained
from laud_mm.export import (
    FORMATS,
    example_images,
    export_onnx,
    export_torchscript,
    largest_difference,
    run_onnx,
    run_torchscript,
)
from laud_mm.registry import MODELS
from laud_mm.specs import configured_size, find_backbone_config
from laud_mm.utils.run import load_config

EXPORTERS = dict(torchscript=(export_torchscript, run_torchscript), onnx=(export_onnx, run_onnx))
TOLERANCE = 1e-3


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its LAUD backbone is exported')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint of the whole model; default: fresh weights')
    parser.add_argument('--prefix', help="what the backbone's keys in the checkpoint start with, "
                        'such as student.backbone; default: as in the config')
    parser.add_argument('--format', choices=FORMATS, default='onnx')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'),
                        help="default: as the config's test pipeline makes images")
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--out', help="file to write; default: the config's name")
    return parser.parse_args()


def build_backbone(cfg, checkpoint=None, prefix=None):
    """Build the backbone of a config, in evaluation, and fill it from a checkpoint."""
    place, settings = find_backbone_config(cfg.get('model'))
    settings = settings.to_dict()
    settings.pop('init_cfg', None)
    backbone = MODELS.build(settings)
    backbone.init_weights()
    if checkpoint:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f'checkpoint must be an existing file, got {checkpoint}')
        load_pretrained(backbone, checkpoint, prefix or place.removeprefix('model.'))
    return backbone.eval()


def main():
    args = parse_args()
    out = Path(args.out or Path(args.config).stem + FORMATS[args.format])
    export, run = EXPORTERS[args.format]
    try:
        cfg = load_config(args.config)
        backbone = build_backbone(cfg, args.checkpoint, args.prefix)
        images = example_images(args.size or configured_size(cfg), args.batch,
                                backbone.in_channels)
        export(backbone, out, images)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    with torch.no_grad():
        difference = largest_difference(run(out, images), backbone(images))
    print(f'{out}: {args.format}, images {tuple(images.shape)}, stages {backbone.out_indices}; '
          f'largest difference to the skipping network {difference:.1e} of the largest value. '
          'It computes everything: skipping does not export')
    if difference > TOLERANCE:
        sys.exit(f'error: the exported network differs by more than {TOLERANCE}')


if __name__ == '__main__':
    main()
