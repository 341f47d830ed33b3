"""Train and evaluate the digits study: accuracy against latency of the three paradigms."""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from laud_mm.demo.digits_demo import run_digits

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/digits', help='where results go')
    parser.add_argument('--data-root', default='data/digits', help='where the images go')
    parser.add_argument('--jobs', type=int, help='trainings at a time; default: one per core')
    args = parser.parse_args()
    table, problems = run_digits(ROOT / 'configs', ROOT / 'tools' / 'train.py', args.work_dir,
                                 args.data_root, args.jobs)
    print(f'\n{table}\n\nresults and plot: {args.work_dir}')
    sys.exit('\n'.join(problems) or 0)


if __name__ == '__main__':
    main()
