"""Count the multiply-adds of a config's backbone at an image size, static and per rate.

    get_flops.py CONFIG [--shape 800 1216] [--rate 0.25 0.5 0.75 1.0]
"""
import argparse
import sys

from laud_mm.utils.stack import require_stack

require_stack(need=('mmengine',))  # first: a wrong stack fails below, and names no fix

from mmengine.config import Config

from laud_mm.specs import (
    backbone_spec,
    configured_size,
    dynamic_flops,
    find_backbone_config,
    static_flops,
)
from laud_mm.specs.arguments import check_fraction
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

RATES = (0.25, 0.5, 0.75, 1.0)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'),
                        help="default: as the config's test pipeline makes images")
    parser.add_argument('--rate', nargs='+', type=float, default=RATES,
                        help='shares of units on that columns are shown for')
    parser.add_argument('--json', help='write the table to this JSON file')
    return parser.parse_args()


def flops_rows(spec, rates):
    """One row for the stem, each stage and the whole, in G multiply-adds per image.

    Args:
        spec (NetworkSpec): The backbone.
        rates (Sequence[float]): Shares of units on.

    Returns:
        list[dict]: `part`, `static`, and a column per rate, maskers included.
    """
    parts = {'stem': dict(static=static_flops(spec.stem),
                          **{f'rate {r:g}': static_flops(spec.stem) for r in rates})}
    for block in spec.blocks:
        sums = parts.setdefault(f'stage {block.shape.stage + 1}', {})
        costs = dict(static=static_flops(block.ops), **{
            f'rate {r:g}': dynamic_flops(block.ops, block.expected_rates(r)) for r in rates})
        for column, flops in costs.items():
            sums[column] = sums.get(column, 0) + flops
    total = {column: sum(p[column] for p in parts.values()) for column in parts['stem']}
    return [dict(part=part, **{c: flops / 1e9 for c, flops in columns.items()})
            for part, columns in (*parts.items(), ('backbone', total))]


def main():
    args = parse_args()
    try:
        cfg = Config.fromfile(args.config)
        height, width = args.shape or configured_size(cfg)
        if min(height, width) < 1:
            raise ValueError(f'--shape must be two positive ints, got {height} {width}')
        for rate in args.rate:
            check_fraction('--rate', rate)
        spec = backbone_spec(find_backbone_config(cfg.get('model'))[1], (height, width))
        rows = flops_rows(spec, args.rate)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.config}, {height}x{width}, G multiply-adds per image')
    print(text_table(rows, list(rows[0])))
    if args.json:
        write_json(rows, args.json)


if __name__ == '__main__':
    main()
