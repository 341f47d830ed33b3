"""The ratios of each release, and which of them moved.

    history.py                  # what moved by more than 5 % between the last two releases
    history.py --add 0.2.0      # first add the figures of benchmarks/results under that release

A figure is a ratio of one setting on one kind of CPU: of a network's time, eager or deployed, over
the fastest static net, PyTorch's or that of all runtimes in its precision, or of an artefact's over
the static one of its runtime.
Where several files have the same setting, it is the mean of those with the most runtimes, which are
the later ones. Lower is better.
"""
import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).resolve().parent
COLUMNS = ('release', 'figure', 'value', 'precision', 'cpu', 'threads', 'versions', 'files')
PYTORCH = ('static', 'compiled')  # static nets that every run has
RUNTIMES = ('torch', 'onnxruntime', 'openvino')
MOVED = 0.05


def figures_of(content, file):
    """The figures of a result file: dicts of `COLUMNS`, without the release."""
    if not isinstance(content, dict) or 'stamp' not in content:
        return
    stamp = content['stamp']
    versions = {**stamp, **stamp.get('runtimes', {})}
    about = dict(cpu=stamp.get('name', ''), threads=stamp.get('threads', ''), files=file,
                 versions=' '.join(f'{name} {versions[name].split("-")[0]}' for name in RUNTIMES
                                   if name in versions))
    for row in content.get('results') or ():
        if not isinstance(row, dict) or not {'batch', 'rate'} <= row.keys():
            continue
        precision = row.get('precision') or stamp.get('precision', '')
        size = row.get('size') or content.get('image_size') or (224, 224)
        size = size if isinstance(size, str) else 'x'.join(map(str, size))
        granularity = '-'.join(map(str, row.get('granularity') or ()))
        setting = ' '.join(filter(None, [
            row.get('network') or content.get('network', ''),
            f'width {content["width"]}' if content.get('width') else '', size,
            row.get('paradigm') or 'layer',
            granularity, f'batch {row["batch"]}']))
        if 'runtime' in row:  # an artefact, which decides for itself
            found = {f'{row["runtime"]} over its static net': row.get('ratio')}
        else:
            found = {f'rate {row["rate"]:g} {name}': value for name, value in ratios_of(row)}
        for name, value in found.items():
            if value is not None:
                yield dict(about, figure=f'{setting} {name}', value=value, precision=precision)


def ratios_of(row):
    """Name and value of the ratios in a row of `tools/latency.py measure`."""
    fastest = row.get('ratio_to_fastest_static')
    own = [ratio for name, ratio in (row.get('ratios') or {}).items() if name in PYTORCH]
    yield "eager over PyTorch's static", max(own, default=fastest)
    if row.get('fastest_static') not in (None, *PYTORCH) or len(own) < len(row.get('ratios') or ()):
        yield 'eager over all static', fastest
        yield 'deployed over all static', row.get('deployed_ratio_to_fastest_static')


def key_of(row):
    """What makes two rows the same figure."""
    return row['figure'], row['precision'], row['cpu'], str(row['threads'])


def read_figures(folder):
    """The figures of all result files of a folder, one row per key."""
    found = {}
    for path in sorted(Path(folder).glob('*.json')):
        for row in figures_of(json.loads(path.read_text()), path.name):
            found.setdefault(key_of(row), []).append(row)
    for key, rows in found.items():
        most = max(len(row['versions'].split()) for row in rows)
        found[key] = [row for row in rows if len(row['versions'].split()) == most]
    return [dict(rows[-1], value=f'{fmean(row["value"] for row in rows):.4g}',
                 files=' '.join(dict.fromkeys(row['files'] for row in rows)))
            for _, rows in sorted(found.items())]


def read_history(path):
    """The rows of the history, oldest release first."""
    if not path.is_file():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def write_history(rows, path):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def moved_figures(rows, threshold=MOVED):
    """What moved between the last two releases.

    Args:
        rows (list[dict]): The history.
        threshold (float): Share of the older value.

    Returns:
        list[tuple[dict, dict, float]]: The older row, the newer row and the change, largest
        first; figures that only one of the releases has do not count.
    """
    releases = list(dict.fromkeys(row['release'] for row in rows))
    if len(releases) < 2:
        return []
    old, new = ({key_of(row): row for row in rows if row['release'] == release}
                for release in releases[-2:])
    changes = [(old[key], new[key], float(new[key]['value']) / float(old[key]['value']) - 1)
               for key in old if key in new]
    return sorted((change for change in changes if abs(change[2]) > threshold),
                  key=lambda change: -abs(change[2]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--add', metavar='RELEASE', help='replaces its rows, if it has any')
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--history', type=Path, default=HERE / 'history.csv')
    parser.add_argument('--threshold', type=float, default=MOVED)
    args = parser.parse_args(argv)
    rows = read_history(args.history)
    if args.add:
        figures = read_figures(args.results)
        if not figures:
            sys.exit(f'error: --results must be a folder with result files, got {args.results}')
        rows = [row for row in rows if row['release'] != args.add]
        rows += [dict(row, release=args.add) for row in figures]
        write_history(rows, args.history)
    releases = list(dict.fromkeys(row['release'] for row in rows))
    if len(releases) < 2:
        print(f'{args.history.name} has {len(rows)} figures of {", ".join(releases) or "nothing"}: '
              'nothing to compare with')
        return
    moved = moved_figures(rows, args.threshold)
    for old, new, change in moved:
        where = ', '.join(filter(None, [new['precision'], new['cpu'], new['versions']]))
        if old['versions'] != new['versions']:
            where += f' (before: {old["versions"]})'
        print(f'{change:+.0%}  {old["value"]} -> {new["value"]}  {new["figure"]}  [{where}]')
    print(f'{len(moved)} figures moved by more than {args.threshold:.0%} from {releases[-2]} '
          f'to {releases[-1]}')


if __name__ == '__main__':
    main()
