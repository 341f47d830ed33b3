"""Convert another project's checkpoint: convert_checkpoint.py --source laudnet SRC.pth DST.pth"""
import argparse
import sys

from laud_mm.checkpoints import SOURCES, CheckpointError, convert_file


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='checkpoint to read (weights only; no code in it is run)')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument('--source', required=True, choices=sorted(SOURCES),
                        help='laudnet: the released LAUDNet ResNets and RegNets; adavit, t2t_vit: '
                        "the released T2T-ViTs; mmcls_t2t_vit: mmpretrain's released ones")
    parser.add_argument('--prefix', default='',
                        help="put before backbone keys, e.g. 'backbone.' for a whole classifier")
    args = parser.parse_args()
    try:
        state_dict = convert_file(args.source, args.src, args.dst, args.prefix)
    except CheckpointError as error:
        sys.exit(f'error: {error}')
    print(f'{len(state_dict)} tensors written to {args.dst}')


if __name__ == '__main__':
    main()
