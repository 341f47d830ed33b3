"""The table of one evaluation: accuracy, backbone FLOPs and latency, averaged over the set."""
from pathlib import Path

from laud_mm.specs.arguments import type_name
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import markdown_table

PREDICTED = 'backbone_latency_predicted_ms/'


def configured_target(cfg):
    """The FLOPs fraction that a config trains for; None where it has no such budget.

    Args:
        cfg (Config): Its ActivationHook stands in `default_hooks` or `custom_hooks`.
    """
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    for hook in hooks:
        if hook and type_name(hook) == 'ActivationHook':
            return hook.get('target', 0.5) if hook.get('metric', 'flops') == 'flops' else None
    return None


def accuracy_rows(metrics, note=''):
    """Rows of a detector's mAP, or of whatever else was evaluated.

    Args:
        metrics (dict[str, float]): What `Runner.test` returned.
        note (str): Added to each row's name.

    Returns:
        list[tuple[str, str]]: Name and value.
    """
    rows = []
    for kind, of in (('bbox', 'boxes'), ('segm', 'masks')):
        pair = [metrics.get(f'coco/{kind}_{name}') for name in ('mAP', 'mAP_50')]
        if all(isinstance(value, (int, float)) for value in pair):
            rows.append((f'mAP / mAP50 of {of}{note}', ' / '.join(f'{v:.3f}' for v in pair)))
    return rows or [(f'{name}{note}', _format(value)) for name, value in metrics.items()
                    if '/backbone_' not in f'/{name}']


def _format(value):
    if hasattr(value, 'tolist'):  # NumPy's and torch's
        value = value.tolist()
    if isinstance(value, (list, tuple, dict)):
        return f'{len(value)} values' if len(value) > 4 else ', '.join(map(_format, value))
    return f'{value:.4g}' if isinstance(value, (int, float)) else str(value)


def backbone_rows(metrics, target=None):
    """Rows of what the latency hook reported; none if it did not run.

    Args:
        metrics (dict[str, float]): What `Runner.test` returned.
        target (float, optional): FLOPs fraction that was trained for.

    Returns:
        list[tuple[str, str]]: Name and value.
    """
    rows = []
    for key in metrics:
        place = key.removesuffix('backbone_flops_g')  # named where several backbones ran
        if place != key:
            own = {k.removeprefix(place): v for k, v in metrics.items() if k.startswith(place)}
            rows += [(f'{name} ({place[:-1]})' if place else name, value)
                     for name, value in _rows_of_one(own, target)]
    return rows


def _rows_of_one(metrics, target):
    def pair(dynamic, static, form):
        return f'{metrics[dynamic]:{form}} / {metrics[static]:{form}}'

    fraction = f'{metrics["backbone_flops_fraction"]:.3f}'
    rows = [
        ('backbone GFLOPs, dynamic / static',
         pair('backbone_flops_g', 'backbone_flops_static_g', '.4g')),
        ('backbone FLOPs fraction', fraction) if target is None else
        ('backbone FLOPs fraction (target)', f'{fraction} ({target})'),
        ('rate of computed units', f'{metrics["backbone_rate"]:.3f}')]
    if 'backbone_latency_measured_ms' in metrics:
        rows.append(('backbone ms per image, measured, dynamic / static (ratio)', pair(
            'backbone_latency_measured_ms', 'backbone_latency_static_ms', '.4g')
            + f' ({metrics["backbone_latency_ratio"]:.3f})'))
    for device in [k.removeprefix(PREDICTED) for k in metrics if k.startswith(PREDICTED)]:
        ratio = metrics[f'backbone_latency_predicted_ratio/{device}']
        rows.append((f'backbone ms per image, predicted for {device}', pair(
            PREDICTED + device, f'backbone_latency_predicted_static_ms/{device}', '.4g')
            + f' ({ratio:.3f})'))
    return rows


def format_rows(rows, heading='evaluation'):
    """Lay rows out as a markdown table."""
    return markdown_table((heading, 'value'), rows)


def write_results(metrics, folder, about, target=None):
    """Write an evaluation's table and figures to `results.md` and `results.json`.

    Args:
        metrics (dict[str, float]): What `Runner.test` returned.
        folder (str | Path): Where to.
        about (dict): What was evaluated, for the JSON.
        target (float, optional): FLOPs fraction that was trained for.

    Returns:
        str: The table.
    """
    table = format_rows(accuracy_rows(metrics) + backbone_rows(metrics, target))
    write_json(dict(about, target=target, metrics=metrics), Path(folder, 'results.json'))
    Path(folder, 'results.md').write_text(table + '\n')
    return table
