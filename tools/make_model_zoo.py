"""Write model_zoo.md, model-index.yml and metafiles/ from configs and benchmarks/results.

    make_model_zoo.py [--check]

With --check nothing is written; it fails if anything differs from what would be.
"""
import argparse
import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', message='pkg_resources is deprecated')

from laud_mm.utils.files import replacing
from laud_mm.zoo import all_figures, make_metafiles, make_page, read_entries, read_results

ROOT = Path(__file__).resolve().parents[1]


def make_files(root):
    """All generated files: path in the repository to content."""
    entries = read_entries(root / 'configs')
    results = root / 'benchmarks' / 'results'
    figures = all_figures(entries, sorted(results.glob('calibration-*.json')))
    published = json.loads((root / 'benchmarks' / 'published.json').read_text())
    page = make_page(entries, figures, read_results(results), published)
    return {'model_zoo.md': page, **make_metafiles(entries, figures)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='only say what is stale')
    args = parser.parse_args()
    files = make_files(ROOT)
    stale = [name for name, text in files.items()
             if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    gone = [str(path.relative_to(ROOT)) for path in sorted((ROOT / 'metafiles').glob('*.yml'))
            if str(path.relative_to(ROOT)) not in files]
    if args.check:
        if stale or gone:
            sys.exit(f'error: run make zoo, these are stale: {", ".join(stale + gone)}')
        return
    for name in stale:
        with replacing(ROOT / name) as part:
            part.write_text(files[name])
    for name in gone:
        (ROOT / name).unlink()
    print('\n'.join(f'written: {name}' for name in stale) or 'everything was up to date')


if __name__ == '__main__':
    main()
