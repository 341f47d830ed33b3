"""Convolutions of 8-bit integers that compute only what is listed, for quantised networks.

Maps are uint8 and channels-last; 0 stands for 0 and a scale goes with every map. Weights are
int8, with a scale for each output. Sums are exact, in 32 bits. A `multiplier` below 1 for each
output takes them to the scale of the result: weight scale x input scale / output scale. The
result is rounded to even, cut to 16 bits, added to, and cut to 0 to 255, which is ReLU as well.
Every kernel gives the same integers as these references. Lists are as in `patch_conv.py`.
"""
import torch
import torch.nn.functional as F

from .library import op
from .maskers import _fake_mask
from .patch_conv import _fake_patches, _rows, _strided, conv1x1_positions, conv3x3_patches
from .units import patch_grid, patch_positions

_PANEL, _HEAD, _TILE = 64, 512, 64  # as `Int8Layout` in int8_gemm.h counts


def _fake_pack(weight, bias, multiplier):
    quads = -(-weight.shape[1] // 4)
    panel = _HEAD + weight.shape[2] * weight.shape[3] * quads * 4 * _PANEL
    return weight.new_empty(-(-weight.shape[0] // _PANEL) * panel)


@op('(Tensor weight, Tensor bias, Tensor multiplier) -> Tensor', fake=_fake_pack)
def pack_int8(weight, bias, multiplier):
    """Lay out a quantised convolution for the kernels of CPUs.

    Args:
        weight (Tensor): (out, in, k, k) int8.
        bias (Tensor): (out,) int32, in units of weight scale x input scale.
        multiplier (Tensor): (out,) float32, from 0 to below 1.

    Returns:
        Tensor: Opaque, int8.
    """
    return weight.new_zeros(_fake_pack(weight, bias, multiplier).shape)


def _scaled(sums, multiplier):
    """Exact sums (float64) to the scale of the result, as integers of 16 bits in float32."""
    return (sums.float() * multiplier).round().clamp(-2**15, 2**15 - 1)


def _bytes(values):
    return values.clamp(0, 255).to(torch.uint8)


def _channels_last(x, channels, stride, dtype=torch.uint8):
    return torch.empty((x.shape[0], channels, *_strided(x.shape[-2:], stride)), dtype=dtype,
                       device=x.device, memory_format=torch.channels_last)


def _fake_positions(x, index, count, weight, bias, multiplier, stride=1, packed=None):
    return _channels_last(x, len(weight), stride)


@op('(Tensor x, Tensor? index, Tensor? count, Tensor weight, Tensor bias, Tensor multiplier, '
    'int stride=1, Tensor? packed=None) -> Tensor', fake=_fake_positions)
def conv1x1_positions_int8(x, index, count, weight, bias, multiplier, stride=1, packed=None):
    """A quantised 1x1 convolution and ReLU at listed output positions.

    Args:
        x (Tensor): (N, C, H, W) uint8, channels-last.
        index (Tensor | None): See `conv1x1_positions`.
        count (Tensor | None): Likewise.
        weight (Tensor): (C', C, 1, 1) int8.
        bias (Tensor): (C',) int32.
        multiplier (Tensor): (C',) float32.
        stride (int): Of the convolution.
        packed (Tensor | None): Of `pack_int8`.

    Returns:
        Tensor: (N, C', H', W') uint8, channels-last; positions that are not listed are
        unspecified.
    """
    sums = conv1x1_positions.reference(x.double(), index, count, weight.double(), bias.double(),
                                       stride, False)
    return _bytes(_scaled(sums, multiplier[:, None, None]))


def _fake_shortcut(x, weight, bias, multiplier, stride=1, packed=None):
    return (_channels_last(x, len(weight), stride, torch.int16),
            _channels_last(x, len(weight), stride))


@op('(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, int stride=1, '
    'Tensor? packed=None) -> (Tensor, Tensor)', fake=_fake_shortcut)
def shortcut_int8(x, weight, bias, multiplier, stride=1, packed=None):
    """A quantised 1x1 convolution before and after ReLU, in one scale.

    Args:
        x (Tensor): (N, C, H, W) uint8, channels-last.
        weight (Tensor): (C', C, 1, 1) int8.
        bias (Tensor): (C',) int32.
        multiplier (Tensor): (C',) float32.
        stride (int): Of the convolution.
        packed (Tensor | None): Of `pack_int8`.

    Returns:
        tuple[Tensor, Tensor]: (N, C', H', W') int16 and uint8, channels-last.
    """
    sums = conv1x1_positions.reference(x.double(), None, None, weight.double(), bias.double(),
                                       stride, False)
    wide = _scaled(sums, multiplier[:, None, None])
    return wide.to(torch.int16), _bytes(wide)


def _fake_patches_int8(y, index, count, weight, bias, multiplier, granularity, stride=1,
                       dilation=1, packed=None):
    return _fake_patches(y, index, count, weight, bias, granularity, stride)


@op('(Tensor y, Tensor index, Tensor count, Tensor weight, Tensor bias, Tensor multiplier, '
    'int granularity, int stride=1, int dilation=1, Tensor? packed=None) -> Tensor',
    fake=_fake_patches_int8)
def conv3x3_patches_int8(y, index, count, weight, bias, multiplier, granularity, stride=1,
                         dilation=1, packed=None):
    """Gather, quantised 3x3 convolution (padded by its dilation) and ReLU on listed patches.

    Args:
        y (Tensor): (N, C, H, W) uint8, channels-last.
        index (Tensor): Of `active_patches` on the output map's grid.
        count (Tensor): Of `active_patches`.
        weight (Tensor): (C', C, 3, 3) int8.
        bias (Tensor): (C',) int32.
        multiplier (Tensor): (C',) float32.
        granularity (int): S.
        stride (int): Of the convolution.
        dilation (int): Of the convolution, and its padding.
        packed (Tensor | None): Of `pack_int8`.

    Returns:
        Tensor: (len(index), S * S, C') uint8; see `conv3x3_patches`.
    """
    # It rectifies, which changes nothing of what is cut to 0 to 255.
    sums = conv3x3_patches.reference(y.double(), index, count, weight.double(), bias.double(),
                                     granularity, stride, dilation)
    return _bytes(_scaled(sums, multiplier))


@op('(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, Tensor count, Tensor weight, '
    'Tensor bias, Tensor multiplier, int granularity, Tensor? packed=None) -> ()')
def conv1x1_add_patches_int8_(out, identity, rows, index, count, weight, bias, multiplier,
                              granularity, packed=None):
    """Quantised 1x1 convolution, scatter, add and ReLU on patches, all in the scale of `out`.

    Args:
        out (Tensor): (N, C', H, W) uint8, channels-last; may be `identity` itself.
        identity (Tensor): (N, C', H, W) uint8 or int16, channels-last.
        rows (Tensor): (len(index), S * S, C) uint8, of `conv3x3_patches_int8`.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        weight (Tensor): (C', C, 1, 1) int8.
        bias (Tensor): (C',) int32.
        multiplier (Tensor): (C',) float32.
        granularity (int): S.
        packed (Tensor | None): Of `pack_int8`.

    Returns:
        Tensor: What was written to.
    """
    flat, inside = patch_positions(index, count, out.shape[-2:], granularity)
    values, flat = rows[:len(flat)][inside], flat[inside]
    sums = F.linear(values.double(), weight.flatten(1).double(), bias.double())
    values = _bytes(_scaled(sums, multiplier) + _rows(identity)[flat])
    out.permute(0, 2, 3, 1).view(-1, out.shape[1]).index_copy_(0, flat, values)


@op('(Tensor x, Tensor weight, Tensor bias, int window) -> Tensor', fake=_fake_mask)
def patch_mask_int8(x, weight, bias, window):
    """Decide on patches of a quantised map, in float: see `patch_mask`.

    Args:
        x (Tensor): (N, C, H, W) uint8, channels-last.
        weight (Tensor): (C,), of logit_on - logit_off, times the scale of x.
        bias (Tensor): (1,), of logit_on - logit_off.
        window (int): Side of a pooling window.

    Returns:
        Tensor: (N, ceil(H / window), ceil(W / window)) bool.
    """
    height, width = (min(window, n) for n in x.shape[-2:])
    rows, columns = patch_grid(x.shape[-2:], window)
    # Windows at the edges are partial: zeros are added, and divided by what is there.
    after = columns * width - x.shape[3], rows * height - x.shape[2]
    padded = F.pad(x.double(), (0, after[0], 0, after[1]))
    sums = padded.unflatten(2, (rows, height)).unflatten(4, (columns, width)).sum((3, 5))
    sizes = [torch.full((n,), float(side), dtype=torch.float64, device=x.device)
             for n, side in ((rows, height), (columns, width))]
    for size, rest in zip(sizes, (after[1], after[0])):
        size[-1] -= rest
    logits = torch.einsum('nchw,c->nhw', sums, weight.double()) / (sizes[0][:, None] * sizes[1])
    return ~(logits + bias.double() < 0)  # NaN is on


@op('(Tensor x, float scale) -> Tensor',
    fake=lambda x, scale: torch.empty_like(x, dtype=torch.uint8))
def quantize(x, scale):
    """Quantise rectified values.

    Args:
        x (Tensor): Any shape, floating, without gaps in memory.
        scale (float): What 1 stands for.

    Returns:
        Tensor: uint8, laid out as x: x / scale rounded to even, 0 for what is negative or NaN,
        255 for what is larger.
    """
    return _bytes((x.float() * (1 / scale)).nan_to_num(nan=0.0, posinf=255.0).round())


@op('(Tensor x, float scale) -> Tensor',
    fake=lambda x, scale: torch.empty_like(x, dtype=torch.float32))
def dequantize(x, scale):
    """What quantised values stand for.

    Args:
        x (Tensor): Any shape, uint8, without gaps in memory.
        scale (float): What 1 stands for.

    Returns:
        Tensor: float32, laid out as x.
    """
    return x.float() * scale


def pack_stem_int8(weight, bias, multiplier):
    """Lay out a quantised convolution (out, C, k, k) for `stem_int8`: opaque."""
    # Windows are rows of k * k * C inputs, padded to whole tiles.
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % _TILE))
    return pack_int8(rows[:, :, None, None].contiguous(), bias, multiplier)


def _fake_stem(x, weight, bias, multiplier, scale, zero, stride, pool, packed=None):
    size = _strided(x.shape[-2:], stride)
    height, width = _strided(size, 2) if pool else size
    return x.new_empty(x.shape[0], height, width, len(weight), dtype=torch.uint8).permute(
        0, 3, 1, 2)


@op('(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, float scale, int zero, int stride, '
    'bool pool, Tensor? packed=None) -> Tensor', fake=_fake_stem)
def stem_int8(x, weight, bias, multiplier, scale, zero, stride, pool, packed=None):
    """Quantise images; a quantised convolution padded by half its window, ReLU, and a max pool.

    Args:
        x (Tensor): (N, C, H, W) images, floating, in any memory format.
        weight (Tensor): (C', C, k, k) int8, k odd.
        bias (Tensor): (C',) int32; the sum of an output's weights times `zero` is in it already.
        multiplier (Tensor): (C',) float32.
        scale (float): What 1 stands for in quantised images.
        zero (int): What stands for 0 in them, from 0 to 255.
        stride (int): Of the convolution.
        pool (bool): Whether to pool, 3x3 with a stride of 2.
        packed (Tensor | None): Of `pack_stem_int8`.

    Returns:
        Tensor: (N, C', H', W') uint8, channels-last.
    """
    images = (x.float() * (1 / scale)).nan_to_num(nan=-float('inf')).clamp(-zero, 255 - zero)
    # What is beyond the border stands for 0.
    sums = F.conv2d(images.round().double(), weight.double(), None, stride, weight.shape[2] // 2)
    offset = bias.double() + weight.double().sum((1, 2, 3)) * zero
    y = _bytes(_scaled(sums + offset[:, None, None], multiplier[:, None, None]))
    y = F.max_pool2d(y.float(), 3, 2, 1).to(torch.uint8) if pool else y
    return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
