"""Train and evaluate the Fashion-MNIST study: dynamic nets against smaller static ones."""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from laud_mm.demo.fashion_study import run_fashion

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ROOT / 'benchmarks' / 'results' / 'fashion-torch2.11-cpu2.json'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', help='where results go; default: work_dirs/fashion, or '
                        'work_dirs/fashion_quick')
    parser.add_argument('--data-root', default='data/fashion_mnist', help='where the images go')
    parser.add_argument('--source', help='folder of the four IDX files, plain or .gz; default: '
                        "that of Debian's package dataset-fashion-mnist")
    parser.add_argument('--quick', action='store_true',
                        help='six short trainings in place of the whole study')
    parser.add_argument('--jobs', type=int, help='trainings at a time; default: one per core')
    parser.add_argument('--only', nargs='+', metavar='RUN', help='these runs only')
    parser.add_argument('--fresh', action='store_true',
                        help='train also what benchmarks/results has figures of')
    parser.add_argument('--no-timing', dest='timing', action='store_false',
                        help='leave measured times as they are: for a machine with other work')
    args = parser.parse_args()
    work_dir = args.work_dir or f'work_dirs/fashion{"_quick" * args.quick}'
    try:
        table, problems = run_fashion(
            ROOT / 'configs', ROOT / 'tools' / 'train.py', work_dir, args.data_root, args.source,
            None if args.fresh else KNOWN, args.quick, args.jobs, args.only, args.timing)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'\n{table}\n\nresults and plot: {work_dir}')
    sys.exit('\n'.join(problems) or 0)


if __name__ == '__main__':
    main()
