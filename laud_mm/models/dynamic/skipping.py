"""Skipping executor: computes only what the decision turns on (method, section 4).

The kinds of skipping compose: layer skipping picks samples, channel skipping
slices the weights of samples that share a mask, spatial skipping picks positions.
"""
import torch
import torch.nn.functional as F

from laud_mm import ops

from .decision import expand_patches, halo
from .maskers import global_mean
from .slicing import slice_channels


def run_skipping(block, x, decision):
    """Run a bottleneck block on the active units only.

    Args:
        block (DynamicBottleneck): The block, in evaluation.
        x (Tensor): (N, C, H, W), the block's input. It becomes the output, in
            place, where the block allows it and no gradients are recorded.
        decision (Decision): What to compute.

    Returns:
        Tensor: (N, C', H', W'), channels-last, the block's output.

    Raises:
        RuntimeError: If the block cannot skip what the decision says, exactly.
    """
    shape, folded = block.shape, block.folded()
    if block.se_pool == 'dense' and decision.patches is not None:
        raise RuntimeError("se_pool='dense' reads positions that spatial skipping does not "
                           "compute: use execution='masked'")
    x = x.contiguous(memory_format=torch.channels_last)
    identity = x
    if folded.shortcut is not None:
        identity = _conv(x, folded.shortcut, shape.stride)
        # Some backends (cuDNN in float64) return another layout.
        identity = identity.contiguous(memory_format=torch.channels_last)
    parts = _split(decision, folded, len(x), block.mask_before_norm)
    if decision.patches is None and len(parts) == 1 and parts[0][0] is None:
        return _add_relu(_dense_residual(x, parts[0][1], shape), identity)

    # Where nothing is computed the output is relu(shortcut). The input of an
    # identity block comes out of a ReLU, so it is that already; a convolved
    # shortcut is ours to write into, and rectified at the end.
    rectified = identity is x
    in_place = not rectified or (block.owns_input and not torch.is_grad_enabled())
    out = identity if in_place else identity.clone()
    for samples, weights in parts:
        if decision.patches is None:
            out = _run_samples(x, identity, out, samples, weights, shape)
        else:
            out = _run_patches(x, identity, out, samples, weights, decision.patches, shape)
    return out if rectified else F.relu_(out)


def _split(decision, folded, batch_size, leaky):
    """Parts of the batch that share their weights: [(sample indices or None for all, weights)]."""
    samples = None
    if decision.layer is not None:
        samples = decision.layer[:, 0].nonzero()[:, 0]
        if len(samples) == batch_size:
            samples = None
        elif len(samples) == 0:
            return []
    if decision.channels is None:
        return [(samples, folded)]

    masks = decision.channels if samples is None else decision.channels[samples]
    masks, which = masks.bool().unique(dim=0, return_inverse=True)
    group_size = folded.width // masks.shape[1]
    parts = []
    for i, mask in enumerate(masks):
        members = None if len(masks) == 1 else (which == i).nonzero()[:, 0]
        if samples is not None:
            members = samples if members is None else samples[members]
        on = mask.repeat_interleave(group_size)
        parts.append((members, folded if mask.all() else slice_channels(folded, on, leaky)))
    return parts


def _run_samples(x, identity, out, samples, weights, shape):
    """Compute whole samples."""
    if samples is None:
        return _add_relu(_dense_residual(x, weights, shape), identity)
    residual = _dense_residual(ops.gather_samples(x, samples), weights, shape)
    return ops.add_relu_samples(out, identity, samples, residual)


