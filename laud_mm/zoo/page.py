"""model_zoo.md."""
from collections.abc import Sequence

from laud_mm.utils.tables import markdown_table

from .entries import Entry
from .figures import DEVICES, Figures
from .measured import Results

HEAD = """# Model zoo

<!-- Written by tools/make_model_zoo.py from configs and benchmarks/results: do not edit. -->

No model has been trained on ImageNet or COCO here: where a table says "not trained here", the
config holds the papers' recipe and nothing more is claimed. Accuracy on the small sets that come
with the project stands where it was reached.

* **FLOPs** are multiply-adds of the backbone per image, maskers included: static, and at the
  config's target, which is a fraction of the static ones. **Rate** is the share of units on, the
  same in every block, that meets the target.
* **Predicted** latencies are milliseconds per image, static → at that rate (ratio), from the
  analytic model and the device's data sheet: fp32 on {fp32};
  fp16 on {fp16}. What a predicted figure leaves out, and how far it was from measured ones,
  stands in the documentation under "Honest limits". `CPU` is the table's generic entry;
  calibrate for your own machine.
* **Measured** latencies are of the machine in the row, of random decisions at a forced rate.
* **Published** figures are others' claims, each with its source.
"""

NAMES = """## Names

`laud_<network>_<what is skipped>[_<granularity>]_t<target>_<data>.py` for classifiers,
`<detector>_laud_<network>[_<what is skipped>[_<granularity>]_t<target>].py` for detectors:
`s8471` are patches of 8, 4, 7 and 1 positions in the four stages, `g2222` groups of 2 channels,
`t05` is a FLOPs fraction of 0.5. A detector without them skips layers at 0.5. Any other variant is
three lines on one of these.
"""

REPRODUCE = {
    'in1k': '`python tools/train.py configs/<config>.py`, then `python tools/test.py '
            'configs/<config>.py <checkpoint>`, with ImageNet in `data/imagenet`; on several GPUs '
            '`tools/dist_train.sh`.',
    'coco': '`python tools/train.py configs/<config>.py`, then `python tools/test.py '
            'configs/<config>.py <checkpoint>`, with COCO in `data/coco`. All start from '
            "torchvision's weights; give `model.backbone.init_cfg` an ImageNet LAUD checkpoint to "
            'start from trained maskers.',
    'demo': '`make coco`, or `make demo` for Faster R-CNN alone; the data is made first.',
    'digits': '`make digits`; the data is made first.',
    'fashion': "`make fashion`, with Debian's package `dataset-fashion-mnist`.",
}


def make_page(entries: Sequence[Entry], figures: dict[str, Figures], results: Results,
              published: dict) -> str:
    """Write the zoo's page.

    Args:
        entries (Sequence[Entry]): Its models.
        figures (dict[str, Figures]): By config name.
        results (Results): What was measured and trained.
        published (dict): Others' figures, `benchmarks/published.json`.

    Returns:
        str: Markdown.
    """
    by_precision = {p: ', '.join(d for d, own in DEVICES.items() if own == p)
                    for p in ('fp32', 'fp16')}
    parts = [HEAD.format(**by_precision), NAMES]
    for data, title in (('in1k', 'ImageNet-1k, 224 × 224'), ('coco', 'COCO, 800 × 1216'),
                        ('digits', 'Digits, 48 × 48'),
                        ('fashion', 'Fashion-MNIST, 32 × 32'), ('demo', 'Demo set, 160 × 160')):
        chosen = [entry for entry in entries if entry.data == data]
        parts += [f'## {title}\n', f'Reproduce: {REPRODUCE[data]}\n',
                  _models(chosen, figures, results, published),
                  _predictions(chosen, figures)]
        if data == 'in1k':
            parts += [_measured(chosen, results), _claims(published)]
    return '\n'.join(parts)


def _table(head, rows):
    return markdown_table(head, rows) + '\n'


def _link(entry):
    return f'[{entry.name}](configs/{entry.name}.py)'


def _models(entries, figures, results, published):
    """Parameters, FLOPs and accuracy."""
    head = ['config', 'skips', 'parameters, M (maskers)', 'GFLOPs, static → target (t)', 'rate',
            'accuracy here']
    imagenet = entries and entries[0].data == 'in1k'
    if imagenet:
        head.append('static net, published')
    rows = []
    for entry in entries:
        own = figures[entry.name]
        accuracy = results.accuracy.get(entry.name)
        if accuracy is not None:
            accuracy += f' ([file](benchmarks/results/{results.sources[entry.name]}))'
        target = '' if entry.target is None else f' → {own.flops_g:.4g} ({entry.target:g})'
        row = [_link(entry), entry.skips,
               f'{own.parameters_m:.2f} ({own.parameters_m - own.static_parameters_m:.2f})',
               f'{own.flops_static_g:.4g}{target}', f'{own.rate:.2f}',
               accuracy or 'not trained here']
        if imagenet:
            claim = published['static_accuracy'].get(entry.network)
            row.append(f'{claim["value"]} % ({claim["source"]})' if claim else '')
        rows.append(row)
    return _table(head, rows)


def _predictions(entries, figures):
    """Predicted latency per device."""
    if not entries:
        return ''
    batches = {device: own[2] for entry in entries
               for device, own in figures[entry.name].latency_ms.items()}
    head = ['predicted ms per image', *(f'{d}, batch {b}' for d, b in batches.items())]
    rows: dict[str, list[str]] = {}  # detectors share backbones, which is what is predicted
    for entry in entries:
        latency = figures[entry.name].latency_ms
        label = _label(entry)
        if entry.detector and entry.target is not None:
            label += f', t = {entry.target:g}'
        rows.setdefault(label, [label, *(
            _pair(*latency[d][:2], entry.target) if d in latency else '' for d in batches)])
    return _table(head, rows.values())


def _label(entry):
    """A classifier's config; of a detector, the backbone that it shares with others."""
    return f'{entry.network}, {entry.skips}' if entry.detector else entry.name


def _pair(static, dynamic, target):
    if target is None:
        return f'{static:.3g}'
    return f'{static:.3g} → {dynamic:.3g} ({dynamic / static:.2f})'


def _measured(entries, results):
    """Timings beside static nets, with the config they belong to."""
    head = ['measured', 'machine', 'rate', 'batch',
            'ms per image, fastest static → dynamic (ratio)', 'file']
    measured = {_label(entry): results.measured_for(entry) for entry in entries}
    rows = [[label, own.device, f'{own.rate:g}', str(own.batch),
             f'{own.static_ms:.3g} → {own.latency_ms:.3g} ({own.ratio:.2f})',
             f'[{own.source}](benchmarks/results/{own.source})']
            for label, timings in measured.items() for own in timings]
    rest = [entry.name for entry in entries if not results.measured_for(entry)]
    text = _table(head, rows) if rows else ''
    return text + (f'\nNot measured yet: {len(rest)} of {len(entries)} configs.\n' if rest else '')


def _claims(published):
    return _table(['published', 'network', 'skips', 'figure'], [
        [claim['source'], claim['network'], claim['paradigm']
         + (f', t = {claim["target"]:g}' if 'target' in claim else ''), claim['text']]
        for claim in published['latency']])
