"""Table and plot of the digits study."""
from pathlib import Path

_DEVICE = 'TX2'  # predicted in the table: batch by batch like the measurement, far from its CPU


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
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for row in rows:
        predicted = [row[f'backbone_latency_predicted_{k}/{_DEVICE}']
                     for k in ('ms', 'static_ms', 'ratio')]
        cells = (row['name'].replace('_', ' '), f'{row["target"]:g}',
                 f'{row["accuracy"]:.2f} / {row["masked_accuracy"]:.2f}',
                 f'{row["backbone_flops_fraction"]:.3f}', f'{row["flops_fraction_std"]:.3f}',
                 f'{row["backbone_latency_measured_ms"]:.3f} / '
                 f'{row["backbone_latency_static_ms"]:.3f}',
                 f'{row["backbone_latency_ratio"]:.2f}',
                 f'{predicted[0]:.3f} / {predicted[1]:.3f}', f'{predicted[2]:.2f}')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


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
        for paradigm in dict.fromkeys(row['paradigm'] for row in rows):
            own = sorted((row[key], row['accuracy'], row['target']) for row in rows
                         if row['paradigm'] == paradigm and 'without' not in row['name'])
            x, y, targets = zip(*own)
            style = dict(marker='*', markersize=12, color='black') if paradigm == 'static' \
                else dict(marker='o')
            axis.plot(x, y, label=paradigm, **style)
            for point in own if paradigm != 'static' else ():
                axis.annotate(f't={point[2]:g}', point[:2], xytext=(3, 4), fontsize=7,
                              textcoords='offset points')
        axis.set(title=title, xlabel='backbone latency per image [ms]')
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel('accuracy on held-out digits [%]')
    figure.axes[0].legend()
    figure.savefig(Path(path))
