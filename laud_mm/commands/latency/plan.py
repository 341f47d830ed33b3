"""latency.py plan: which program of every block is the fastest here."""
from laud_mm.specs import NETWORKS, PARADIGMS, family_of
from laud_mm.utils.tables import text_table

from .shared import add_config, add_networks, bench_settings, track

HELP = 'measure where skipping a block pays here'


def add_arguments(parser):
    add_networks(parser, several=True)
    add_config(parser)
    parser.add_argument('--granularity', help='S or G, such as 8-4-7-1')
    parser.add_argument('--batch', nargs='+', type=int, default=[1])
    parser.add_argument('--rate', nargs='+', type=float, help='shares of units on to measure')
    parser.add_argument('--expected-rate', type=float, default=0.5,
                   help='share of units on that the choice rests on where looking would '
                        'synchronise, on a GPU')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', choices=('fp32', 'fp16', 'bf16'), default='fp32')
    parser.add_argument('--threads', type=int, help='CPU threads; default: as torch has them')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--out', required=True, help='plan file to write')


def run(args):
    import torch

    from laud_mm.profiling.make_plan import RATES as MEASURED_RATES
    from laud_mm.profiling.make_plan import make_plan
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = bench_settings(args, rates=[1.0], batches=[1])
    for setting in settings:
        family = NETWORKS[setting.network] if setting.backbone is None \
            else family_of(setting.backbone)
        if family.paradigms != PARADIGMS:
            raise ValueError('network must be a ResNet or RegNet to be planned for, got '
                             f'{setting.network!r}')
    backbones = [setting.build(plan=None) for setting in settings]
    made = make_plan(backbones, tuple(args.size), args.batch, args.device, args.precision,
                     args.rate or MEASURED_RATES, args.expected_rate, repeats=args.repeats,
                     track=track)
    made.save(args.out)
    rows = [dict(paradigm=case.shape.paradigm, width=case.shape.width, groups=case.shape.groups,
                 stride=case.shape.stride, in_size='x'.join(map(str, case.in_size)),
                 batch=case.batch, fused_masker=times.route.fused_masker,
                 full_ms=times.full_ms, skipping_all_ms=times.skipping_ms[-1],
                 break_even=times.break_even) for case, times in made.blocks.items()]
    print(text_table(rows, tuple(rows[0]) if rows else ()))
    print(f'wrote {args.out}')
