"""Build the demo detection set: python tools/make_demo_data.py ROOT."""
import argparse
import json
from collections import Counter

from laud_mm.demo.detection_set import SPLITS, build_detection_set


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Build a small COCO-format detection set from bundled photographs.')
    parser.add_argument('root', help='folder of the set; a finished one with the '
                        'same settings is reused')
    parser.add_argument('--num-train', type=int, default=400, help='train images (default: 400)')
    parser.add_argument('--num-val', type=int, default=100, help='val images (default: 100)')
    parser.add_argument('--image-size', type=int, default=160,
                        help='width and height in pixels (default: 160)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all choices (default: 0)')
    return parser, parser.parse_args(argv)


def summarise(root, split):
    """Count a split's images and its objects per class, in one line."""
    content = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    counts = Counter(names[a['category_id']] for a in content['annotations'])
    objects = ', '.join(f'{counts[name]} {name}' for name in names.values())
    return f'{split}: {len(content["images"])} images; objects: {objects}'


def main(argv=None):
    parser, args = parse_args(argv)
    try:
        root = build_detection_set(**vars(args))
    except (ValueError, FileExistsError, ImportError) as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    print(f'demo set: {root}')
    for split in SPLITS:
        print(summarise(root, split))


if __name__ == '__main__':
    main()
