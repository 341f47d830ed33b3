"""Table and plot of the Fashion-MNIST study: dynamic nets against smaller static ones."""
from pathlib import Path
from statistics import fmean, pstdev

from laud_mm.utils.tables import markdown_table

from .digits_report import Limits

LIMITS = Limits(static_accuracy=92.5, accuracy_loss=1.0, fraction_error=0.03)
QUICK_LIMITS = Limits(static_accuracy=90.0, accuracy_loss=2.0, fraction_error=0.06)
ABLATED = 'ablation_'  # what names of short trainings begin with
# What nets are compared by: a column of the results, its axis.
COSTS = {'mflops': 'FLOPs per image [M multiply-adds]',
         'measured_ms/batch_64': 'measured here, batch 64 [ms per image]',
         'predicted_ms/TX2': 'predicted for TX2, batch 1 [ms]',
         'predicted_ms/V100': 'predicted for V100, batch 128 [ms per image]'}


def over_seeds(rows):
    """Average the runs that differ in their seed only.

    Args:
        rows (list[dict]): Of `FashionStudy.evaluate`.

    Returns:
        list[dict]: One per net, in order: `name`, `paradigm`, `target`, `seeds`, and mean and
        deviation of every number as `key` and `key±`; `mflops` is what the net computes.
    """
    nets = {}
    for row in rows:
        nets.setdefault(row['name'].rsplit('_s', 1)[0], []).append(
            dict(row, mflops=row['backbone_flops_fraction'] * row['static_mflops']))
    found = []
    for name, own in nets.items():
        mean = dict(name=name, paradigm=own[0]['paradigm'], target=own[0]['target'],
                    seeds=len(own))
        for key in own[0]:
            values = [row[key] for row in own if isinstance(row.get(key), float)]
            if key not in mean and len(values) == len(own):
                mean[key], mean[f'{key}±'] = fmean(values), pstdev(values)
        found.append(mean)
    return found


def static_frontier(nets, cost):
    """The static nets that no cheaper static net equals.

    Args:
        nets (list[dict]): Of `over_seeds`.
        cost (str): One of `COSTS`.

    Returns:
        list[tuple[float, float]]: Cost and accuracy, rising.
    """
    best = []
    for point in sorted((net[cost], -net['accuracy']) for net in nets
                        if net['paradigm'] == 'static' and cost in net):
        if not best or -point[1] > best[-1][1]:
            best.append((point[0], -point[1]))
    return best


def above_frontier(net, nets, cost):
    """Points of accuracy by which a net lies above the static frontier at its own cost.

    Returns:
        float | None: None where the frontier does not reach, or the cost is not known.
    """
    frontier = static_frontier(nets, cost)
    if cost not in net or not frontier or net[cost] < frontier[0][0]:
        return None
    below = max(point for point in frontier if point[0] <= net[cost])
    beyond = [point for point in frontier if point[0] > net[cost]]
    if not beyond:
        return net['accuracy'] - below[1]
    share = (net[cost] - below[0]) / (beyond[0][0] - below[0])
    return net['accuracy'] - below[1] - share * (beyond[0][1] - below[1])


def make_table(rows):
    """Markdown tables of the study's nets, averaged over seeds, and of its short trainings.

    Args:
        rows (list[dict]): Of `FashionStudy.evaluate`.

    Returns:
        str: The tables.
    """
    short = [row for row in rows if row['name'].startswith(ABLATED)]
    long = [row for row in rows if row not in short]
    return '\n\n'.join(_table(own) for own in (long, short) if own)


def _table(rows):
    head = ('network', 'seeds', 'accuracy', 'M FLOPs', 'fraction', 'its deviation over images',
            'deciding blocks', 'easy / hard half', 'decisions frozen', 'ms, batch 64 / 1',
            'TX2 / V100 ms', 'above the frontier: FLOPs / ms')
    nets, lines = over_seeds(rows), []
    for net in nets:
        def show(key, form, net=net):
            return f'{net[key]:{form}}' if key in net else ''

        def pair(one, two, form, show=show):
            both = [show(key, form) for key in (one, two)]
            return ' / '.join(both) if any(both) else ''

        accuracy = show('accuracy', '.2f')
        if net['seeds'] > 1:
            accuracy += f' ± {net["accuracy±"]:.2f}'
        gains = [above_frontier(net, nets, cost) for cost in list(COSTS)[:2]]
        lines.append((
            net['name'].replace('_', ' '), net['seeds'], accuracy, show('mflops', '.2f'),
            show('backbone_flops_fraction', '.3f'), show('flops_fraction_std', '.3f'),
            show('deciding_blocks', '.2f'), pair('easy_accuracy', 'hard_accuracy', '.2f'),
            show('frozen_accuracy', '.2f'),
            pair('measured_ms/batch_64', 'measured_ms/batch_1', '.3f'),
            pair('predicted_ms/TX2', 'predicted_ms/V100', '.3f'),
            ' / '.join('' if gain is None else f'{gain:+.2f}' for gain in gains)
            if net['paradigm'] != 'static' else ''))
    return markdown_table(head, lines)


def plot_study(rows, path):
    """Plot accuracy against every cost that is known, with the static frontier.

    Args:
        rows (list[dict]): Of `FashionStudy.evaluate`.
        path (str | Path): PNG file to write.
    """
    from matplotlib.figure import Figure
    nets = [net for net in over_seeds(rows) if not net['name'].startswith(ABLATED)]
    costs = {cost: title for cost, title in COSTS.items() if any(cost in net for net in nets)}
    figure = Figure(figsize=(4.2 * len(costs), 3.8), dpi=120, layout='constrained')
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axis, (cost, title) in zip(axes, costs.items()):
        frontier = static_frontier(nets, cost)
        axis.step(*zip(*frontier), where='post', color='black', linewidth=0.6, linestyle=':')
        axis.plot(*zip(*frontier), color='black', linewidth=0.8, label='static frontier')
        for paradigm in dict.fromkeys(net['paradigm'] for net in nets):
            own = [net for net in nets if net['paradigm'] == paradigm and cost in net
                   and 'without' not in net['name']]
            style = dict(color='black', marker='*') if paradigm == 'static' else dict(marker='o')
            axis.errorbar([net[cost] for net in own], [net['accuracy'] for net in own],
                          [net['accuracy±'] for net in own], linestyle='', capsize=2,
                          label=paradigm, **style)
            for net in own:
                axis.annotate(net['name'].replace('_', ' '), (net[cost], net['accuracy']),
                              xytext=(3, 3), fontsize=5, textcoords='offset points')
        axis.set(xlabel=title)
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    axes[0].set_ylabel('accuracy on 10,000 test images [%]')
    axes[0].legend(fontsize=7)
    figure.savefig(Path(path))
