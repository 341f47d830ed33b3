"""A static HTML report of a network: pictures, figures over a set, and the tables of its run."""
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from laud_mm.latency.plots import figure
from laud_mm.utils.files import replacing
from laud_mm.utils.tables import html_table
from laud_mm.visualization import plot_block_rates, plot_fractions, save_record_picture

_STYLE = """body { font: 15px/1.45 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .7em; text-align: right;
border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
img { max-width: 100%; display: block; margin: .5em 0 } figcaption { color: #555 }"""
CURVES = ('loss', 'activation_fraction', 'activation_rate', 'gumbel_temperature', 'lr')


@dataclass
class Page:
    """An HTML page that grows by sections.

    Attributes:
        title (str): Its heading.
        parts (list[str]): HTML so far.
    """
    title: str
    parts: list = field(default_factory=list)

    def heading(self, text):
        """Start a section."""
        self.parts.append(f'<h2>{escape(text)}</h2>')

    def text(self, text):
        """Add a paragraph."""
        self.parts.append(f'<p>{escape(text)}</p>')

    def picture(self, path, caption):
        """Add a picture, by its path relative to the page."""
        self.parts.append(f'<figure><img src="{escape(str(path))}" alt="{escape(caption)}">'
                          f'<figcaption>{escape(caption)}</figcaption></figure>')

    def table(self, rows):
        """Add a table of dicts, columns as in the first row."""
        if not rows:
            return
        self.parts.append(html_table(rows))

    def write(self, path):
        """Write the page, complete or not at all."""
        with replacing(path) as part:
            part.write_text(
                f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.title)}'
                f'</title><style>{_STYLE}</style><h1>{escape(self.title)}</h1>'
                + '\n'.join(self.parts) + '</html>\n')


def write_report(folder, title, inspection, run_dir=None):
    """Write `index.html` and its pictures.

    Args:
        folder (str | Path): Where to.
        title (str): Heading of the page.
        inspection (Inspection): What the network computed on a set.
        run_dir (str | Path, optional): A work dir, whose tables and curves are added.

    Returns:
        Path: The page.
    """
    folder, page = Path(folder), Page(title)
    (folder / 'pictures').mkdir(parents=True, exist_ok=True)
    _add_set(page, folder, inspection)
    for kind, title, images in (
            ('first', 'The first images', inspection.seen),
            ('least', 'Images that got the fewest FLOPs', inspection.least),
            ('most', 'Images that got the most FLOPs', inspection.most)):
        page.heading(title)
        for seen in images:
            name = f'pictures/{kind}_{seen.index:05d}.png'
            save_record_picture(folder / name, seen.image, seen.record, seen.sample)
            page.picture(name, f'image {seen.index}: {seen.fraction:.3f} of the static FLOPs')
    if run_dir is not None:
        _add_run(page, folder, Path(run_dir))
    page.write(folder / 'index.html')
    return folder / 'index.html'


def _add_set(page, folder, inspection):
    fractions, groups = inspection.fractions, inspection.by_class()
    page.text(f'{len(fractions)} images; FLOPs fraction {fractions.mean():.3f}, deviation over '
              f'images {fractions.std():.3f}, from {fractions.min():.3f} to {fractions.max():.3f}.')
    plot_fractions(folder / 'pictures' / 'fractions.png', fractions, groups)
    page.heading('FLOPs over the set')
    page.picture('pictures/fractions.png', 'FLOPs fraction of the images')
    page.table([dict({'class': name}, images=len(own), fraction=float(own.mean()))
                for name, own in groups.items()])
    plot_block_rates(folder / 'pictures' / 'blocks.png', inspection.names, inspection.rates)
    page.heading('Blocks')
    page.picture('pictures/blocks.png', 'share of units computed: mean, and the middle 80 % '
                 'of the images')
    page.table([{key: value if isinstance(value, str) else float(value)
                 for key, value in row.items()} for row in inspection.block_rows()])


def _newest(run_dir, pattern, last=lambda path: False):
    """The newest file of a pattern; those that `last` holds for only where there is no other."""
    return max(run_dir.rglob(pattern), key=lambda p: (not last(p), p.stat().st_mtime),
               default=None)


def _is_masked(path):
    """Whether a latency report is of a masked evaluation, which saves nothing."""
    return json.loads(path.read_text())['stamp'].get('execution') == 'masked'


def _add_run(page, folder, run_dir):
    results = _newest(run_dir, 'results.json')
    if results is not None:
        page.heading('Evaluation')
        found = json.loads(results.read_text())
        page.table([dict(metric=key, value=value) for key, value in found['metrics'].items()])
    latency = _newest(run_dir, 'latency/*.json', last=_is_masked)
    if latency is not None:
        page.heading('Latency')
        report = json.loads(latency.read_text())
        page.text(', '.join(f'{key}: {value}' for key, value in report['stamp'].items()))
        page.table(_latency_rows(report))
    curves = _training_curves(run_dir)
    if curves:
        page.heading('Training')
    for name, points in curves.items():
        with figure(folder / 'pictures' / f'curve_{name}.png', width=7, height=2.6) as axes:
            axes.plot(*zip(*sorted(points.items())), linewidth=0.9)
            axes.set_xlabel('iteration')
            axes.set_ylabel(name)
        page.picture(f'pictures/curve_{name}.png', name)


def _latency_rows(report):
    nets = {name: (own['latency_ms'], own['static_ms'])
            for name, own in report.get('predicted', {}).items()}
    if 'measured' in report:
        own = report['measured']
        nets = {'measured here': (own['dynamic']['mean_ms'], own['static']['mean_ms']), **nets}
    return [dict(device=name, **{'ms per image': dynamic, 'static ms': static,
                                 'ratio': dynamic / static})
            for name, (dynamic, static) in nets.items()]


def _training_curves(run_dir):
    """Iterations and values of what the training logged, over all of its runs."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(run_dir.rglob('scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            for name in CURVES:
                if name in entry and 'iter' in entry:
                    curves.setdefault(name, {})[entry['iter']] = entry[name]
    return curves
