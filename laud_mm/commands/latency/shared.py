"""What the subcommands share: arguments, checks before any work, settings, outputs."""
import warnings
from pathlib import Path

from laud_mm.latency.hardware import known_devices
from laud_mm.latency.published import FUSIONS
from laud_mm.specs import (
    FAMILIES,
    NETWORKS,
    configured_size,
    find_backbone_config,
    is_detector,
)
from laud_mm.specs.arguments import paradigm_set
from laud_mm.utils.files import write_csv, write_json
from laud_mm.utils.stack import is_installed, require_packages

SKIPPED = tuple(dict.fromkeys(p for family in FAMILIES.values() for p in family.paradigms))
PARADIGMS = (*SKIPPED, 'both', 'none')
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
                        help="of the images; default: as the config's test pipeline makes them, "
                             '800 1216 for a usual detector; without a config 224 224')


def add_config(parser):
    parser.add_argument('--config', help='the backbone of this config, instead of --network, '
                                         '--paradigm and --granularity')


def check_networks(args):
    """Fill in what --network, --size and --batch default to; refuse what a config decides."""
    if not hasattr(args, 'network'):
        return
    detector, size = False, (224, 224)
    if getattr(args, 'artifact', None):
        for field in ('config', 'network', 'paradigm', 'granularity', 'rate', 'gates', 'plan',
                      'layout'):
            if getattr(args, field) is not None:
                raise ValueError(f'--{field} must be left out with --artifact, which says it, '
                                 f'got {getattr(args, field)!r}')
        from laud_mm.deploy.artefact import read_card
        size = read_card(args.artifact)['image_size']
    elif getattr(args, 'config', None):
        for field in ('network', 'paradigm', 'granularity'):
            if getattr(args, field) is not None:
                raise ValueError(f'--{field} must be left out with --config, which says it, '
                                 f'got {getattr(args, field)!r}')
        cfg = read_config(args)
        detector, size = is_detector(cfg['model']), configured_size(cfg)
    if args.network is None:
        args.network = 'resnet101' if args.command == 'predict' else ['resnet101']
    args.size = tuple(args.size or size)
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
    if values is None or not {'spatial', 'channel'} & set(paradigm_set(paradigm, SKIPPED)):
        return None
    if isinstance(values, str):
        if not all(v.isdigit() for v in values.split('-')):
            raise ValueError(f'--granularity must be ints joined by -, such as 8-4-7-1, '
                             f'got {values!r}')
        values = [int(v) for v in values.split('-')]
    return tuple(values) * (4 if len(values) == 1 else 1)


def track(sequence):
    """Iterate with a progress bar on the error stream, which rarely moves: it disturbs timings."""
    if not is_installed('rich'):
        return sequence
    from rich.console import Console
    from rich.progress import track as rich_track
    return rich_track(sequence, console=Console(stderr=True), transient=True,
                      refresh_per_second=0.5)


def write_outputs(args, content, rows):
    if args.json:
        write_json(content[0] if len(content) == 1 else content, args.json)
    if args.csv:
        write_csv(rows, args.csv)


def fusions_of(text):
    return {'all': FUSIONS, 'none': ()}.get(text, tuple(text.split('+')))


def read_config(args):
    """The file of --config, as plain dicts."""
    require_packages('--config', 'mmengine')
    from mmengine.config import Config
    with warnings.catch_warnings():
        # Reading a `mmdet::` config warns of what only mmengine can mend.
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        cfg = Config.fromfile(args.config)
    find_backbone_config(cfg.get('model'))  # there must be one
    return cfg.to_dict()


def configured_backbone(args):
    """The config of the LAUD backbone of --config."""
    return find_backbone_config(read_config(args)['model'])[1]


def bench_settings(args, rates=None, batches=None, block_rates=None):
    """The `BenchSetting`s of a command line; rates and batches instead of its own."""
    from laud_mm.profiling.bench import BenchSetting
    rates = rates or args.rate or [0.5]
    if args.config:
        backbone = configured_backbone(args)
        return [BenchSetting(Path(args.config).stem, backbone.get('paradigm', 'layer'), rate,
                             batch, None, tuple(args.size), block_rates, backbone)
                for rate in rates for batch in batches or args.batch]
    paradigms = [paradigm_of(p) for p in args.paradigm or ('layer', 'channel', 'spatial')]
    return [BenchSetting(network, paradigm, rate, batch,
                         granularity_of(args.granularity, paradigm), tuple(args.size), block_rates)
            for network in args.network for paradigm in paradigms for rate in rates
            for batch in batches or args.batch]


def add_devices(parser):
    parser.add_argument('--device', nargs='+', required=True,
                        help=f'{", ".join(known_devices())}, or a device or calibration file')
    parser.add_argument('--published', action='store_true',
                        help="count what the papers' predictor counts, as it does")
    parser.add_argument('--any-machine', action='store_true',
                        help='use a calibration of another machine or torch version')


def add_measurement(parser):
    add_networks(parser, several=True)
    add_config(parser)
    parser.add_argument('--rate', nargs='+', type=float, help='default: 0.5')
    parser.add_argument('--granularity', help='S or G, such as 8-4-7-1')
    parser.add_argument('--batch', nargs='+', type=int, default=[1])
    parser.add_argument('--warmup', type=int, default=5)
    parser.add_argument('--repeats', type=int, default=30)
