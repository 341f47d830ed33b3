"""Convert a checkpoint from another project to ours, or our static part back.

    convert_checkpoint.py --source laudnet SRC.pth DST.pth
    convert_checkpoint.py --source laud --target torchvision SRC.pth DST.safetensors
"""
import argparse
import sys

from laud_mm.checkpoints import SOURCES, TARGETS, CheckpointError, convert_file
from laud_mm.specs import find_backbone_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='checkpoint to read, .safetensors or weights-only .pth')
    parser.add_argument('dst', help='checkpoint to write, .safetensors or .pth')
    parser.add_argument('--source', required=True, choices=sorted(SOURCES),
                        help='whose keys SRC has; laud: ours, from a training of a classifier too')
    parser.add_argument('--target', default='laud', choices=sorted(TARGETS),
                        help='whose keys DST gets; others than laud: without maskers')
    parser.add_argument('--prefix', default='',
                        help="put before backbone keys, e.g. 'backbone.' for a whole classifier")
    parser.add_argument('--config', help='check against the backbone of this config; '
                        'default: the backbone that the weights tell')
    parser.add_argument('--trust', action='store_true',
                        help='run code that SRC may contain: only for files you trust like your '
                        'own code')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        backbone = None
        if args.config:
            from laud_mm.utils.run import load_config
            backbone = find_backbone_config(load_config(args.config).get('model'))[1].to_dict()
        done = convert_file(args.source, args.src, args.dst, args.prefix, args.target, backbone,
                            args.trust)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(done.state_dict)} tensors written to {args.dst}; they fill '
          f'{done.backbone["type"]} completely')
    for keys, what in ((done.fresh, 'not in the checkpoint: maskers start afresh'),
                       (done.dropped, 'left out: the target has no maskers')):
        if keys:
            print(f'{len(keys)} keys {what}, e.g. {keys[0]}')


if __name__ == '__main__':
    main()
