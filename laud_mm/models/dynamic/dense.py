"""Dense executor: computes everything with library convolutions, then applies the masks.

For inference. It gives what skipping gives, and is faster where too little is off.
"""
import torch
import torch.nn.functional as F

from laud_mm import ops

from .decision import expand_patches


def run_dense(block, x, decision):
    """Run a bottleneck block densely, norms folded.

    Args:
        block (DynamicBottleneck): The block, in evaluation.
        x (Tensor): (N, C, H, W), the block's input.
        decision (Decision): What counts as computed.

    Returns:
        Tensor: (N, C', H', W'), channels-last, the block's output.
    """
    shape, weights = block.shape, block.folded()
    x = x.contiguous(memory_format=torch.channels_last)
    decision = _drop_full_masks(decision)
    channels, positions = decision.channels, None
    if channels is not None:
        channels = channels.bool().repeat_interleave(shape.channel_granularity, 1)
    if decision.patches is not None:
        positions = expand_patches(decision.patches, shape.out_size(x.shape[-2:]),
                                   shape.spatial_granularity).to(x.dtype)

    def conv_relu(y, conv, *args):
        y = F.relu_(_conv(y, conv, *args))
        return y if channels is None else _apply_channels_(y, channels, conv.bias,
                                                           block.mask_before_norm)

    identity = x if weights.shortcut is None else _conv(x, weights.shortcut, shape.stride)
    y = conv_relu(x, weights.conv1, shape.stride1)
    y = conv_relu(y, weights.conv2, shape.stride2, shape.dilation, weights.groups)
    if weights.excitation is not None:
        pooled = positions if block.se_pool == 'computed' else None
        means = ops.position_means(y) if pooled is None else _means(y, pooled)
        y = y * weights.excitation.scales(means).to(y.dtype)[:, :, None, None]
    # Some backends (cuDNN in float64) return another layout.
    y = _conv(y, weights.conv3).contiguous(memory_format=torch.channels_last)
    identity = identity.to(y.dtype)
    on = None if positions is None else positions[:, None]
    if decision.layer is not None:
        layer = decision.layer.to(y.dtype)[:, :, None, None]
        on = layer if on is None else on * layer
    if on is None:
        return F.relu_(y.add_(identity))
    return F.relu_(torch.addcmul(identity, y, on.to(y.dtype), out=y))


def _drop_full_masks(decision):
    """The decision without the masks that are on everywhere, where to look is free."""
    masks = decision.masks()
    if any(mask.is_cuda for mask in masks.values()):
        return decision  # to look would synchronise
    return type(decision)(**{name: mask for name, mask in masks.items() if not mask.all()})


def _apply_channels_(y, channels, bias, leaky):
    """Put into the inactive channels of y, which is rectified, what the masks leave there.

    Args:
        y (Tensor): (N, C, H, W), written to.
        channels (Tensor): (N, C) bool.
        bias (Tensor): (C,), of the folded convolution.
        leaky (bool): Whether masks act before the norm: then the channels hold relu(norm(0)).
    """
    on = channels.to(y.dtype)
    y.mul_(on[:, :, None, None])
    if leaky:
        y.add_(((1 - on) * F.relu(bias).to(y.dtype))[:, :, None, None])
    return y


def _means(y, positions):
    """Means (N, C) of y over positions (N, H, W), 1 where computed; 0 where there are none."""
    wide = torch.promote_types(y.dtype, torch.float32)
    share = positions.to(wide) / positions.sum((1, 2), keepdim=True, dtype=wide).clamp(min=1)
    rows = y.permute(0, 2, 3, 1).flatten(1, 2).to(wide)
    return torch.bmm(share.flatten(1)[:, None], rows)[:, 0]


def _conv(x, folded, stride=1, dilation=1, groups=1):
    padding = dilation * (folded.weight.shape[-1] // 2)
    return F.conv2d(x, folded.weight, folded.bias, stride, padding, dilation, groups)
