"""Skipping executor: computes only what the decision turns on (method, section 4).

All kinds of skipping are one: a block computes listed patches (a sample that layer
skipping keeps is a patch as large as the map), on each sample's own channels.
"""
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm import ops

from .dense import run_dense
from .slicing import slice_channels


@dataclass(frozen=True)
class Units:
    """What a block computes, listed.

    Attributes:
        index (Tensor): int32, active patches, see `ops.active_patches`.
        count (Tensor): (1,) int32.
        granularity (int): S; at least the map's size for whole samples.
        channels (dict[str, Tensor | int]): Arguments of the operations that pick
            channels per sample; empty where all are computed.
        everything (bool): Whether every patch is listed.
    """
    index: Tensor
    count: Tensor
    granularity: int
    channels: Optional[dict]
    everything: bool


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
    if decision.is_static:  # what skipping is compared with: library convolutions
        return run_dense(block, x, decision)
    identity = x
    if folded.shortcut is not None:
        shortcut = folded.shortcut
        identity = ops.conv1x1_positions(x, None, None, shortcut.weight, shortcut.bias,
                                         shape.stride, False, packed=shortcut.packed)
    # Where nothing is computed the output is relu(shortcut). The input of an
    # identity block comes out of a ReLU, so it is that already; a convolved
    # shortcut is ours to write into, and rectified at the end.
    rectified = identity is x
    in_place = not rectified or (block.owns_input and not torch.is_grad_enabled())
    out = identity if in_place else identity.clone()
    for samples, units, weights in _parts(decision, folded, shape, x, block.mask_before_norm):
        if samples is None:
            out = _run_units(x, identity, out, units, weights, shape)
        else:
            own = [_take(t, samples) for t in (x, identity, out)]
            out = _put(out, samples, _run_units(*own, units, weights, shape))
    if rectified:
        return out
    return F.relu(out) if torch.is_grad_enabled() else F.relu_(out)


def _parts(decision, folded, shape, x, leaky):
    """What to compute, in parts that share weights: their samples (None: all), units, weights."""
    size = shape.out_size(x.shape[-2:])
    patches, granularity = decision.patches, shape.spatial_granularity
    everything = patches is None and decision.layer is None
    if patches is None:
        patches, granularity = x.new_ones(len(x), 1, 1, dtype=torch.bool), max(size)
    if decision.layer is not None:
        patches = patches.bool() & decision.layer.bool()[:, :, None]
    masks = decision.channels
    kernels_pick = (folded.groups == 1 and folded.excitation is None and not leaky
                    and ops.has_kernel(x.device))
    if masks is None or kernels_pick:
        channels = {}
        if masks is not None:
            index, count = ops.compact(masks.bool())
            channels = dict(channel_index=index, channel_count=count,
                            group_size=shape.channel_granularity)
        units = Units(*ops.active_patches(patches), granularity, channels, everything)
        return [(None, units, folded)]

    # Only kernels pick channels, and of plain convolutions without excitation only:
    # here weights are sliced for every mask that occurs.
    masks, which = masks.bool().unique(dim=0, return_inverse=True)
    parts = []
    for i, mask in enumerate(masks):
        on = mask.repeat_interleave(shape.channel_granularity)
        samples = None if len(masks) == 1 else (which == i).nonzero()[:, 0]
        own = patches if samples is None else patches[samples]
        units = Units(*ops.active_patches(own.bool()), granularity, {}, everything)
        parts.append((samples, units, folded if mask.all() else
                      slice_channels(folded, on, leaky)))
    return parts


def _take(maps, samples):
    """Some samples of channels-last maps: a view where it is one."""
    if len(samples) == 1:
        return maps.narrow(0, int(samples), 1)
    return maps.movedim(1, -1).index_select(0, samples).movedim(-1, 1)


def _put(maps, samples, part):
    """Write samples back that `_take` took; in place where no gradients are recorded."""
    if torch.is_grad_enabled():
        return maps.index_copy(0, samples, part)
    if len(samples) > 1:  # else it is a view, and written already
        maps.index_copy_(0, samples, part)
    return maps


def _run_units(x, identity, out, units, weights, shape):
    """Compute the listed units of a block and add them to `out`."""
    size, s = identity.shape[-2:], units.granularity
    if weights.width:
        rows = _features(x, units, weights, shape)
        if weights.excitation is not None:
            rows = ops.excite_patches_(rows, units.index, units.count, *size, s,
                                       *weights.excitation.weights)
    else:
        area = min(s, size[0]) * min(s, size[1])
        rows = x.new_empty(len(units.index), area, 0)
    conv = weights.conv3
    return ops.conv1x1_add_patches_(out, identity, rows, units.index, units.count, conv.weight,
                                    conv.bias, s, packed=conv.packed, **units.channels)


def _features(x, units, weights, shape):
    """The first two convolutions: rows (patches, S * S, width)."""
    picks = bool(units.channels)
    positions = None, None
    if not units.everything:
        positions = ops.halo_positions(
            units.index, units.count, len(x), *shape.mid_size(x.shape[-2:]), units.granularity,
            shape.stride2, shape.dilation)
    conv = weights.conv1
    y = ops.conv1x1_positions(x, *positions, conv.weight, conv.bias, shape.stride1, True,
                              packed=conv.sliceable if picks else conv.packed, **units.channels)
    conv = weights.conv2
    winograd = not picks and shape.tiles_pay(units.granularity)
    if winograd:
        packed = conv.packed_winograd
    else:
        packed = conv.sliceable if picks else conv.packed
    rows = ops.conv3x3_patches(
        _spread(y, weights), units.index, units.count, conv.weight, conv.bias, units.granularity,
        shape.stride2, shape.dilation, weights.groups, packed=packed,
        winograd=winograd and packed is not None, **units.channels)
    return rows if weights.kept is None else rows.index_select(2, weights.kept)


def _spread(y, weights):
    """Lay out the map (N, C, H, W) that conv1 wrote as conv2 reads it."""
    if weights.ones_channel:
        y = torch.cat([y, y.new_ones(len(y), 1, *y.shape[2:])], 1)
    elif weights.spread is not None:
        # Channels last, so that the result is too.
        y = y.movedim(1, -1).index_select(-1, weights.spread).movedim(-1, 1)
    return y.contiguous(memory_format=torch.channels_last)
