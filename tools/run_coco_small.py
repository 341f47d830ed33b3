"""Train and evaluate all five detectors at small width on the demo set; print one table."""
import argparse
import sys
from pathlib import Path

from laud_mm.demo.detector_study import DETECTORS, run_study

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/coco_small', help='where results go')
    parser.add_argument('--detector', nargs='+', default=DETECTORS, choices=DETECTORS)
    args = parser.parse_args()
    table, problems = run_study(ROOT / 'configs', ROOT / 'tools' / 'train.py', args.work_dir,
                                args.detector)
    print(f'\n{table}\n\nresults and pictures: {args.work_dir}')
    sys.exit('\n'.join(problems) or 0)


if __name__ == '__main__':
    main()
