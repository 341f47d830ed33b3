"""Convolutions that compute only what is listed.

Layout: maps are channels-last, so a position is a contiguous row of channels.
Lists come from `laud_mm.ops.units`; a whole sample is one patch of at least the
map's size. Weights are (out, in / groups, k, k) with the norm folded in. `packed`
saves preparing them anew in each call on a CPU: from `pack_conv` or `pack_winograd`, or,
for convolutions whose outputs are picked per sample, from `slice_ready`.
"""
import torch
import torch.nn.functional as F

from .channels import channel_mask, from_compact, to_compact
from .library import has_dot_products, has_kernel, op
from .units import patch_extent, patch_grid, patch_positions


def _rows(x):
    """View a channels-last map (N, C, H, W) as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map(rows, samples, height, width):
    """View rows (N * H * W, C) as a channels-last map."""
    return rows.view(samples, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def sum_pieces(size, granularity):
    """In how many pieces kernels add up a patch of a map of `size`: as `pieces_of` of row_map.h."""
    height, width = patch_extent(size, granularity)
    return (height * width + 62) // 64 + 1


def _room_for_pieces(y, patches, granularity):
    return y.new_empty((patches, sum_pieces(y.shape[-2:], granularity), y.shape[1]),
                       dtype=torch.float32)


def _write_pieces(pieces, x, granularity, index, count):
    """All that a listed patch of a map adds up to as its first piece."""
    extent = patch_extent(x.shape[-2:], granularity)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = _rows(F.avg_pool2d(wide, extent, ceil_mode=True, divisor_override=1)).to(pieces.dtype)
    if index is not None:
        sums = sums[index[:int(count)].long()]
    pieces[:len(sums)] = F.pad(sums[:, None], (0, 0, 0, pieces.shape[1] - 1))


def _strided(size, stride):
    return tuple((n - 1) // stride + 1 for n in size)


_VECTOR_BYTES = dict(amx=64, avx512_bf16=64, avx512=64, avx2=32, baseline=16)


def _fake_pack(weight, bias, groups=1, products=1):
    if weight.device.type != 'cpu' or not has_kernel('cpu'):
        return weight.new_empty(weight.numel() + bias.numel())
    # As `PackedLayout` in packing.h counts.
    wide = torch.promote_types(weight.dtype, torch.float32)
    vector = _VECTOR_BYTES[torch.ops.laud_mm_build.cpu_isa()] // wide.itemsize
    step = 1
    if has_dot_products(weight) and products == 1:
        wide, step = torch.bfloat16, 2  # pairs of inputs, and a bias of twice the width
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    merged = 1 if groups == 1 else max(vector // outputs, 1)
    taps = weight.shape[2] * weight.shape[3] if products == 1 else 1
    depth = -(-inputs * merged // step) * step
    block = -(-outputs * merged // vector) * vector * (step + taps * depth)
    return weight.new_empty(products * -(-groups // merged) * block, dtype=wide)


def _fake_pack_winograd(weight, bias):
    return _fake_pack(weight, bias, products=16)


@op('(Tensor weight, Tensor bias, int groups=1) -> Tensor', fake=_fake_pack)
def pack_conv(weight, bias, groups=1):
    """Lay out a convolution's weights for the kernels of this machine's CPU.

    Args:
        weight (Tensor): (out, in / groups, k, k).
        bias (Tensor): (out,).
        groups (int): Groups of the convolution.

    Returns:
        Tensor: Opaque; float32, or float64 for float64, or bfloat16 for bfloat16 where the
        CPU multiplies it.
    """
    return torch.cat([bias, weight.flatten()])


@op('(Tensor weight, Tensor bias) -> Tensor', fake=_fake_pack_winograd)
def pack_winograd(weight, bias):
    """Lay out a 3x3 convolution's weights for Winograd's F(2x2, 3x3) on this machine's CPU.

    Args:
        weight (Tensor): (out, in, 3, 3).
        bias (Tensor): (out,).

    Returns:
        Tensor: Opaque; float32, or float64 for float64.
    """
    return torch.cat([bias, weight.flatten()])


def slice_ready(weight):
    """Lay out a convolution's weights for kernels that pick outputs.

    Args:
        weight (Tensor): (out, in, k, k).

    Returns:
        Tensor: (k * k * in, out), at least float32; or bfloat16 (k * k * in / 2, out, 2), each
        tap padded with zeros to an even `in`, where the CPU multiplies pairs of it.
    """
    if has_dot_products(weight):
        rows = F.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2)).permute(2, 3, 1, 0)
        return rows.reshape(-1, 2, rows.shape[3]).transpose(1, 2).contiguous()
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide).permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def _fake_positions(x, index, count, weight, bias, stride=1, *_, **__):
    height, width = _strided(x.shape[-2:], stride)
    return torch.empty((x.shape[0], len(weight), height, width), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


@op('(Tensor x, Tensor? index, Tensor? count, Tensor weight, Tensor bias, int stride=1, '
    'bool relu=True, Tensor? channel_index=None, Tensor? channel_count=None, int group_size=1, '
    'Tensor? packed=None, int granularity=1) -> Tensor', fake=_fake_positions)
def conv1x1_positions(x, index, count, weight, bias, stride=1, relu=True, channel_index=None,
                      channel_count=None, group_size=1, packed=None, granularity=1):
    """A 1x1 convolution (and ReLU) at listed output positions, or patches of them.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        index (Tensor | None): int32, ascending positions of the flat output map
            (N, ceil(H / stride), ceil(W / stride)), or patches of its grid; None: all.
        count (Tensor | None): (1,) int32, how many are listed.
        weight (Tensor): (C', C, 1, 1).
        bias (Tensor): (C',).
        stride (int): Of the convolution.
        relu (bool): Whether to rectify.
        channel_index (Tensor | None): (N, C' / G) int32: outputs to compute per sample.
        channel_count (Tensor | None): (N,) int32.
        group_size (int): G.
        packed (Tensor | None): Prepared weights.
        granularity (int): Side of what is listed: 1 for positions.

    Returns:
        Tensor: (N, C', H', W'), channels-last; positions that are not listed are
        unspecified; compact where channels are picked.
    """
    size = _strided(x.shape[-2:], stride)
    flat = torch.arange(len(x) * size[0] * size[1], device=x.device)
    if index is not None:
        flat, inside = patch_positions(index, count, size, granularity)
        flat = flat[inside]
    rows = _rows(x[:, :, ::stride, ::stride])[flat]
    rows = F.linear(rows, weight.flatten(1), bias)
    rows = F.relu(rows) if relu else rows
    if channel_index is not None:
        mask = channel_mask(channel_index, channel_count, group_size)
        rows = to_compact(rows, flat // (size[0] * size[1]), mask)
    out = rows.new_zeros(len(x) * size[0] * size[1], rows.shape[1]).index_copy(0, flat, rows)
    return _map(out, len(x), *size)


def _fake_shortcut(x, active, weight, bias, stride, granularity, sums):
    y = _fake_positions(x, None, None, weight, bias, stride)
    return y, _room_for_pieces(y, active.numel() if sums else 0, granularity)


@op('(Tensor x, Tensor active, Tensor weight, Tensor bias, int stride, int granularity, bool sums) '
    '-> (Tensor, Tensor)', fake=_fake_shortcut)
def conv1x1_shortcut(x, active, weight, bias, stride, granularity, sums):
    """A 1x1 convolution of a whole map, with ReLU on patches that get nothing added.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        active (Tensor): (N, ceil(H' / S), ceil(W' / S)) bool: patches that get more added.
        weight (Tensor): (C', C, 1, 1).
        bias (Tensor): (C',).
        stride (int): Of the convolution.
        granularity (int): S.
        sums (bool): Whether patches are added up.

    Returns:
        tuple[Tensor, Tensor]: (N, C', H', W'), channels-last; and (patches, `sum_pieces`, C')
        float32, what each patch adds up to, in pieces, or of no patches.
    """
    y = conv1x1_positions.reference(x, None, None, weight, bias, stride, False)
    size = y.shape[-2:]
    height, width = patch_extent(size, granularity)
    on = active.repeat_interleave(height, 1).repeat_interleave(width, 2)
    y = torch.where(on[:, None, :size[0], :size[1]], y, F.relu(y))
    y = y.contiguous(memory_format=torch.channels_last)
    pieces = _room_for_pieces(y, active.numel() if sums else 0, granularity)
    if sums:
        _write_pieces(pieces, y, granularity, None, None)
    return y, pieces


def _fake_patches(y, index, count, weight, bias, granularity, stride=1, *_, **__):
    height, width = patch_extent(_strided(y.shape[-2:], stride), granularity)
    return y.new_empty(index.shape[0], height * width, len(weight))


@op('(Tensor y, Tensor index, Tensor count, Tensor weight, Tensor bias, int granularity, '
    'int stride=1, int dilation=1, int groups=1, Tensor? channel_index=None, '
    'Tensor? channel_count=None, int group_size=1, Tensor? packed=None, bool winograd=False, '
    'Tensor? shifts=None) -> Tensor', fake=_fake_patches)
def conv3x3_patches(y, index, count, weight, bias, granularity, stride=1, dilation=1, groups=1,
                    channel_index=None, channel_count=None, group_size=1, packed=None,
                    winograd=False, shifts=None):
    """Gather, 3x3 convolution (padded by its dilation) and ReLU on listed patches.

    Only positions of `y` inside the windows of those patches are read.

    Args:
        y (Tensor): (N, C, H, W), channels-last, compact where channels are picked.
        index (Tensor): Of `active_patches` on the output map's grid.
        count (Tensor): Of `active_patches`.
        weight (Tensor): (C', C / groups, 3, 3).
        bias (Tensor): (C',).
        granularity (int): S.
        stride (int): Of the convolution.
        dilation (int): Of the convolution.
        groups (int): Of the convolution.
        channel_index (Tensor | None): (N, C / G) int32: inputs read and outputs computed.
        channel_count (Tensor | None): (N,) int32.
        group_size (int): G.
        packed (Tensor | None): Prepared weights.
        winograd (bool): `packed` is of `pack_winograd`; for stride, dilation and
            groups of 1, all channels.
        shifts (Tensor | None): (N, C', 9), what each tap of a window adds where it lies inside
            the map: left by input channels that are constant and not read. With
            `channel_index` and one group only.

    Returns:
        Tensor: (len(index), S * S, C'), patch by patch (S x S cut to the map's
        size); rows beyond `count`, and beyond the map's edge, are unspecified.
    """
    size = _strided(y.shape[-2:], stride)
    flat, _ = patch_positions(index, count, size, granularity)
    samples, area = flat[:, :1] // (size[0] * size[1]), flat.shape[1]
    samples = samples.expand(-1, area).flatten()
    if channel_index is not None:
        mask = channel_mask(channel_index, channel_count, group_size)
        owners = torch.arange(len(y), device=y.device).repeat_interleave(y.shape[2] * y.shape[3])
        y = _map(from_compact(_rows(y), owners, mask), len(y), *y.shape[-2:])
    windows = _windows(y, index[:int(count)].long(), size, granularity, stride, dilation)
    # Half types of narrow maps with a stride come out of oneDNN as garbage (torch 2.11, CPU).
    half = y.device.type == 'cpu' and y.dtype in (torch.float16, torch.bfloat16)
    windows, weight, bias = (t.float() if half else t for t in (windows, weight, bias))
    rows = F.conv2d(windows, weight, bias, stride, 0, dilation, groups)
    if shifts is not None:
        rows = rows + _inside_shifts(y, index[:int(count)].long(), size, granularity, stride,
                                     dilation, shifts.to(rows.dtype))
    rows = rows.to(y.dtype)
    rows = F.relu(rows.permute(0, 2, 3, 1).reshape(-1, len(weight)))
    if channel_index is not None:
        rows = to_compact(rows, samples, mask)
    out = rows.new_zeros(len(index), area, len(weight))
    out[:len(flat)] = rows.view(-1, area, len(weight))
    return out


def _inside_shifts(y, patches, size, granularity, stride, dilation, shifts):
    """What `shifts` of taps inside the map add to patches: (P, C', S, S)."""
    ones = _windows(torch.ones_like(y[:, :1]), patches, size, granularity, stride, dilation)
    taps = torch.eye(9, dtype=shifts.dtype, device=y.device).view(9, 1, 3, 3)
    inside = F.conv2d(ones.to(shifts.dtype), taps, None, stride, 0, dilation)
    grid = patch_grid(size, granularity)
    return torch.einsum('pthw,pct->pchw', inside, shifts[patches // (grid[0] * grid[1])])


def _windows(y, patches, size, granularity, stride, dilation):
    """Cut what the windows of each patch read: (P, C, K, K'), zero beyond the map."""
    extent, grid = patch_extent(size, granularity), patch_grid(size, granularity)
    window = [(n - 1) * stride + 2 * dilation + 1 for n in extent]
    after = [max((g - 1) * granularity * stride + w - dilation - n, 0)
             for g, w, n in zip(grid, window, y.shape[-2:])]
    padded = F.pad(y, (dilation, after[1], dilation, after[0]))
    sample, rest = patches // (grid[0] * grid[1]), patches % (grid[0] * grid[1])

    def line(first, length):
        return first[:, None] * granularity * stride + torch.arange(length, device=y.device)
    rows, columns = line(rest // grid[1], window[0]), line(rest % grid[1], window[1])
    windows = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None]]
    return windows.permute(0, 3, 1, 2)


@op('(Tensor(a!) out, Tensor identity, Tensor rows, Tensor index, Tensor count, Tensor weight, '
    'Tensor bias, int granularity, Tensor? channel_index=None, Tensor? channel_count=None, '
    'int group_size=1, Tensor? packed=None, Tensor? shifts=None, Tensor(b!)? pieces=None) -> ()')
def conv1x1_add_patches_(out, identity, rows, index, count, weight, bias, granularity,
                         channel_index=None, channel_count=None, group_size=1, packed=None,
                         shifts=None, pieces=None):
    """1x1 convolution, scatter, add and ReLU: out = relu(identity + conv(rows)) on patches.

    Positions of patches that are not listed stay as they are in `out`. Where
    gradients are recorded a copy is written instead of `out`.

    Args:
        out (Tensor): (N, C', H, W), channels-last; may be `identity` itself.
        identity (Tensor): (N, C', H, W), channels-last.
        rows (Tensor): (len(index), S * S, C), of `conv3x3_patches`.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        weight (Tensor): (C', C, 1, 1).
        bias (Tensor): (C',).
        granularity (int): S.
        channel_index (Tensor | None): (N, C / G) int32: inputs that `rows` hold.
        channel_count (Tensor | None): (N,) int32.
        group_size (int): G.
        packed (Tensor | None): Prepared weights.
        shifts (Tensor | None): (N, C'), added to the bias of each sample. With `channel_index`
            only.
        pieces (Tensor | None): (len(index), `sum_pieces`, C') float32, takes what listed
            patches of `out` add up to, in pieces. On a GPU only.

    Returns:
        Tensor: What was written to.
    """
    size = out.shape[-2:]
    flat, inside = patch_positions(index, count, size, granularity)
    values, flat = rows[:len(flat)][inside], flat[inside]
    if channel_index is not None:
        mask = channel_mask(channel_index, channel_count, group_size)
        values = from_compact(values, flat // (size[0] * size[1]), mask)
    values = F.linear(values, weight.flatten(1), bias)
    if shifts is not None:
        values = values + shifts[flat // (size[0] * size[1])].to(values.dtype)
    values = F.relu(_rows(identity)[flat] + values)
    out.permute(0, 2, 3, 1).view(-1, out.shape[1]).index_copy_(0, flat, values.to(out.dtype))
    if pieces is not None:
        _write_pieces(pieces, out, granularity, index, count)
