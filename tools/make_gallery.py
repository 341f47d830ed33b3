"""Train three small detectors on the demo set and draw what they skip: the documentation's gallery.

    make_gallery.py [--work-dir work_dirs/gallery] [--out docs/images/gallery] [--pictures 1]

Trainings go on where they were, so a second run only draws.
"""
import argparse
import subprocess
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from visualize import inspect_config

from laud_mm.checkpoints import find_resumable
from laud_mm.demo.detection_set import build_detection_set
from laud_mm.visualization import plot_block_rates, plot_fractions, save_record_picture

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / 'configs' / 'faster_rcnn_laud_demo.py')
# Small patches show more of what is looked at than the fastest ones would.
NETS = {'spatial': {'model.backbone.paradigm': 'spatial',
                    'model.backbone.spatial_granularity': (2, 2, 1, 1)},
        'channel': {'model.backbone.paradigm': 'channel'},
        'layer': {'model.backbone.paradigm': 'layer'}}


def train(options, folder):
    """Train a detector, or go on training it; returns its newest checkpoint."""
    overrides = [f'{key}={str(value).replace(" ", "")}' for key, value in options.items()]
    subprocess.run([sys.executable, str(ROOT / 'tools' / 'train.py'), CONFIG, '--resume',
                    '--work-dir', str(folder), '--cfg-options', *overrides], check=True)
    return str(find_resumable(folder))


def draw(name, found, out, pictures):
    """Draw a net's gallery: histograms, and the images that got the most and the fewest FLOPs."""
    plot_fractions(out / f'{name}_fractions.png', found.fractions)
    plot_block_rates(out / f'{name}_blocks.png', found.names, found.rates)
    for kind, images in (('most', found.most), ('least', found.least)):
        for i, seen in enumerate(images[:pictures]):
            save_record_picture(out / f'{name}_{kind}_{i}.png', seen.image, seen.record,
                                seen.sample)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/gallery'))
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'images' / 'gallery')
    parser.add_argument('--pictures', type=int, default=1, help='pictures of each kind')
    parser.add_argument('--only', nargs='+', choices=NETS, default=list(NETS))
    parser.add_argument('--no-training', action='store_true', help='draw what is trained')
    args = parser.parse_args()
    build_detection_set('data/demo')
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        folder = args.work_dir / name
        checkpoint = find_resumable(folder) if args.no_training else train(NETS[name], folder)
        if checkpoint is None:
            sys.exit(f'error: {folder} holds no checkpoint; leave out --no-training')
        found = inspect_config(CONFIG, str(checkpoint), 100, args.pictures, NETS[name])
        draw(name, found, args.out, args.pictures)
        print(f'{name}: FLOPs fraction {found.fractions.mean():.3f}, pictures in {args.out}')


if __name__ == '__main__':
    main()