def _run_patches(x, identity, out, samples, weights, patches, shape):
    """Compute the active patches of some samples."""
    if samples is not None:
        keep = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        keep[samples] = True
        patches = patches.bool() & keep[:, None, None]
    active = ops.active_patches(patches)
    if len(active) == 0:
        return out
    positions, inside = ops.patch_positions(active, identity.shape[-2:], shape.spatial_granularity)
    if weights.width == 0:
        rows = weights.conv3.bias.expand(len(positions), -1)
    else:
        rows = _patch_features(x, weights, patches, active, shape)
        if inside is not None:
            rows = rows.index_select(0, inside)
        if weights.excitation is not None:
            area = identity.shape[-2] * identity.shape[-1]
            rows = _excite_rows(rows, weights.excitation, positions // area)
        rows = _linear(rows, weights.conv3)
    return ops.scatter_add_relu(out, identity, positions, rows)


def _dense_residual(x, weights, shape):
    """The residual branch on whole maps: (N, C, H, W) to (N, C', H', W')."""
    if weights.width == 0:
        n, (h, w) = len(x), shape.out_size(x.shape[-2:])
        return weights.conv3.bias.expand(n, h, w, -1).permute(0, 3, 1, 2).clone()
    y = F.relu_(_conv(x, weights.conv1, shape.stride1))
    y = _conv(_spread(y, weights), weights.conv2, shape.stride2, shape.dilation, weights.groups)
    y = F.relu_(_keep(y, weights))
    if weights.excitation is not None:
        y = _scale(y, weights.excitation.scales(global_mean(y))[:, :, None, None])
    return _conv(y, weights.conv3)


def _patch_features(x, weights, patches, active, shape):
    """conv1 and conv2 on patches: rows (P*S*S, width) in the order of `active`."""
    s, mid_size = shape.spatial_granularity, shape.mid_size(x.shape[-2:])
    computed = expand_patches(patches.float(), shape.out_size(x.shape[-2:]), s)
    needed = halo(computed, mid_size, shape.stride2, shape.dilation)
    positions = needed.flatten().nonzero()[:, 0]
    rows = ops.gather_positions(x, positions, shape.stride1)
    rows = _spread(F.relu_(_linear(rows, weights.conv1)), weights)
    windows = ops.gather_windows(rows, positions, active, (len(x), *mid_size), s,
                                 patches.shape[-2:], shape.stride2, shape.dilation)
    y = F.conv2d(windows, weights.conv2.weight, weights.conv2.bias, shape.stride2, 0,
                 shape.dilation, weights.groups)
    rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
    return F.relu_(_keep(rows, weights))


def _excite_rows(rows, excitation, samples):
    """Scale rows (R, C) by the means over their sample's rows; `samples` (R,) are sorted."""
    _, which, count = samples.unique_consecutive(return_inverse=True, return_counts=True)
    wide = torch.promote_types(rows.dtype, torch.float32)
    sums = torch.zeros(len(count), rows.shape[1], dtype=wide, device=rows.device)
    means = sums.index_add(0, which, rows.to(wide)) / count[:, None]
    return _scale(rows, excitation.scales(means).index_select(0, which))


def _spread(y, weights):
    """Lay out what conv1 wrote, rows (R, C) or a map (N, C, H, W), as conv2 reads it."""
    if weights.ones_channel:
        return torch.cat([y, y.new_ones(len(y), 1, *y.shape[2:])], 1)
    return y if weights.spread is None else _pick(y, weights.spread)


def _keep(y, weights):
    """Keep what conv3 reads of what conv2 wrote, rows or a map."""
    return y if weights.kept is None else _pick(y, weights.kept)


def _pick(y, channels):
    # Channels last, so that the result is too.
    return y.movedim(1, -1).index_select(-1, channels).movedim(-1, 1)


def _scale(y, scales):
    scales = scales.to(y.dtype)
    return y * scales if torch.is_grad_enabled() else y.mul_(scales)


def _linear(rows, folded):
    """A 1x1 convolution on rows (R, C)."""
    return F.linear(rows, folded.weight.flatten(1), folded.bias)


def _conv(x, folded, stride=1, dilation=1, groups=1):
    padding = dilation * (folded.weight.shape[-1] // 2)
    return F.conv2d(x, folded.weight, folded.bias, stride, padding, dilation, groups)


def _add_relu(residual, identity):
    return F.relu_(residual.add_(identity.to(residual.dtype)))
