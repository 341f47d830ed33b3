"""Squeeze-and-excitation on listed patches."""
import torch
import torch.nn.functional as F

from .channels import channel_mask, from_compact, to_compact
from .library import op
from .units import patch_positions


@op('(Tensor(a!) rows, Tensor index, Tensor count, SymInt height, SymInt width, int granularity, '
    'Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? channel_index=None, '
    'Tensor? channel_count=None, int group_size=1) -> ()')
def excite_patches_(rows, index, count, height, width, granularity, weight1, bias1, weight2,
                    bias2, channel_index=None, channel_count=None, group_size=1):
    """Scale rows by what the means over their sample's computed positions say.

    scale = sigmoid(weight2 relu(weight1 mean + bias1) + bias2). Where gradients are
    recorded a copy is written instead of `rows`.

    Args:
        rows (Tensor): (len(index), S * S, C), of `conv3x3_patches`.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        height (int): Of the output map.
        width (int): Of the output map.
        granularity (int): S.
        weight1 (Tensor): (hidden, C).
        bias1 (Tensor): (hidden,).
        weight2 (Tensor): (C, hidden).
        bias2 (Tensor): (C,).
        channel_index (Tensor | None): (N, C / G) int32: channels that `rows` hold. The means
            of the others are 0.
        channel_count (Tensor | None): (N,) int32.
        group_size (int): G.

    Returns:
        Tensor: What was written to.
    """
    flat, inside = patch_positions(index, count, (height, width), granularity)
    if not len(flat):
        return
    samples = flat[:, 0] // (height * width)
    _, which = samples.unique_consecutive(return_inverse=True)
    wide = torch.promote_types(rows.dtype, torch.float32)
    active = rows[:len(flat)].clone()
    if channel_index is not None:
        mask = channel_mask(channel_index, channel_count, group_size)
        owners = samples.repeat_interleave(active.shape[1])
        active = from_compact(active.flatten(0, 1), owners, mask).view_as(active)
    sums = torch.where(inside[:, :, None], active.to(wide), 0).sum(1)
    total = torch.zeros(int(which[-1]) + 1, rows.shape[2], dtype=wide, device=rows.device)
    area = torch.zeros(len(total), dtype=wide, device=rows.device)
    area = area.index_add(0, which, inside.sum(1).to(wide))
    means = total.index_add(0, which, sums) / area[:, None]
    hidden = F.relu(F.linear(means, weight1.to(wide), bias1.to(wide)))
    scales = torch.sigmoid(F.linear(hidden, weight2.to(wide), bias2.to(wide)))
    scaled = active * scales.index_select(0, which)[:, None].to(rows.dtype)
    if channel_index is not None:
        scaled = to_compact(scaled.flatten(0, 1), owners, mask).view_as(scaled)
    rows[:len(flat)] = scaled
