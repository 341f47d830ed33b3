"""What a ConvNeXt computes: listed patches of its blocks' branch, and downsampling.

Layout as in `patch_conv`. Maps are channels-last, lists come from `laud_mm.ops.units`.
"""
import torch
import torch.nn.functional as F

from .library import op
from .patch_conv import _rows, _windows, pack_conv
from .units import patch_extent, patch_positions


def _fake_patchify(x, weight, bias, packed=None):
    height, width = (n // weight.shape[2] for n in x.shape[-2:])
    return torch.empty((x.shape[0], len(weight), height, width), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


@op('(Tensor x, Tensor weight, Tensor bias, Tensor? packed=None) -> Tensor', fake=_fake_patchify)
def patchify(x, weight, bias, packed=None):
    """A convolution on windows side by side; lines that fill no window are not read.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        weight (Tensor): (C', C, k, k).
        bias (Tensor): (C',).
        packed (Tensor | None): Of `pack_patchify`.

    Returns:
        Tensor: (N, C', H // k, W // k), channels-last.
    """
    like = x.dtype
    if x.device.type == 'cpu' and like in (torch.float16, torch.bfloat16):
        x, weight, bias = x.float(), weight.float(), bias.float()  # as in `conv3x3_patches`
    y = F.conv2d(x, weight, bias, weight.shape[2]).to(like)
    return y.contiguous(memory_format=torch.channels_last)


def pack_patchify(weight, bias):
    """Lay out weights for `patchify` on this machine's CPU; arguments as there."""
    # A row of the window is contiguous in a map: k taps of k * C inputs.
    rows = weight.permute(0, 3, 1, 2).flatten(1, 2)[..., None]
    return pack_conv(rows, bias)


def _fake_depthwise(x, index, count, taps, bias, granularity, *_, **__):
    height, width = patch_extent(x.shape[-2:], granularity)
    return x.new_empty(index.shape[0], height * width, x.shape[1])


@op('(Tensor x, Tensor index, Tensor count, Tensor taps, Tensor bias, int granularity, '
    'float eps) -> Tensor', fake=_fake_depthwise)
def depthwise_norm_patches(x, index, count, taps, bias, granularity, eps):
    """Depthwise convolution (padded by half its window) and layer norm on listed patches.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        taps (Tensor): (k, k, C), the convolution's weights, k odd.
        bias (Tensor): (C,).
        granularity (int): S.
        eps (float): Of the norm, which has no weights of its own.

    Returns:
        Tensor: (len(index), S * S, C), patch by patch (S x S cut to the map's size), zeros
        beyond the map's edge; rows beyond `count` are unspecified.
    """
    size, channels, reach = x.shape[-2:], x.shape[1], taps.shape[0] // 2
    flat, inside = patch_positions(index, count, size, granularity)
    windows = _windows(x, index[:int(count)].long(), size, granularity, 1, reach)
    wide = torch.promote_types(x.dtype, torch.float32)
    windows, weight, bias = (t.to(wide) for t in (windows, taps.permute(2, 0, 1)[:, None], bias))
    rows = F.conv2d(windows, weight, bias, groups=channels).permute(0, 2, 3, 1)
    rows = F.layer_norm(rows, (channels,), eps=eps).reshape(*flat.shape, channels)
    rows = torch.where(inside[:, :, None], rows, 0).to(x.dtype)
    out = rows.new_zeros(len(index), flat.shape[1], channels)
    out[:len(flat)] = rows
    return out


@op('(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, Tensor count, Tensor weight1, '
    'Tensor bias1, Tensor weight2, Tensor bias2, int granularity, Tensor? packed1=None, '
    'Tensor? packed2=None) -> ()')
def mlp_add_patches_(out, identity, rows, index, count, weight1, bias1, weight2, bias2,
                     granularity, packed1=None, packed2=None):
    """Two pointwise layers with a GELU between, scatter and add, on listed patches.

    out = identity + layer2(gelu(layer1(rows))). Positions of patches that are not listed stay
    as they are in `out`. Where gradients are recorded a copy is written instead of `out`.

    Args:
        out (Tensor): (N, C, H, W), channels-last; may be `identity` itself.
        identity (Tensor): (N, C, H, W), channels-last.
        rows (Tensor): (len(index), S * S, C), of `depthwise_norm_patches`.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        weight1 (Tensor): (hidden, C, 1, 1).
        bias1 (Tensor): (hidden,).
        weight2 (Tensor): (C, hidden, 1, 1).
        bias2 (Tensor): (C,).
        granularity (int): S.
        packed1 (Tensor | None): Of `pack_conv` of the first layer.
        packed2 (Tensor | None): Of the second one.

    Returns:
        Tensor: What was written to.
    """
    flat, inside = patch_positions(index, count, out.shape[-2:], granularity)
    values, flat = rows[:len(flat)][inside], flat[inside]
    values = F.gelu(F.linear(values, weight1.flatten(1), bias1))
    values = F.linear(values, weight2.flatten(1), bias2) + _rows(identity)[flat]
    out.permute(0, 2, 3, 1).view(-1, out.shape[1]).index_copy_(0, flat, values.to(out.dtype))
