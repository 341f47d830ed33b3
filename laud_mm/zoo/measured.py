"""What was measured and trained: the files of benchmarks/results."""
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .entries import Entry

# Studies call their runs by what differs; the zoo by their configs.
_RUNS = {'static': 'laud_resnet_digits_static', 'layer_t06': 'laud_resnet_digits',
         'channel_t06': 'laud_resnet_digits_channel', 'spatial_t06': 'laud_resnet_digits_spatial',
         'static_s0': 'laud_resnet_fashion_static', 'w8_kd_s0': 'laud_resnet_fashion_static_kd',
         'layer_t06_s0': 'laud_resnet_fashion', 'channel_t06_s0': 'laud_resnet_fashion_channel',
         'spatial_t06_s0': 'laud_resnet_fashion_spatial'}


@dataclass(frozen=True)
class Measurement:
    """One timing of a backbone beside its static net.

    Attributes:
        device (str): What it ran on.
        rate (float): Share of units on.
        batch (int): Images per batch.
        latency_ms (float): Median per image.
        static_ms (float): The same of the fastest static net of this precision.
        ratio (float): Median over pairs of runs, which drift of the machine does not touch.
        source (str): File of `benchmarks/results`.
    """
    device: str
    rate: float
    batch: int
    latency_ms: float
    static_ms: float
    ratio: float
    source: str


@dataclass
class Results:
    """What result files say.

    Attributes:
        measured (dict[tuple, list[Measurement]]): By network, what it skips and
            image size.
        accuracy (dict[str, str]): By config name: what was reached, in words.
        sources (dict[str, str]): By config name: the file that says so.
    """
    measured: dict[tuple, list[Measurement]] = field(default_factory=dict)
    accuracy: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def measured_for(self, entry: Entry) -> list[Measurement]:
        """Timings of an entry's backbone at its granularity and size."""
        return self.measured.get((entry.network, entry.skips, entry.image_size), [])


def read_results(folder: str | Path) -> Results:
    """Read every JSON file of a folder that holds timings or accuracies.

    Understood are files of `benchmarks/backbones.py` (timings), of `make digits`,
    `make fashion` and `make coco` (`rows`), and of `tools/test.py` (`config` and `metrics`).

    Args:
        folder (str | Path): Such as benchmarks/results.

    Returns:
        Results: Of all of them.
    """
    results = Results()
    for path in sorted(Path(folder).glob('*.json')):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            continue
        # Deployed nets decide for themselves: no rate is forced.
        for row in () if 'artifact' in content else content.get('results') or ():
            if isinstance(row, dict) and {'ratio_to_fastest_static', 'p50_ms'} <= row.keys() \
                    and row['paradigm']:  # of None it is the static net beside itself
                _add_timing(results, row, content.get('stamp', {}), path.name)
        for row in content.get('rows') or ():
            _add_study(results, row, path.name)
        if 'metrics' in content and 'config' in content:
            name = Path(content['config']).stem
            text = _accuracy(content['metrics'])
            if text:
                results.accuracy[name], results.sources[name] = text, path.name
    return results


def _add_timing(results, row, stamp, source):
    letter = {'spatial': 'S', 'channel': 'G'}.get(row['paradigm'])
    granularity = (2, 2, 2, 2) if row['paradigm'] == 'channel' else row.get('granularity')
    skips = row['paradigm'] + (f', {letter} = {"-".join(map(str, granularity))}' if letter else '')
    threads = f', {stamp["threads"]} threads' if 'threads' in stamp else ''
    if 'fastest_static' in row:  # older files do not name it
        static_ms = row[f'{row["fastest_static"]}_p50_ms']
    else:
        static_ms = min(row[key] for key in ('static_p50_ms', 'compiled_p50_ms') if key in row)
    own = Measurement(
        f'{stamp.get("name", stamp.get("device", "?"))}{threads}, {stamp.get("precision", "?")}',
        row['rate'], row['batch'], row['p50_ms'], static_ms, row['ratio_to_fastest_static'], source)
    results.measured.setdefault((row['network'], skips, tuple(row['size'])), []).append(own)


def _add_study(results, row, source):
    if 'detector' in row and row.get('bbox_map') is not None:
        name, text = f'{row["detector"]}_laud_demo', f'mAP {row["bbox_map"]:.3f}'
        if row.get('segm_map') is not None:
            text += f', masks {row["segm_map"]:.3f}'
    elif row.get('name') in _RUNS and 'accuracy' in row:
        name, text = _RUNS[row['name']], f'{row["accuracy"]:.2f} %'
    else:
        return
    results.accuracy[name], results.sources[name] = text, source


def _accuracy(metrics: dict[str, float]) -> str:
    known: Iterable[tuple[str, str]] = (('accuracy/top1', '{:.2f} %'),
                                        ('coco/bbox_mAP', 'mAP {:.3f}'),
                                        ('coco/segm_mAP', 'masks {:.3f}'))
    return ', '.join(form.format(metrics[key]) for key, form in known if key in metrics)
