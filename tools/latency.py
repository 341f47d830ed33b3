"""Latency of LAUD backbones: predicted for a device, measured here, and compared.

    latency.py predict   --network resnet101 --paradigm layer --rate 0.4 --device V100
    latency.py sweep     --preset granularity --network resnet101 --device V100 TX2
    latency.py measure   --network resnet50 --paradigm layer --rate 0.5 --batch 8
    latency.py calibrate --out calibration.json
    latency.py compare   --calibration calibration.json
    latency.py plan      --network resnet101 --paradigm layer --batch 1 8 --out plan.json
"""
import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from laud_mm.latency.hardware import PRECISIONS, known_devices
from laud_mm.latency.output import (format_table, plot_blocks, plot_lines, plot_predicted,
                                    write_csv, write_json)
from laud_mm.latency.published import FUSIONS
from laud_mm.latency.sweep import (Predictors, Setting, best_granularity, network_flops,
                                   recorded_rates, stage_granularity, sweep_row,
                                   sweep_settings)
from laud_mm.specs import NETWORKS, backbone_spec

PARADIGMS = ('layer', 'channel', 'spatial', 'both', 'token', 'head', 'none')
RATES = tuple(i / 10 for i in range(1, 11))
# What the papers study with the predictor: defaults of a sweep, and its x axis.
PRESETS = {
    'rate': dict(x='rate', rate=RATES, paradigm=('layer', 'channel', 'spatial')),
    'granularity': dict(x='granularity', rate=(0.2, 0.4, 0.6, 0.8), paradigm=('spatial',),
                        granularity=('1', '2', '4', '7', '8', '4-4-2-1', '8-4-7-1')),
    'channel_granularity': dict(x='granularity', rate=(0.2, 0.4, 0.6, 0.8),
                                paradigm=('channel',), granularity=('1', '2', '4', '8')),
    'batch': dict(x='batch', y='latency_per_image_ms', paradigm=('layer', 'channel', 'spatial'),
                  batch=(1, 2, 4, 8, 16, 32, 64, 128, 256)),
    'fusions': dict(x='fusions', paradigm=('spatial',), fusions=(
        'none', 'masker_conv1', 'masker_conv1+gather_conv2', 'all')),
    'channel_masker': dict(x='channel_masker', paradigm=('channel',),
                           channel_masker=('mlp', 'linear')),
}
COLUMNS = ('network', 'device', 'paradigm', 'granularity', 'rate', 'batch', 'image_size',
           'flops_fraction', 'static_latency_per_image_ms', 'latency_per_image_ms', 'ratio')


def add_outputs(parser, plot):
    parser.add_argument('--json', help='write everything to this JSON file')
    parser.add_argument('--csv', help='write the table to this CSV file')
    parser.add_argument('--plot', help=f'write a plot of {plot} to this .png, .pdf or .svg file')


def add_networks(parser, several):
    many = dict(nargs='+') if several else {}

    parser.add_argument('--network', choices=NETWORKS, help='default: resnet101', **many)
    parser.add_argument('--paradigm', choices=PARADIGMS, **many)
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'),
                        help='of the images; default: 800 1216 for the config of a detector, '
                             'else 224 224')


