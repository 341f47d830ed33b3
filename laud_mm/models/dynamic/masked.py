"""Masked executor: dense x mask. Differentiable; computes everything."""
import torch.nn.functional as F

from .decision import expand_patches


def run_masked(block, x, decision):
    """Run a bottleneck block densely and multiply by the decision's masks.

    Args:
        block (LAUDBottleneck): Its modules are used as they are (norms not folded).
        x (Tensor): (N, C, H, W), the block's input.
        decision (Decision): What counts as computed.

    Returns:
        Tensor: (N, C', H', W'), the block's output.
    """
    shape = block.shape

    def norm_relu(y, norm):
        if decision.channels is None:
            return F.relu(norm(y))
        mask = decision.channels.repeat_interleave(shape.channel_granularity, 1)
        mask = mask.to(y.dtype)[:, :, None, None]
        if block.mask_before_norm:
            return F.relu(norm(y * mask))
        return F.relu(norm(y)) * mask

    y = norm_relu(block.conv1(x), block.bn1)
    y = norm_relu(block.conv2(y), block.bn2)
    y = block.bn3(block.conv3(y))
    if decision.patches is not None:
        positions = expand_patches(decision.patches, y.shape[-2:], shape.spatial_granularity)
        y = y * positions.to(y.dtype)[:, None]
    if decision.layer is not None:
        y = y * decision.layer.to(y.dtype)[:, :, None, None]
    identity = x if block.downsample is None else block.downsample(x)
    return F.relu(identity + y)
