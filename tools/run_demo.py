"""Run the demo: data, training, evaluation, one table and pictures."""
import argparse
from pathlib import Path

from laud_mm.demo.detection_demo import run_demo

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where results go')
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'faster_rcnn_laud_demo.py'))
    args = parser.parse_args()
    table = run_demo(args.config, ROOT / 'tools' / 'train.py', args.work_dir)
    print(f'\n{table}\n\nresults and pictures: {args.work_dir}')


if __name__ == '__main__':
    main()
