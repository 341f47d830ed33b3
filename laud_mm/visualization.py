"""Pictures of what a backbone computed and what it skipped."""
import math
from pathlib import Path

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
        tokens, channel groups or heads row by row (NaN beyond the last), the two branches, or
        one cell.
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
    return np.pad(units, (0, -len(units) % width), constant_values=np.nan).reshape(-1, width)


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


def overlay(image, units, granularity):
    """Darken what was skipped in an image.

    Args:
        image (np.ndarray): (H, W, 3) uint8, RGB: the backbone's input.
        units (np.ndarray): (h, w) in [0, 1], the patch grid, 1 where computed.
        granularity (int): Pixels that a patch is wide; the last ones may be cut.

    Returns:
        np.ndarray: (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    grown = units.repeat(granularity, 0).repeat(granularity, 1)[:height, :width]
    grey = image.mean(-1, keepdims=True) * 0.25
    share = grown[..., None]
    return (image * share + grey * (1 - share)).round().astype(np.uint8)


def patch_pixels(record):
    """Pixels of the image that one patch of every block's decision is wide.

    Args:
        record (ActivationRecord): Of a pass of a convolutional backbone.

    Returns:
        list[int]: In the order of `record.blocks`.
    """
    stride, pixels = math.prod(op.stride for op in record.stem), []
    for block in record.blocks:
        stride *= block.shape.stride
        pixels.append(stride * block.shape.spatial_granularity)
    return pixels


def to_rgb(image):
    """Any image as a picture, (H, W, 3) uint8 RGB.

    Args:
        image (np.ndarray): (H, W) grey, or (H, W, C) with BGR first, or with fewer channels,
            of which the mean is shown.
    """
    if image.ndim == 3 and image.shape[2] >= 3:
        return np.ascontiguousarray(image[..., 2::-1])
    grey = image if image.ndim == 2 else image.mean(-1).round().astype(image.dtype)
    return np.repeat(grey[..., None], 3, 2)


def paint_segments(image, ids, ignored=None):
    """Tint every segment of an image in a colour of its own.

    Args:
        image (np.ndarray): (H, W, 3) uint8, RGB.
        ids (np.ndarray): (H, W) ints, equal within a segment.
        ignored (int, optional): Id of pixels that stay as they are.

    Returns:
        np.ndarray: (H, W, 3) uint8.
    """
    from matplotlib.colors import hsv_to_rgb
    found, places = np.unique(ids, return_inverse=True)
    # Steps of the golden ratio keep the hues of neighbouring ids apart.
    hues = found * 0.618034 % 1
    colours = hsv_to_rgb(np.stack([hues, np.ones_like(hues), np.ones_like(hues)], -1)) * 255
    tinted = (image + colours[places.reshape(ids.shape)]) / 2
    return np.where((ids == ignored)[..., None], image, tinted.round()).astype(np.uint8)


def has_overlays(record):
    """Whether a pass decided on patches, which can be laid over the image."""
    return any(getattr(block.decision, 'patches', None) is not None for block in record.blocks)


def save_overlay_picture(path, image, record, sample=0, columns=8):
    """Save an image with what every block skipped darkened, stage by stage.

    The first picture of a stage is the mean over its blocks.

    Args:
        path (str | Path): PNG file to write.
        image (np.ndarray): (H, W, 3) uint8, RGB: the backbone's input.
        record (ActivationRecord): Of a spatially skipping backbone.
        sample (int): Index into the pass's batch.
        columns (int): Pictures in a row.
    """
    from matplotlib.figure import Figure
    size, stages = image.shape[:2], {}
    for block, pixels in zip(record.blocks, patch_pixels(record)):
        if getattr(block.decision, 'patches', None) is None:
            continue
        units = unit_map(block.decision, sample)
        shown = overlay(image, units, pixels)
        stages.setdefault(block.shape.stage, []).append((block.shape.name, units.mean(), shown))
    rows = []
    for stage, blocks in sorted(stages.items()):
        mean = np.mean([shown for *_, shown in blocks], 0).astype(np.uint8)
        cells = [(f'stage {stage + 1}, mean', np.mean([rate for _, rate, _ in blocks]), mean),
                 *blocks]
        rows += [cells[i:i + columns] for i in range(0, len(cells), columns)]
    width = max(map(len, rows))
    height = 1.8 * min(max(size[0] / size[1], 0.25), 4)  # strips get a picture too
    figure = Figure(figsize=(1.6 * width, height * len(rows)), dpi=100, layout='constrained')
    for axes, cells in zip(figure.subplots(len(rows), width, squeeze=False), rows):
        for axis in axes:
            axis.set_axis_off()
        for axis, (name, rate, shown) in zip(axes, cells):
            axis.imshow(shown)
            axis.set_title(f'{name}: {rate:.2f}', fontsize=7)
    figure.savefig(path)


def plot_block_rates(path, names, rates):
    """Plot how much every block computed over a set: the mean, and the middle 80 % of images.

    Args:
        path (str | Path): PNG file to write.
        names (Sequence[str]): Blocks that decide.
        rates (np.ndarray): (blocks, images), shares of units computed.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(max(6.0, 0.28 * len(names)), 3.6), dpi=100, layout='constrained')
    axis, places = figure.subplots(), np.arange(len(names))
    mean, (low, high) = rates.mean(1), np.percentile(rates, (10, 90), axis=1)
    axis.bar(places, mean, color=COMPUTED)
    axis.errorbar(places, mean, np.clip([mean - low, high - mean], 0, None), fmt='none',
                  ecolor='black', elinewidth=0.8, capsize=2)
    axis.set_xticks(places, names, rotation=90, fontsize=6)
    axis.set(ylabel='share of units computed', ylim=(0, 1.05))
    figure.savefig(path)


def plot_fractions(path, fractions, groups=None):
    """Plot how the FLOPs fraction is spread over a set's images.

    Args:
        path (str | Path): PNG file to write.
        fractions (np.ndarray): (images,), FLOPs fraction of every image.
        groups (dict[str, np.ndarray], optional): The same by class, drawn beside it.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9 if groups else 5, 3.4), dpi=100, layout='constrained')
    axes = figure.subplots(1, 2 if groups else 1, squeeze=False)[0]
    axes[0].hist(fractions, bins=30, color=COMPUTED)
    axes[0].axvline(fractions.mean(), color='black', linewidth=0.8)
    axes[0].set(xlabel='FLOPs fraction of an image', ylabel='images')
    if groups:
        names = sorted(groups, key=lambda name: groups[name].mean())
        axes[1].boxplot([groups[name] for name in names], orientation='horizontal',
                        showfliers=False)
        axes[1].set_yticks(range(1, len(names) + 1), names, fontsize=7)
        axes[1].set(xlabel='FLOPs fraction, by class')
    figure.savefig(path)


def save_record_picture(path, image, record, sample=0):
    """Save the picture that suits what was skipped: overlays, or the units of every block."""
    save = save_overlay_picture if has_overlays(record) else save_activation_picture
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save(path, image, record, sample)
