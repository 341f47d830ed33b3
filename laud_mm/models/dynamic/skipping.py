"""Skipping executor: computes only what the decision turns on (method, section 4).

The kinds of skipping compose: layer skipping picks samples, channel skipping
slices the weights of samples that share a mask, spatial skipping picks positions.
"""
import torch
import torch.nn.functional as F

from laud_mm import ops

from .decision import expand_patches, halo
from .folding import slice_channels


def run_skipping(block, x, decision):
    """Run a bottleneck block on the active units only.

    Args:
        block (LAUDBottleneck): The block, in evaluation.
        x (Tensor): (N, C, H, W), the block's input. It becomes the output, in
            place, where the block allows it and no gradients are recorded.
        decision (Decision): What to compute.

    Returns:
        Tensor: (N, C', H', W'), channels-last, the block's output.
    """
    shape, folded = block.shape, block.folded()
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
    rows = _patch_residual(x, weights, patches, active, shape)
    if inside is not None:
        rows = rows.index_select(0, inside)
    return ops.scatter_add_relu(out, identity, positions, rows)


def _dense_residual(x, weights, shape):
    """The residual branch on whole maps: (N, C, H, W) to (N, C', H', W')."""
    if weights.width == 0:
        n, (h, w) = len(x), shape.out_size(x.shape[-2:])
        return weights.conv3.bias.expand(n, h, w, -1).permute(0, 3, 1, 2).clone()
    y = F.relu_(_conv(x, weights.conv1, shape.stride1))
    if weights.ones_channel:
        y = torch.cat([y, y.new_ones(len(y), 1, *y.shape[-2:])], 1)
    y = F.relu_(_conv(y, weights.conv2, shape.stride2, shape.dilation, shape.groups))
    return _conv(y, weights.conv3)


def _patch_residual(x, weights, patches, active, shape):
    """The residual branch on patches: rows (P*S*S, C') in the order of `active`."""
    s, mid_size = shape.spatial_granularity, shape.mid_size(x.shape[-2:])
    if weights.width == 0:
        return weights.conv3.bias.expand(len(active) * s * s, -1)
    computed = expand_patches(patches.float(), shape.out_size(x.shape[-2:]), s)
    needed = halo(computed, mid_size, shape.stride2, shape.dilation)
    positions = needed.flatten().nonzero()[:, 0]
    rows = ops.gather_positions(x, positions, shape.stride1)
    rows = F.relu_(F.linear(rows, weights.conv1.weight.flatten(1), weights.conv1.bias))
    if weights.ones_channel:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    windows = ops.gather_windows(rows, positions, active, (len(x), *mid_size), s,
                                 patches.shape[-2:], shape.stride2, shape.dilation)
    y = F.relu_(F.conv2d(windows, weights.conv2.weight, weights.conv2.bias, shape.stride2, 0,
                         shape.dilation, shape.groups))
    y = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
    return F.linear(y, weights.conv3.weight.flatten(1), weights.conv3.bias)


def _conv(x, folded, stride=1, dilation=1, groups=1):
    padding = dilation * (folded.weight.shape[-1] // 2)
    return F.conv2d(x, folded.weight, folded.bias, stride, padding, dilation, groups)


def _add_relu(residual, identity):
    return F.relu_(residual.add_(identity.to(residual.dtype)))
