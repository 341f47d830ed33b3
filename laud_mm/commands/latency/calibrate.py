"""latency.py calibrate: the steps of programs here."""
from laud_mm.latency.plots import plot_predicted
from laud_mm.utils.tables import text_table

from .shared import add_outputs, check_device, track, write_outputs

HELP = 'measure the steps of programs here'


def add_arguments(parser):
    parser.add_argument('--out', required=True, help='calibration file to write')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', choices=('fp32', 'fp16', 'bf16'), default='fp32')
    parser.add_argument('--nets', type=int, default=360,
                   help='random backbones whose steps are measured, each in a second or two')
    parser.add_argument('--held-out', type=float, default=0.08,
                   help='so many more, as a share, to check the fit on')
    parser.add_argument('--repeats', type=int, default=7, help='timed runs of each, at least')
    parser.add_argument('--seconds', type=float, default=0.7, help='for further runs of each')
    parser.add_argument('--seed', type=int, default=0)
    add_outputs(parser, 'predicted over measured steps')


def run(args):
    from laud_mm.profiling.calibrate import calibrate, summarise_errors
    check_device(args.device)
    rows = calibrate(args.out, args.device, args.precision, args.nets, args.held_out, args.repeats,
               args.seed, args.seconds, track)
    held_out = [row for row in rows if row['held_out']]
    summary = summarise_errors(held_out)
    print(text_table(summary, ('kind', 'steps', 'within_15_percent', 'median_error',
                                 'mean_error')))
    write_outputs(args, [dict(summary=summary, steps=rows)], rows)
    if args.plot:
        plot_predicted(held_out, args.plot, group='kind')
    print(f'wrote {args.out}')