def add_config(parser):
    parser.add_argument('--config', help='the backbone of this config, instead of --network, '
                                         '--paradigm and --granularity')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    p = commands.add_parser('predict', help='predict one network on one or more devices')
    add_networks(p, several=False)
    add_config(p)
    p.add_argument('--rate', type=float, default=0.5, help='share of units on in every block')
    p.add_argument('--rates', help='rates per block from this report of the latency hook')
    p.add_argument('--granularity', nargs='+', type=int, help='S (spatial, both) or G (channel)')
    p.add_argument('--batch', type=int,
                   help="default: 1 for the config of a detector, else the device's own")
    p.add_argument('--precision', choices=PRECISIONS, default='fp32')
    p.add_argument('--channel-masker', choices=('mlp', 'linear'), default='mlp')
    p.add_argument('--fusions', nargs='*', choices=FUSIONS, default=FUSIONS,
                   help='with --published; what this project fuses is up to its programs')
    add_outputs(p, 'the blocks')

    s = commands.add_parser('sweep', help='predict many settings; choose granularities')
    add_networks(s, several=True)
    s.add_argument('--preset', choices=PRESETS, default='rate', help='which study to run')
    s.add_argument('--rate', nargs='+', type=float)
    s.add_argument('--granularity', nargs='+', help='such as 4 or 8-4-7-1')
    s.add_argument('--batch', nargs='+', type=int)
    s.add_argument('--precision', nargs='+', choices=PRECISIONS)
    s.add_argument('--fusions', nargs='+',
                   help="with --published: 'all', 'none' or names joined by +")
    s.add_argument('--channel-masker', nargs='+', choices=('mlp', 'linear'))
    s.add_argument('--best', action='store_true',
                   help='choose the best granularity of each stage for every device')
    add_outputs(s, 'the sweep')
    for sub in (p, s):
        sub.add_argument('--device', nargs='+', required=True,
                         help=f'{", ".join(known_devices())}, or a device or calibration file')
        sub.add_argument('--published', action='store_true',
                         help="count what the papers' predictor counts, as it does")
        sub.add_argument('--any-machine', action='store_true',
                         help='use a calibration of another machine or torch version')

    m = commands.add_parser('measure', help='time networks here, at forced rates')
    c = commands.add_parser('compare', help='predicted against measured, here')
    for sub in (m, c):
        add_networks(sub, several=True)
        add_config(sub)
        sub.add_argument('--rate', nargs='+', type=float, default=[0.5])
        sub.add_argument('--granularity', help='S or G, such as 8-4-7-1')
        sub.add_argument('--batch', nargs='+', type=int, default=[1])
        sub.add_argument('--warmup', type=int, default=5)
        sub.add_argument('--repeats', type=int, default=30)
    m.add_argument('--device', default='cpu')
    m.add_argument('--precision', default='fp32',
                   choices=('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16'))
    m.add_argument('--layout', choices=('channels_last', 'contiguous'), default='channels_last')
    m.add_argument('--compile', action='store_true', help='time the compiled static net too')
    add_outputs(m, 'the ratios')
    c.add_argument('--calibration', required=True, help='file of `calibrate`')
    add_outputs(c, 'predicted over measured')

    k = commands.add_parser('calibrate', help='measure the steps of the executor here')
    k.add_argument('--out', required=True, help='calibration file to write')
    k.add_argument('--device', default='cpu')
    k.add_argument('--precision', choices=('fp32', 'fp16', 'bf16'), default='fp32')
    k.add_argument('--nets', type=int, default=220,
                   help='random backbones whose steps are measured, each in 2 to 3 seconds')
    k.add_argument('--held-out', type=float, default=0.1,
                   help='so many more, as a share, to check the fit on')
    k.add_argument('--repeats', type=int, default=7, help='timed runs of each')
    k.add_argument('--seed', type=int, default=0)
    add_outputs(k, 'predicted over measured steps')

    n = commands.add_parser('plan', help='measure where skipping a block pays here')
    add_networks(n, several=True)
    add_config(n)
    n.add_argument('--granularity', help='S or G, such as 8-4-7-1')
    n.add_argument('--batch', nargs='+', type=int, default=[1])
    n.add_argument('--rate', nargs='+', type=float, help='shares of units on to measure')
    n.add_argument('--expected-rate', type=float, default=0.5,
                   help='share of units on that the choice rests on where looking would '
                        'synchronise, on a GPU')
    n.add_argument('--device', default='cpu')
    n.add_argument('--precision', choices=('fp32', 'fp16', 'bf16'), default='fp32')
    n.add_argument('--threads', type=int, help='CPU threads; default: as torch has them')
    n.add_argument('--repeats', type=int, default=9)
    n.add_argument('--out', required=True, help='plan file to write')
    return parser.parse_args(argv)


def check_networks(args):
    """Fill in what --network, --size and --batch default to; refuse what a config decides."""
    if not hasattr(args, 'network'):
        return
    detector = False
    if getattr(args, 'config', None):
        for field in ('network', 'paradigm', 'granularity'):
            if getattr(args, field) is not None:
                raise ValueError(f'--{field} must be left out with --config, which says it, '
                                 f'got {getattr(args, field)!r}')
        detector = any(key.endswith('_head') for key in args_model(args))
    if args.network is None:
        args.network = 'resnet101' if args.command == 'predict' else ['resnet101']
    args.size = tuple(args.size or ((800, 1216) if detector else (224, 224)))
    if min(args.size) < 1:
        raise ValueError(f'--size must be two positive ints, got {list(args.size)}')
    if args.command == 'predict' and args.batch is None and detector:
        args.batch = 1  # as images come


def check_device(name):
    """Refuse what is no device of torch, such as one of the hardware table."""
    import torch
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'--device must be a device of torch, such as cpu or cuda, got {name!r}; '
                         'another device can be predicted for') from error


def check_outputs(args):
    """Refuse outputs that could not be written, before any work."""
    for field in ('json', 'csv', 'plot', 'out'):
        path = getattr(args, field, None)
        if path is None:
            continue
        if Path(path).is_dir():
            raise ValueError(f'--{field} must be a file, got the folder {path}')
        if field == 'plot' and Path(path).suffix not in ('.png', '.pdf', '.svg'):
            raise ValueError(f'--plot must end in .png, .pdf or .svg, got {path}')
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def paradigm_of(name):
    return None if name in (None, 'none') else name


