"""Pictures of what a backbone computed and what it skipped."""
import math

import numpy as np

COMPUTED, SKIPPED = '#2a9d8f', '#e9ecef'
# Which of a decision's masks is shown unit by unit: the first that is there.
_SHOWN = ('patches', 'tokens', 'channels', 'heads', 'branches', 'layer')


def unit_map(decision, sample):
    """The units of one image as a picture: 1 where computed.

    Args:
        decision (Decision | TransformerDecision): A block's decision on a batch.
        sample (int): Index into the batch.

    Returns:
        np.ndarray: (h, w) float in [0, 1]: the patch grid (spatial), the patch
        tokens, channel groups or heads row by row, the two branches, or one cell.
        Where there is a grid or tokens, the shares of other units scale it.
    """
    masks = {name: mask[sample].float().cpu().numpy() for name, mask in decision.masks().items()}
    if not masks:
        return np.ones((1, 1))
    first, *others = sorted(masks, key=_SHOWN.index)
    return _picture(masks[first]) * np.prod([masks[name].mean() for name in others])


def _picture(units):
    """Lay units out: a grid as it is, a few in a column, many row by row in a square."""
    if units.ndim == 2:
        return units
    width = math.ceil(math.sqrt(len(units))) if len(units) > 2 else 1
    return np.pad(units, (0, -len(units) % width)).reshape(-1, width)


def draw_activation(figure, record, sample=0):
    """Draw every block of a forward pass: one row per stage, one cell per block.

    Args:
        figure (matplotlib Figure or SubFigure): Drawn into.
        record (ActivationRecord): From `backbone.record`.
        sample (int): Index into the batch.
    """
    from matplotlib.colors import LinearSegmentedColormap
    colors = LinearSegmentedColormap.from_list('activation', [SKIPPED, COMPUTED])
    stages = {}
    for block in record.blocks:
        stages.setdefault(block.shape.stage, []).append(block)
    columns = max(map(len, stages.values()))
    axes = figure.subplots(len(stages), columns, squeeze=False)
    for row, (stage, blocks) in zip(axes, sorted(stages.items())):
        for axis in row:
            axis.set_axis_off()
        for axis, block in zip(row, blocks):
            axis.set_axis_on()
            axis.imshow(unit_map(block.decision, sample), cmap=colors, vmin=0, vmax=1,
                        aspect='auto', interpolation='nearest')
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f'stage {stage + 1}', rotation=0, ha='right', va='center')
    fraction = record.cost().fraction[sample].item()
    figure.suptitle(f'computed (green): {fraction:.2f} of the static FLOPs', fontsize=9)


def _beside_activation(image, record, sample):
    """A figure with an image at the left, its axis, and what was computed at the right."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 3.6), dpi=120)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    axis = left.add_axes([0.02, 0.02, 0.96, 0.96])
    axis.imshow(image)
    axis.set_axis_off()
    draw_activation(right, record, sample)
    return figure, axis


def save_activation_picture(path, image, record, sample=0):
    """Save an image, as it is, beside what the backbone computed for it.

    Args:
        path (str | Path): PNG file to write.
        image (np.ndarray): (H, W, 3) uint8, RGB.
        record (ActivationRecord): Of the forward pass on this image.
        sample (int): Index into that pass's batch.
    """
    _beside_activation(image, record, sample)[0].savefig(path)


def save_detection_picture(path, image, boxes, labels, scores, record, sample=0):
    """Save an image with its detections beside what the backbone computed for it.

    Args:
        path (str | Path): PNG file to write.
        image (np.ndarray): (H, W, 3) uint8, RGB.
        boxes (np.ndarray): (D, 4) x1, y1, x2, y2 in pixels.
        labels (Sequence[str]): Class name of each box.
        scores (Sequence[float]): Score of each box.
        record (ActivationRecord): Of the forward pass on this image.
        sample (int): Index into that pass's batch.
    """
    from matplotlib.patches import Rectangle
    figure, axis = _beside_activation(image, record, sample)
    for (x1, y1, x2, y2), label, score in zip(boxes, labels, scores):
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec='#ffd166', lw=1.5))
        axis.text(x1, max(y1 - 2, 6), f'{label} {score:.2f}', fontsize=7, color='black',
                  bbox=dict(facecolor='#ffd166', edgecolor='none', pad=0.8))
    figure.savefig(path)
