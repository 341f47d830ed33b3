"""latency.py predict: one network on one or more devices."""
from dataclasses import replace
from pathlib import Path

from laud_mm.latency.hardware import PRECISIONS
from laud_mm.latency.plots import plot_blocks
from laud_mm.latency.published import FUSIONS
from laud_mm.latency.sweep import (
    Predictors,
    Setting,
    network_flops,
    recorded_rates,
    stage_granularity,
    sweep_row,
)
from laud_mm.specs import backbone_spec
from laud_mm.utils.tables import text_table

from .shared import (
    COLUMNS,
    add_config,
    add_devices,
    add_networks,
    add_outputs,
    configured_backbone,
    granularity_of,
    paradigm_of,
    write_outputs,
)

HELP = 'predict one network on one or more devices'


def add_arguments(parser):
    add_networks(parser, several=False)
    add_config(parser)
    parser.add_argument('--rate', type=float, default=0.5, help='share of units on in every block')
    parser.add_argument('--rates', help='rates per block from this report of the latency hook')
    parser.add_argument('--granularity', nargs='+', type=int,
                        help='S (spatial, both) or G (channel)')
    parser.add_argument('--batch', type=int,
                   help="default: 1 for the config of a detector, else the device's own")
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument('--channel-masker', choices=('mlp', 'linear'), default='mlp')
    parser.add_argument('--fusions', nargs='*', choices=FUSIONS, default=FUSIONS,
                   help='with --published; what this project fuses is up to its programs')
    add_outputs(parser, 'the blocks')
    add_devices(parser)


def run(args):
    paradigm = paradigm_of(args.paradigm)
    setting = Setting(args.network, paradigm, args.rate, args.device[0], args.batch,
                      granularity_of(args.granularity, paradigm), tuple(args.fusions),
                      args.channel_masker, args.precision, tuple(args.size))
    predictors, rates = Predictors(args.published, args.any_machine), args.rate
    if args.config:
        backbone = configured_backbone(args)
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

    print(text_table([sweep_row(r) for r in reports], COLUMNS))
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