def granularity_of(values, paradigm):
    """S or G per stage from the command line, for the paradigms that have one."""
    if values is None or paradigm not in ('spatial', 'both', 'channel'):
        return None
    if isinstance(values, str):
        if not all(v.isdigit() for v in values.split('-')):
            raise ValueError(f'--granularity must be ints joined by -, such as 8-4-7-1, '
                             f'got {values!r}')
        values = [int(v) for v in values.split('-')]
    return tuple(values) * (4 if len(values) == 1 else 1)


def track(sequence):
    """Iterate with a progress bar on the error stream, which rarely moves: it disturbs timings."""
    from rich.console import Console
    from rich.progress import track as rich_track
    return rich_track(sequence, console=Console(stderr=True), transient=True,
                      refresh_per_second=0.5)


def predict(args):
    paradigm = paradigm_of(args.paradigm)
    setting = Setting(args.network, paradigm, args.rate, args.device[0], args.batch,
                      granularity_of(args.granularity, paradigm), tuple(args.fusions),
                      args.channel_masker, args.precision, tuple(args.size))
    predictors, rates = Predictors(args.published, args.any_machine), args.rate
    if args.config:
        backbone = args_model(args)['backbone']
        spec = backbone_spec(backbone, args.size)
        about = dict(network=Path(args.config).stem, config=args.config, rate=args.rate,
                     image_size=list(args.size), paradigm=backbone.get('paradigm', 'layer'),
                     granularity=stage_granularity(block.shape for block in spec.blocks))
    else:
        spec, about = setting.spec(), setting.about()
    if args.rates:
        rates = rates_of_blocks(args.rates, spec)
        about.update(rate=None, rates=args.rates)
    about.update(network_flops(spec, rates))
    reports = [predictors[replace(setting, device=device)].predict(spec, rates, args.batch, about)
               for device in args.device]

    print(format_table([sweep_row(r) for r in reports], COLUMNS))
    for report in reports:
        if report.mode == 'published':
            print(f'{report.device}: as published, residual blocks only')
    write_outputs(args, [r.as_dict() for r in reports],
                  [dict(device=r.device, **row) for r in reports for row in r.rows()])
    if args.plot:
        plot_blocks(reports[0], args.plot)


def rates_of_blocks(path, spec):
    """Rates per block that a report of the latency hook holds; None for blocks always on."""
    rates, names = recorded_rates(path), [block.name for block in spec.blocks]
    if set(rates) != set(names):
        raise ValueError(f'--rates must cover the {len(names)} blocks of the network, {path} '
                         f'covers {len(set(rates) & set(names))} of them')
    return [None if rates[name] == 1 else rates[name] for name in names]


def write_outputs(args, content, rows):
    if args.json:
        write_json(content[0] if len(content) == 1 else content, args.json)
    if args.csv:
        write_csv(rows, args.csv)


def fusions_of(text):
    return {'all': FUSIONS, 'none': ()}.get(text, tuple(text.split('+')))


def sweep(args):
    preset = PRESETS[args.preset]

    def chosen(field, default):
        value = getattr(args, field)
        return value if value is not None else preset.get(field, default)

    paradigms = [paradigm_of(p) for p in chosen('paradigm', ('layer',))]
    predictors = Predictors(args.published, args.any_machine)
    settings = sweep_settings(
        args.network, paradigms, chosen('rate', (0.5,)), args.device, chosen('batch', (None,)),
        [granularity_of(g, 'spatial') for g in chosen('granularity', (None,))],
        [fusions_of(f) for f in chosen('fusions', ('all',))],
        chosen('channel_masker', ('mlp',)), chosen('precision', ('fp32',)), args.size)
    if args.best:
        return choose_granularities(args, predictors, settings)
    reports = [predictors.predict(setting) for setting in track(settings)]
    rows = [sweep_row(report) for report in reports]
    x = preset['x']
    print(format_table(rows, COLUMNS if x in COLUMNS else (*COLUMNS, x)))
    write_outputs(args, [dict(preset=args.preset, rows=rows)], rows)
    if args.plot:
        lines = [c for c in ('network', 'device', 'paradigm', 'granularity', 'rate', 'batch',
                             'fusions', 'channel_masker', 'precision') if c != x]
        plot_lines(rows, args.plot, x, preset.get('y', 'ratio'), lines)


