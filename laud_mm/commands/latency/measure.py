"""latency.py measure: networks here, at forced rates, beside their static nets; or artefacts."""
from pathlib import Path

from laud_mm.latency.plots import plot_lines
from laud_mm.latency.sweep import recorded_rates
from laud_mm.utils.tables import text_table

from .shared import add_measurement, add_outputs, bench_settings, check_device, track, write_outputs

HELP = 'time networks here, at forced rates, or an artefact of tools/deploy.py'
STATIC_COLUMNS = ('network', 'paradigm', 'batch', 'static', 'static_p50_ms', 'p50_ms', 'ratio')
PLANNED_COLUMNS = ('maskers_p50_ms', 'ratio_to_static', 'ratio_to_static_without_maskers')


def add_arguments(parser):
    add_measurement(parser)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', help='default: fp32; of an artefact for OpenVINO what it '
                        'computes in, fp32 or bf16',
                   choices=('fp32', 'tf32', 'fp16', 'bf16', 'amp_fp16', 'amp_bf16'))
    parser.add_argument('--layout', choices=('channels_last', 'contiguous'),
                        help='default: channels_last')
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
    parser.add_argument('--artifact', help='folder of tools/deploy.py: time it as it decides, '
                                           'beside the static net in the same runtime')
    parser.add_argument('--images', help='with --artifact: folder of images to decide on; '
                                         'default: random ones')
    parser.add_argument('--batches', type=int, default=8,
                        help='with --artifact: different batches of images')


def run(args):
    import torch

    from laud_mm.latency.measure import device_stamp
    from laud_mm.profiling.bench import DEPLOYED_COLUMNS, MEASURED_COLUMNS, PEER_COLUMNS
    device = check_device(args.device)
    if args.peers and device.type != 'cpu':
        raise ValueError(f'--peers must be left out with --device {args.device}: they run on the '
                         'CPU')
    if args.images is not None and not args.artifact:
        raise ValueError(f'--images needs --artifact, which decides on them, got {args.images!r}')
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, about = (measure_artefacts if args.artifact else measure_networks)(args)
    columns = (MEASURED_COLUMNS + PEER_COLUMNS * args.peers + DEPLOYED_COLUMNS * args.deployed
               + PLANNED_COLUMNS * bool(args.plan))
    print(text_table(rows, [column for column in columns if column in rows[0]]))
    print(about.pop('note'))
    peers, missing = {}, {}
    if args.peers:
        peers = [dict(runtimes=row.pop('runtimes')) for row in rows][0]
        missing = [dict(missing=row.pop('missing')) for row in rows][0]
        print(text_table([static for row in rows for static in static_rows(row)], STATIC_COLUMNS))
        for reason in missing['missing']:
            print(f'Not timed: {reason}')
    stamp = dict(device_stamp(args.device), precision=about['precision'],
                 static=about.pop('static'), **peers)
    write_outputs(args, [dict(stamp=stamp, **about, **missing, results=rows)], rows)
    if args.plot:
        plot_lines(rows, args.plot, 'realised_rate', 'ratio_to_fastest_static',
                   ('network', 'paradigm', 'batch'))


def measure_networks(args):
    """Rows of networks at forced rates, and what is said of all of them."""
    from laud_mm.profiling.bench import measure_setting
    rates = args.gates and recorded_rates(args.gates)
    precision, layout = args.precision or 'fp32', args.layout or 'channels_last'
    rows = [measure_setting(setting, args.device, precision, layout, args.compile, args.warmup,
                            args.repeats, args.plan, args.peers, args.deployed)
            for setting in track(bench_settings(args, block_rates=rates))]
    note = 'Per image. A realised rate is the nearest that a whole number of units has.' \
        + ' The static net is eager: --compile times it compiled too.' * (not args.compile)
    static = f'folded, {layout.replace("_", "-")}, eager' + ' and compiled' * args.compile
    return rows, dict(precision=precision, layout=layout, static=static, note=note)


def measure_artefacts(args):
    """The same of an artefact, at every batch size."""
    from laud_mm.deploy.artefact import read_card
    from laud_mm.profiling.artefacts import (
        artefact_precision,
        check_measurable,
        measure_artefact,
        random_images,
    )
    card = read_card(args.artifact)
    check_measurable(card, args.device, args.batch, args.size, args.precision)
    if args.batches < 1:
        raise ValueError(f'--batches must be at least 1, got {args.batches}')
    count = max(args.batch) * args.batches
    images = random_images(count, card['inputs'][0]['channels'], args.size) if args.images is None \
        else read_images(args, card, count)
    rows = [measure_artefact(args.artifact, images[:batch * args.batches].to(
        args.device).split(batch), args.precision, args.compile, args.peers, args.warmup,
        args.repeats) for batch in track(args.batch)]
    note = 'Per image, over all batches.' + (
        ' Rates are of what the artefact decides.' if card['decisions'] else
        ' Rates are not known: tools/deploy.py --decisions returns them.')
    return rows, dict(
        artifact=args.artifact, kind=card['kind'], config=card['config'],
        checkpoint=card['checkpoint'], profile=card['profile'], versions=card.get('versions'),
        images=args.images, batches=args.batches, note=note,
        precision=artefact_precision(card, args.precision),
        static=f'in the runtime of the artefact ({card["kind"]})' + ' and compiled' * args.compile)


def read_images(args, card, count):
    """Images of a folder, as the test pipeline of the card's config makes them, in one size."""
    import torch
    import torch.nn.functional as F

    from laud_mm.utils.run import load_config

    from ..images import backbone_inputs, image_files
    files = image_files(args.images, count, '--images')
    if len(files) < count:
        raise ValueError(f'--images must have {count} images for {args.batches} batches of '
                         f'{max(args.batch)}, got {len(files)} in {args.images}')
    if not Path(card['config']).is_file():
        raise ValueError(f"--images needs the artefact's config, {card['config']}, which is not "
                         'there')
    found = backbone_inputs(load_config(card['config']), files)
    return torch.cat([F.interpolate(x, tuple(args.size), mode='bilinear') for x in found])


def static_rows(row):
    """One row per form of the static net that was timed beside a network."""
    for name, ratio in row['ratios'].items():
        yield dict(network=row['network'], paradigm=row['paradigm'], batch=row['batch'],
                   static=name, static_p50_ms=row[f'{name}_p50_ms'], p50_ms=row['p50_ms'],
                   ratio=ratio)
