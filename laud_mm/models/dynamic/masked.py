"""Masked executor: dense x mask. Differentiable; computes everything."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .decision import Decision, expand_patches


def run_masked(block: Any, x: Tensor, decision: Decision) -> Tensor:
    """Run a bottleneck block densely and multiply by the decision's masks.

    Args:
        block (DynamicBottleneck): Its modules are used as they are (norms not folded).
        x (Tensor): (N, C, H, W), the block's input.
        decision (Decision): What counts as computed.

    Returns:
        Tensor: (N, C', H', W'), the block's output.
    """
    shape = block.shape
    (conv1, norm1), (conv2, norm2), (conv3, norm3) = block.layers()
    shortcut, excitation, positions = block.shortcut(), block.excitation(), None
    if decision.patches is not None:
        positions = expand_patches(decision.patches, shape.out_size(x.shape[-2:]),
                                   shape.spatial_granularity)

    def norm_relu(y, norm):
        if decision.channels is None:
            return F.relu(norm(y))
        mask = decision.channels.repeat_interleave(shape.channel_granularity, 1)
        mask = mask.to(y.dtype)[:, :, None, None]
        if shape.mask_before_norm:
            return F.relu(norm(y * mask))
        return F.relu(norm(y)) * mask

    y = norm_relu(conv1(x), norm1)
    y = norm_relu(conv2(y), norm2)
    if excitation is not None:
        y = excitation(y, positions if block.se_pool == 'computed' else None)
    y = norm3(conv3(y))
    if positions is not None:
        y = y * positions.to(y.dtype)[:, None]
    if decision.layer is not None:
        y = y * decision.layer.to(y.dtype)[:, :, None, None]
    identity = x if shortcut is None else shortcut(x)
    return F.relu(identity + y)