def choose_granularities(args, predictors, settings):
    rows, details = [], []
    plain = dict.fromkeys(replace(s, granularity=None) for s in settings
                          if s.paradigm in ('spatial', 'channel'))
    for setting in track(list(plain)):
        choice, stages = best_granularity(predictors, setting)
        best = predictors.predict(replace(setting, granularity=choice))
        rows.append(sweep_row(best))
        details.append(dict(sweep_row(best), stages=stages))
    if not rows:
        raise ValueError('--best needs --paradigm spatial or channel, which have a granularity')
    print(format_table(rows, COLUMNS))
    write_outputs(args, [dict(best=details)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'rate', 'ratio', ('network', 'device', 'paradigm'))


def args_model(args):
    """The model of --config, as plain dicts."""
    from mmengine.config import Config
    # Reading a `mmdet::` config warns of what only mmengine can mend.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    model = Config.fromfile(args.config).get('model')
    if model is None or 'backbone' not in model:
        raise ValueError(f'--config must have a model with a backbone, {args.config} has none')
    return model.to_dict()


def bench_settings(args, rates=None, batches=None):
    from laud_mm.profiling.backbones import BenchSetting
    if args.config:
        backbone = args_model(args)['backbone']
        return [BenchSetting(Path(args.config).stem, backbone.get('paradigm', 'layer'), rate,
                             batch, None, tuple(args.size), backbone=backbone)
                for rate in rates or args.rate for batch in batches or args.batch]
    paradigms = [paradigm_of(p) for p in args.paradigm or ('layer', 'channel', 'spatial')]
    return [BenchSetting(network, paradigm, rate, batch,
                         granularity_of(args.granularity, paradigm), tuple(args.size))
            for network in args.network for paradigm in paradigms for rate in rates or args.rate
            for batch in batches or args.batch]


def measure(args):
    from laud_mm.latency.measure import device_stamp
    from laud_mm.profiling.backbones import MEASURED_COLUMNS, measure_setting
    check_device(args.device)
    rows = []
    for setting in track(bench_settings(args)):
        rows.append(measure_setting(setting, args.device, args.precision, args.layout,
                                    args.compile, args.warmup, args.repeats))
    print(format_table(rows, MEASURED_COLUMNS))
    print('Per image. A realised rate is the nearest that a whole number of units has.'
          + ' The static net is eager: --compile times it compiled too.' * (not args.compile))
    write_outputs(args, [dict(stamp=device_stamp(args.device), precision=args.precision,
                              layout=args.layout, results=rows)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'rate', 'ratio_to_fastest_static',
                   ('network', 'paradigm', 'batch'))


def calibrate(args):
    from laud_mm.profiling.calibrate import calibrate as run, summarise_errors
    check_device(args.device)
    rows = run(args.out, args.device, args.precision, args.nets, args.held_out, args.repeats,
               args.seed, track)
    held_out = [row for row in rows if row['held_out']]
    summary = summarise_errors(held_out)
    print(format_table(summary, ('kind', 'steps', 'within_15_percent', 'median_error',
                                 'mean_error')))
    write_outputs(args, [dict(summary=summary, steps=rows)], rows)
    if args.plot:
        plot_predicted(held_out, args.plot, group='kind')
    print(f'wrote {args.out}')


def plan(args):
    import torch
    from laud_mm.profiling.plan import RATES as MEASURED_RATES
    from laud_mm.profiling.plan import make_plan
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = bench_settings(args, rates=[1.0], batches=[1])
    backbones = [setting.build(plan=None) for setting in settings]
    made = make_plan(backbones, tuple(args.size), args.batch, args.device, args.precision,
                     args.rate or MEASURED_RATES, args.expected_rate, repeats=args.repeats,
                     track=track)
    made.save(args.out)
    rows = [dict(paradigm=case.shape.paradigm, width=case.shape.width, groups=case.shape.groups,
                 stride=case.shape.stride, in_size='x'.join(map(str, case.in_size)),
                 batch=case.batch, fused_masker=times.route.fused_masker,
                 dense_ms=times.dense_ms, skipping_all_ms=times.skipping_ms[-1],
                 break_even=times.break_even) for case, times in made.blocks.items()]
    print(format_table(rows, tuple(rows[0]) if rows else ()))
    print(f'wrote {args.out}')


def compare(args):
    from laud_mm.latency.calibrated import CalibratedPredictor
    from laud_mm.profiling.backbones import compare_setting
    predictor = CalibratedPredictor(args.calibration)
    rows = [compare_setting(setting, predictor, args.warmup, args.repeats)
            for setting in track(bench_settings(args))]
    print(format_table(rows, ('network', 'paradigm', 'rate', 'batch', 'measured_ms',
                              'predicted_ms', 'error', 'static_measured_ms',
                              'static_predicted_ms', 'static_error')))
    write_outputs(args, [dict(stamp=predictor.stamp, rows=rows)], rows)
    if args.plot:
        plot_predicted(rows, args.plot, group='paradigm', bound=0.10)


def main(argv=None):
    args = parse_args(argv)
    try:
        check_outputs(args)
        check_networks(args)
        globals()[args.command](args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
