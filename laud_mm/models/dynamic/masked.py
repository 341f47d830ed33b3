"""Masked executor: dense x mask. Differentiable; computes everything."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

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
    shortcut, excitation, positions = block.shortcut(), block.excitation(), None
    if decision.patches is not None:
        positions = expand_patches(decision.patches, shape.out_size(x.shape[-2:]),
                                   shape.spatial_granularity)

    def conv_relu(y, layer):
        if decision.channels is None:
            return F.relu(_call(layer, y))
        mask = decision.channels.repeat_interleave(shape.channel_granularity, 1)
        mask = mask.to(y.dtype)[:, :, None, None]
        if not shape.mask_before_norm:
            return F.relu(_call(layer, y)) * mask
        conv, norm = layer
        y = conv(y) * mask
        if isinstance(norm, nn.Identity) and conv.bias is not None:
            # The norm was fused into the convolution: what it makes of zeros is the bias.
            y = y + (1 - mask) * conv.bias[:, None, None]
        return F.relu(norm(y))

    conv1, conv2, conv3 = block.layers()
    y = conv_relu(conv_relu(x, conv1), conv2)
    if excitation is not None:
        y = excitation(y, positions if block.se_pool == 'computed' else None)
    y = _call(conv3, y)
    if positions is not None:
        y = y * positions.to(y.dtype)[:, None]
    if decision.layer is not None:
        y = y * decision.layer.to(y.dtype)[:, :, None, None]
    identity = x if shortcut is None else shortcut(x)
    return F.relu(identity + y)


def _call(layer, y):
    """A convolution and its norm, or the module that holds both."""
    if isinstance(layer, nn.Module):
        return layer(y)
    conv, norm = layer
    return norm(conv(y))
