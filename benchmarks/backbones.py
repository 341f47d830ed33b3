"""`tools/latency.py measure` as the results here were made: batch 8, static net compiled too.

    benchmarks/backbones.py --network resnet101 --paradigm layer --rate 0.5 --batch 8 --json OUT
"""
import argparse
import sys

from laud_mm.commands.latency import measure
from laud_mm.commands.latency.shared import check_networks, check_outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.add_arguments(parser)
    parser.add_argument('--no-compile', dest='compile', action='store_false',
                        help='do not time the compiled static net')
    parser.set_defaults(command='measure', batch=[8], compile=True)
    args = parser.parse_args()
    try:
        check_outputs(args)
        check_networks(args)
        measure.run(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
