"""latency.py measure: networks here, at forced rates, beside their static nets."""
from laud_mm.latency.plots import plot_lines
from laud_mm.latency.sweep import recorded_rates
from laud_mm.utils.tables import text_table

from .shared import add_measurement, add_outputs, bench_settings, check_device, track, write_outputs

HELP = 'time networks here, at forced rates'
PLANNED_COLUMNS = ('maskers_p50_ms', 'ratio_to_static', 'ratio_to_static_without_maskers')


def add_arguments(parser):
    add_measurement(parser)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', default='fp32',
                   choices=('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16'))
    parser.add_argument('--layout', choices=('channels_last', 'contiguous'),
                        default='channels_last')
    parser.add_argument('--compile', action='store_true', help='time the compiled static net too')
    add_outputs(parser, 'the ratios')
    parser.add_argument('--gates', help='a report of the latency hook: every block at the rate '
                                        'that it had in a trained network, instead of --rate')
    parser.add_argument('--plan', help="run by this file of `plan` (execution='auto') and time "
                                       'the maskers too')
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch has them')


def run(args):
    import torch

    from laud_mm.latency.measure import device_stamp
    from laud_mm.profiling.bench import MEASURED_COLUMNS, measure_setting
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    rates, rows = args.gates and recorded_rates(args.gates), []
    for setting in track(bench_settings(args, block_rates=rates)):
        rows.append(measure_setting(setting, args.device, args.precision, args.layout,
                                    args.compile, args.warmup, args.repeats, args.plan))
    print(text_table(rows, MEASURED_COLUMNS + PLANNED_COLUMNS * bool(args.plan)))
    print('Per image. A realised rate is the nearest that a whole number of units has.'
          + ' The static net is eager: --compile times it compiled too.' * (not args.compile))
    static = f'folded, {args.layout.replace("_", "-")}, eager' + ' and compiled' * args.compile
    stamp = dict(device_stamp(args.device), precision=args.precision, static=static)
    write_outputs(args, [dict(stamp=stamp, precision=args.precision, layout=args.layout,
                              results=rows)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'realised_rate', 'ratio_to_fastest_static',
                   ('network', 'paradigm', 'batch'))
