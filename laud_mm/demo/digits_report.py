"""Table and plot of the digits study, and whether it shows what it must."""
from dataclasses import dataclass
from pathlib import Path

from laud_mm.utils.tables import markdown_table

_DEVICE = 'TX2'  # the device whose prediction table and plot show
JUDGED_TARGET = 0.6


@dataclass(frozen=True)
class Limits:
    """What a study must reach.

    Attributes:
        static_accuracy (float): Of the static net at least, percent.
        accuracy_loss (float): Points below the static net at most, at `JUDGED_TARGET`.
        fraction_error (float): Of the FLOPs fraction at most, at `JUDGED_TARGET`.
    """
    static_accuracy: float
    accuracy_loss: float
    fraction_error: float


LIMITS = Limits(98.0, 1.0, 0.03)


def make_table(rows):
    """One markdown table of the study's figures.

    Args:
        rows (list[dict]): From `Study.evaluate`.

    Returns:
        str: The table.
    """
    head = ('network', 'target', 'accuracy, skipping / masked', 'FLOPs fraction',
            'its deviation over images', 'measured ms / static', 'ratio',
            f'predicted {_DEVICE} ms / static', 'ratio')
    lines = []
    for row in rows:
        predicted = [row[f'backbone_latency_predicted_{k}/{_DEVICE}']
                     for k in ('ms', 'static_ms', 'ratio')]
        lines.append((row['name'].replace('_', ' '), f'{row["target"]:g}',
                 f'{row["accuracy"]:.2f} / {row["masked_accuracy"]:.2f}',
                 f'{row["backbone_flops_fraction"]:.3f}', f'{row["flops_fraction_std"]:.3f}',
                 f'{row["backbone_latency_measured_ms"]:.3f} / '
                 f'{row["backbone_latency_static_ms"]:.3f}',
                 f'{row["backbone_latency_ratio"]:.2f}',
                 f'{predicted[0]:.3f} / {predicted[1]:.3f}', f'{predicted[2]:.2f}'))
    return markdown_table(head, lines)


def find_problems(rows, limits=LIMITS):
    """What of a study is not as it must be.

    Args:
        rows (list[dict]): Results, the static net that the others are judged by first.
        limits (Limits): What must be reached.

    Returns:
        list[str]: One sentence per problem.
    """
    static, students = rows[0], [row for row in rows if row['paradigm'] != 'static']
    problems = [f'{row["name"]}: the executions differ in accuracy, '
                f'{row["accuracy"]:.2f} skipping and {row["masked_accuracy"]:.2f} masked'
                for row in rows if row['accuracy'] != row['masked_accuracy']]
    if static['accuracy'] < limits.static_accuracy:
        problems.append(f'{static["name"]}: accuracy {static["accuracy"]:.2f}, below '
                        f'{limits.static_accuracy}')
    if students and not any(row['flops_fraction_std'] > 0 for row in students):
        problems.append('no network computes more for one image than for another')
    for row in students:
        if row['target'] != JUDGED_TARGET or 'without_kd' in row['name']:
            continue
        loss = static['accuracy'] - row['accuracy']
        if loss > limits.accuracy_loss:
            problems.append(f'{row["name"]}: {loss:.2f} points below the static net')
        if abs(row['backbone_flops_fraction'] - row['target']) > limits.fraction_error:
            problems.append(f'{row["name"]}: FLOPs fraction {row["backbone_flops_fraction"]:.3f} '
                            f'for a target of {row["target"]}')
    return problems


def plot_study(rows, path):
    """Plot accuracy against latency, measured here and predicted.

    Args:
        rows (list[dict]): From `Study.evaluate`.
        path (str | Path): PNG file to write.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.8), dpi=120, layout='constrained')
    panels = (('measured here, batch 64', 'backbone_latency_measured_ms'),
              (f'predicted for {_DEVICE}', f'backbone_latency_predicted_ms/{_DEVICE}'))
    for axis, (title, key) in zip(figure.subplots(1, 2, sharey=True), panels):
        for i, paradigm in enumerate(dict.fromkeys(row['paradigm'] for row in rows)):
            own = sorted((row[key], row['accuracy'], row['target']) for row in rows
                         if row['paradigm'] == paradigm and 'without' not in row['name'])
            x, y, targets = zip(*own)
            style = dict(marker='*', markersize=12, color='black') if paradigm == 'static' \
                else dict(marker='o')
            line, = axis.plot(x, y, label=paradigm, **style)
            # Each paradigm's labels at a height of their own: accuracies are often equal.
            for point in own if paradigm != 'static' else ():
                axis.annotate(f't={point[2]:g}', point[:2], xytext=(3, 9 * i - 6), fontsize=7,
                              textcoords='offset points', color=line.get_color())
        axis.set(title=title, xlabel='backbone latency per image [ms]')
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    figure.axes[0].set_ylabel('accuracy on held-out digits [%]')
    figure.axes[0].legend()
    figure.savefig(Path(path))
