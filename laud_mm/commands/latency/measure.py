"""latency.py measure: networks here, at forced rates, beside their static nets."""
from laud_mm.latency.plots import plot_lines
from laud_mm.latency.sweep import recorded_rates
from laud_mm.utils.tables import text_table

from .shared import add_measurement, add_outputs, bench_settings, check_device, track, write_outputs

HELP = 'time networks here, at forced rates'
STATIC_COLUMNS = ('network', 'paradigm', 'batch', 'static', 'static_p50_ms', 'p50_ms', 'ratio')
PLANNED_COLUMNS = ('maskers_p50_ms', 'ratio_to_static', 'ratio_to_static_without_maskers')


def add_arguments(parser):
    add_measurement(parser)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', default='fp32',
                   choices=('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16'))
    parser.add_argument('--layout', choices=('channels_last', 'contiguous'),
                        default='channels_last')
    parser.add_argument('--compile', action='store_true', help='time the compiled static net too')
    parser.add_argument('--peers', action='store_true',
                        help='time the static net in onnxruntime and OpenVINO too')
    parser.add_argument('--deployed', action='store_true',
                        help='time the deployed net, compiled, too; its maskers decide for as '
                             'many units as --rate says')
    add_outputs(parser, 'the ratios')
    parser.add_argument('--gates', help='a report of the latency hook: every block at the rate '
                                        'that it had in a trained network, instead of --rate')
    parser.add_argument('--plan', help="run by this file of `plan` (execution='auto') and time "
                                       'the maskers too')
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch has them')


def run(args):
    import torch

    from laud_mm.latency.measure import device_stamp
    from laud_mm.profiling.bench import (
        DEPLOYED_COLUMNS,
        MEASURED_COLUMNS,
        PEER_COLUMNS,
        measure_setting,
    )
    device = check_device(args.device)
    if args.peers and device.type != 'cpu':
        raise ValueError(f'--peers must be left out with --device {args.device}: they run on the '
                         'CPU')
    if args.threads:
        torch.set_num_threads(args.threads)
    rates, rows = args.gates and recorded_rates(args.gates), []
    for setting in track(bench_settings(args, block_rates=rates)):
        rows.append(measure_setting(setting, args.device, args.precision, args.layout,
                                    args.compile, args.warmup, args.repeats, args.plan, args.peers,
                                    args.deployed))
    print(text_table(rows, MEASURED_COLUMNS + PEER_COLUMNS * args.peers
                     + DEPLOYED_COLUMNS * args.deployed + PLANNED_COLUMNS * bool(args.plan)))
    print('Per image. A realised rate is the nearest that a whole number of units has.'
          + ' The static net is eager: --compile times it compiled too.' * (not args.compile))
    peers, missing = {}, {}
    if args.peers:
        peers = [dict(runtimes=row.pop('runtimes')) for row in rows][0]
        missing = [dict(missing=row.pop('missing')) for row in rows][0]
        print(text_table([static for row in rows for static in static_rows(row)], STATIC_COLUMNS))
        for reason in missing['missing']:
            print(f'Not timed: {reason}')
    static = f'folded, {args.layout.replace("_", "-")}, eager' + ' and compiled' * args.compile
    stamp = dict(device_stamp(args.device), precision=args.precision, static=static, **peers)
    write_outputs(args, [dict(stamp=stamp, precision=args.precision, layout=args.layout,
                              **missing, results=rows)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'realised_rate', 'ratio_to_fastest_static',
                   ('network', 'paradigm', 'batch'))


def static_rows(row):
    """One row per form of the static net that was timed beside a network."""
    for name, ratio in row['ratios'].items():
        yield dict(network=row['network'], paradigm=row['paradigm'], batch=row['batch'],
                   static=name, static_p50_ms=row[f'{name}_p50_ms'], p50_ms=row['p50_ms'],
                   ratio=ratio)
