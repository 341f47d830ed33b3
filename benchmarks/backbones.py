"""`tools/latency.py measure` as the results here were made: batch 8, beside every static net.

The static net runs eager, compiled, in onnxruntime and in OpenVINO, the dynamic one eager and
deployed.

    benchmarks/backbones.py --network resnet101 --paradigm layer --rate 0.5 --batch 8 --json OUT
"""
import argparse
import sys

from laud_mm.commands.latency import measure
from laud_mm.commands.latency.shared import check_device, check_networks, check_outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.add_arguments(parser)
    parser.add_argument('--no-compile', dest='compile', action='store_false',
                        help='do not time the compiled static net')
    parser.add_argument('--no-peers', dest='peers', action='store_false',
                        help='do not time the static net in onnxruntime and OpenVINO')
    parser.add_argument('--no-deployed', dest='deployed', action='store_false',
                        help='do not time the deployed net')
    parser.set_defaults(command='measure', batch=[8], compile=True, peers=True, deployed=True)
    args = parser.parse_args()
    try:
        if args.peers and check_device(args.device).type != 'cpu':
            print('onnxruntime and OpenVINO are not timed: they run on the CPU')
            args.peers = False
        check_outputs(args)
        check_networks(args)
        measure.run(args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
