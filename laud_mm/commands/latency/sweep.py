"""latency.py sweep: many settings, and the best granularity of each stage."""
from dataclasses import replace

from laud_mm.latency.hardware import PRECISIONS
from laud_mm.latency.plots import plot_lines
from laud_mm.latency.sweep import Predictors, best_granularity, sweep_row, sweep_settings
from laud_mm.utils.tables import text_table

from .shared import (
    COLUMNS,
    add_devices,
    add_networks,
    add_outputs,
    fusions_of,
    granularity_of,
    paradigm_of,
    track,
    write_outputs,
)

HELP = 'predict many settings; choose granularities'
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


def add_arguments(parser):
    add_networks(parser, several=True)
    parser.add_argument('--preset', choices=PRESETS, default='rate', help='which study to run')
    parser.add_argument('--rate', nargs='+', type=float)
    parser.add_argument('--granularity', nargs='+', help='such as 4 or 8-4-7-1')
    parser.add_argument('--batch', nargs='+', type=int)
    parser.add_argument('--precision', nargs='+', choices=PRECISIONS)
    parser.add_argument('--fusions', nargs='+',
                   help="with --published: 'all', 'none' or names joined by +")
    parser.add_argument('--channel-masker', nargs='+', choices=('mlp', 'linear'))
    parser.add_argument('--best', action='store_true',
                   help='choose the best granularity of each stage for every device')
    add_outputs(parser, 'the sweep')
    add_devices(parser)


def run(args):
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
    print(text_table(rows, COLUMNS if x in COLUMNS else (*COLUMNS, x)))
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
    print(text_table(rows, COLUMNS))
    write_outputs(args, [dict(best=details)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'rate', 'ratio', ('network', 'device', 'paradigm'))
