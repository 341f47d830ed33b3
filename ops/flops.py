"""What the operations multiply, for torch's FLOP counter.

A multiply-add counts as two, as `torch.utils.flop_counter` has it. Counted is what is listed;
where lists hold no values (fake or meta tensors), as if all of it were. Winograd's products
count as those of the convolution that they make.
"""
import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .units import patch_positions


def _values(tensor):
    """A list's values, or None where there are none to read."""
    readable = type(tensor) is torch.Tensor and tensor.device.type != 'meta'
    return tensor if readable else None



def _picked(channel_count, group_size, samples, channels):
    """(N,) channels of each sample."""
    counts = None if channel_count is None else _values(channel_count)
    if counts is None:
        return torch.full((samples,), channels)
    return counts.cpu().long() * group_size


def _per_sample(index, count, size, granularity, samples):
    """(N,) positions of the map inside listed patches."""
    area = size[0] * size[1]
    if _values(index) is None:
        return torch.full((samples,), area)
    flat, inside = patch_positions(index, count, size, granularity)
    return torch.bincount(flat[inside].cpu() // area, minlength=samples)


def conv1x1_positions(x, index, count, weight, bias, stride=1, relu=True, channel_index=None,
                      channel_count=None, group_size=1, packed=None, granularity=1, *_,
                      **kwargs):
    samples, (outputs, inputs) = len(x), weight.shape[:2]
    size = tuple((n - 1) // stride + 1 for n in x.shape[2:])
    positions = torch.full((samples,), size[0] * size[1])
    if index is not None:
        positions = _per_sample(index, count, size, granularity, samples)
    outputs = _picked(channel_count, group_size, samples, outputs)
    return 2 * inputs * int((positions * outputs).sum())


def conv3x3_patches(y, index, count, weight, bias, granularity, stride=1, dilation=1, groups=1,
                    channel_index=None, channel_count=None, group_size=1, packed=None,
                    winograd=False, *_, **kwargs):
    samples, (outputs, inputs) = len(y), weight.shape[:2]
    size = tuple((n - 1) // stride + 1 for n in y.shape[-2:])
    positions = _per_sample(index, count, size, granularity, samples)
    if channel_count is not None:
        picked = _picked(channel_count, group_size, samples, outputs)
        if groups > 1:  # an output reads the active inputs of its own convolution group
            if _values(channel_count) is None:
                return 2 * 9 * int(positions.sum()) * inputs * outputs
            on = [index[:int(count)].cpu().long() * group_size
                  for index, count in zip(channel_index, channel_count)]
            pairs = torch.stack([torch.bincount(
                (first[:, None] + torch.arange(group_size)).flatten() // inputs,
                minlength=groups).square().sum() for first in on])
            return 2 * 9 * int((positions * pairs).sum())
        return 2 * 9 * int((positions * picked * picked).sum())
    return 2 * 9 * int(positions.sum()) * inputs * outputs


def conv1x1_add_patches_(out, identity, rows, index, count, weight, bias, granularity,
                         channel_index=None, channel_count=None, group_size=1, packed=None,
                         *_, **kwargs):
    samples, (outputs, inputs) = len(out), weight.shape[:2]
    positions = _per_sample(index, count, out.shape[-2:], granularity, samples)
    inputs = _picked(channel_count, group_size, samples, inputs)
    return 2 * outputs * int((positions * inputs).sum())


def patchify(x, weight, bias, *_, **kwargs):
    side = weight.shape[2]
    return 2 * len(x) * (x.shape[2] // side) * (x.shape[3] // side) * weight.numel()


def depthwise_norm_patches(x, index, count, taps, bias, granularity, *_, **kwargs):
    positions = _per_sample(index, count, x.shape[-2:], granularity, len(x))
    return 2 * int(positions.sum()) * taps.numel()


def mlp_add_patches_(out, identity, rows, index, count, weight1, bias1, weight2, bias2,
                     granularity, *_, **kwargs):
    positions = _per_sample(index, count, out.shape[-2:], granularity, len(out))
    return 2 * int(positions.sum()) * (weight1.numel() + weight2.numel())


def excite_patches_(rows, index, count, height, width, granularity, weight1, bias1, weight2,
                    bias2, *_, **kwargs):
    grid = -(-height // granularity) * -(-width // granularity)
    samples = -(-len(index) // grid)
    if _values(index) is not None:
        samples = len((index[:int(count)] // grid).unique())
    return 4 * samples * weight1.numel()


def patch_mask(x, weight, bias, window, *_, **kwargs):
    return 2 * len(x) * -(-x.shape[2] // window) * -(-x.shape[3] // window) * x.shape[1]


def masker_conv1x1(x, weight, bias, mask_weight, mask_bias, window, packed=None, *_, **kwargs):
    return (conv1x1_positions(x, None, None, weight, bias)
            + patch_mask(x, mask_weight, mask_bias, window))


def conv1x1_shortcut(x, active, weight, bias, stride, granularity, *_, **kwargs):
    return conv1x1_positions(x, None, None, weight, bias, stride)


def conv1x1_positions_int8(x, index, count, weight, bias, multiplier, stride=1, packed=None,
                           *_, **kwargs):
    return conv1x1_positions(x, index, count, weight, bias, stride)


def shortcut_int8(x, weight, bias, multiplier, stride=1, packed=None, *_, **kwargs):
    return conv1x1_positions(x, None, None, weight, bias, stride)


def conv3x3_patches_int8(y, index, count, weight, bias, multiplier, granularity, stride=1,
                         dilation=1, packed=None, *_, **kwargs):
    return conv3x3_patches(y, index, count, weight, bias, granularity, stride, dilation)


def conv1x1_add_patches_int8_(out, identity, rows, index, count, weight, bias, multiplier,
                              granularity, packed=None, *_, **kwargs):
    return conv1x1_add_patches_(out, identity, rows, index, count, weight, bias, granularity)


def patch_mask_int8(x, weight, bias, window, *_, **kwargs):
    return patch_mask(x, weight, bias, window)


def conv_map(x, weight, bias, stride=1, dilation=1, groups=1, *_, **kwargs):
    area = ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
    return 2 * x.shape[0] * area * weight.numel()


def stem_conv(x, weight, bias, stride, pool, packed=None, *_, **kwargs):
    return conv_map(x, weight, bias, stride)


def stem_int8(x, weight, bias, multiplier, scale, zero, stride, pool, packed=None, *_, **kwargs):
    return conv_map(x, weight, bias, stride)


FORMULAS = {f.__name__: f for f in (
    conv_map, stem_conv, conv1x1_positions, conv1x1_shortcut, conv3x3_patches,
    conv1x1_add_patches_, patchify, depthwise_norm_patches, mlp_add_patches_, excite_patches_,
    patch_mask, masker_conv1x1, conv1x1_positions_int8, shortcut_int8, conv3x3_patches_int8,
    conv1x1_add_patches_int8_, patch_mask_int8, stem_int8)}


def register():
    """Enter the formulas into torch's table; twice does no harm."""
    for name, formula in FORMULAS.items():
        target = getattr(torch.ops.laud_mm, name)
        if target not in flop_registry:
            register_flop_formula(target, get_raw=True)(formula)
