"""Time LAUD backbones beside their static nets, at forced rates.

    benchmarks/backbones.py --network resnet101 --paradigm layer --rate 0.5 --batch 8 --json OUT

The static net is the same weights with everything on, in the framework's own
convolutions, norms folded, channels-last: eager, and compiled with its weights frozen.
All run in turn in one process. Exact shares of units are forced on, at random places, with --gates
as many in every block as a trained network had; maskers still run and count.
"""
import argparse
import itertools

import torch

from laud_mm.latency.measure import device_stamp
from laud_mm.latency.output import format_table, plot_lines, write_json
from laud_mm.latency.sweep import recorded_rates
from laud_mm.profiling.backbones import (MEASURED_COLUMNS, PRECISIONS, BenchSetting,
                                         measure_setting)
from laud_mm.specs import PARADIGMS
from laud_mm.specs import NETWORKS

PLANNED_COLUMNS = ('maskers_p50_ms', 'ratio_to_static', 'ratio_to_static_without_maskers')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', default='fp32', choices=PRECISIONS)
    parser.add_argument('--network', nargs='+', default=['resnet101'],
                        choices=NETWORKS)
    parser.add_argument('--paradigm', nargs='+', default=['layer', 'channel', 'spatial'],
                        choices=PARADIGMS)
    parser.add_argument('--rate', nargs='+', type=float, default=[0.5])
    parser.add_argument('--gates', help='a file of the latency hook: every block at the rate that '
                                        'it had in a trained network, instead of --rate')
    parser.add_argument('--batch', nargs='+', type=int, default=[8])
    parser.add_argument('--size', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'))
    parser.add_argument('--granularity', nargs=4, type=int,
                        help="S of each stage (spatial) or G (channel); default: the papers' best")
    parser.add_argument('--no-compile', action='store_true',
                        help='do not time the compiled static net')
    parser.add_argument('--plan', help="run by this file of `tools/latency.py plan` "
                                       "(execution='auto') and time the maskers too")
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--threads', type=int, help='CPU threads; default: all cores')
    parser.add_argument('--json', help='write the results to this file')
    parser.add_argument('--plot', help='draw the ratios over the rates into this file')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    block_rates = args.gates and recorded_rates(args.gates)
    results = []
    for network, paradigm, rate, batch in itertools.product(
            args.network, args.paradigm, args.rate, args.batch):
        setting = BenchSetting(network, paradigm, rate, batch,
                               args.granularity and tuple(args.granularity), tuple(args.size),
                               block_rates)
        results.append(measure_setting(setting, args.device, args.precision,
                                       compile_static=not args.no_compile, repeats=args.repeats,
                                       plan=args.plan))
        print(format_table(results[-1:], MEASURED_COLUMNS + PLANNED_COLUMNS * bool(args.plan)),
              flush=True)
    if args.plot:
        plot_lines(results, args.plot, 'realised_rate', 'ratio_to_fastest_static',
                   ('network', 'paradigm', 'batch'))
    if args.json:
        write_json(dict(stamp=dict(device_stamp(args.device), precision=args.precision,
                                   static='folded, channels-last, eager'
                                          + ' and compiled' * (not args.no_compile)),
                        results=results), args.json)


if __name__ == '__main__':
    main()
