"""The 3x3 convolution of listed patches in Triton, to be timed beside the CUDA kernel.

No operation calls it. Import it where Triton is installed; with `TRITON_INTERPRET=1` set before, it
runs on a CPU.
"""
import os

import torch
import triton
import triton.language as tl

from .patch_conv import _strided
from .units import patch_extent, patch_grid

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
# Rows, columns and inputs of a tile, warps, and stages of the pipeline, to choose from on a GPU.
TILES = ((128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 4, 4), (128, 64, 64, 4, 4),
         (64, 64, 64, 4, 4))


def _tuned(kernel):
    """The fastest tile for every size, measured once; the last one where there is no GPU."""
    tiles = TILES[-1:] if INTERPRETED else TILES
    return triton.autotune([triton.Config(dict(ROWS=rows, COLUMNS=columns, INPUTS=inputs),
                                          num_warps=warps, num_stages=stages)
                            for rows, columns, inputs, warps, stages in tiles],
                           key=['units', 'inputs', 'outputs'])(kernel)


@triton.jit
def conv3x3_kernel(y, index, count, weight, bias, rows, units, inputs: tl.constexpr, outputs,
                   height, width, out_height, out_width, patch_height, patch_width, grid_height,
                   grid_width, stride, dilation, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   INPUTS: tl.constexpr):
    """A tile of ROWS x COLUMNS of `rows`; those that are not listed are left alone."""
    area = patch_height * patch_width
    listed = tl.minimum(tl.load(count), units) * area
    first = tl.program_id(0) * ROWS
    if first < listed:
        row = first + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        place = row % area
        patch = tl.load(index + row // area, mask=row < listed, other=0)
        sample = patch // (grid_height * grid_width)
        out_y = patch // grid_width % grid_height * patch_height + place // patch_width
        out_x = patch % grid_width * patch_width + place % patch_width
        inside = (row < listed) & (out_y < out_height) & (out_x < out_width)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for tap in range(9):
            in_y = out_y * stride + (tap // 3 - 1) * dilation
            in_x = out_x * stride + (tap % 3 - 1) * dilation
            read = inside & (in_y >= 0) & (in_y < height) & (in_x >= 0) & (in_x < width)
            at = ((sample * height + in_y) * width + in_x).to(tl.int64) * inputs
            for k in range(0, inputs, INPUTS):
                channel = k + tl.arange(0, INPUTS)
                exists = channel < inputs
                a = tl.load(y + at[:, None] + channel[None, :],
                            mask=read[:, None] & exists[None, :], other=0.0)
                b = tl.load(weight + (column[None, :] * 9 + tap) * inputs + channel[:, None],
                            mask=(column < outputs)[None, :] & exists[:, None], other=0.0)
                sums = tl.dot(a, b, sums)
        sums += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
        sums = tl.where(sums < 0, 0.0, sums)  # NaN stays
        tl.store(rows + row.to(tl.int64)[:, None] * outputs + column[None, :],
                 sums.to(rows.dtype.element_ty),
                 mask=inside[:, None] & (column < outputs)[None, :])


_tuned_kernel = _tuned(conv3x3_kernel)


def conv3x3_patches(y, index, count, weight, bias, granularity, stride=1, dilation=1):
    """As the operation of that name, of one group and all channels.

    Args:
        y (Tensor): (N, C, H, W), channels-last.
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        weight (Tensor): (C', C, 3, 3), channels-last.
        bias (Tensor): (C',).
        granularity (int): S.
        stride (int): Of the convolution.
        dilation (int): Of the convolution.

    Returns:
        Tensor: (len(index), S * S, C'); what is not listed is unspecified.
    """
    size = _strided(y.shape[-2:], stride)
    extent = patch_extent(size, granularity)
    rows = y.new_empty(len(index), extent[0] * extent[1], len(weight))
    weight = weight.contiguous(memory_format=torch.channels_last)

    def grid(tile):
        return (triton.cdiv(rows.shape[0] * rows.shape[1], tile['ROWS']),
                triton.cdiv(len(weight), tile['COLUMNS']))
    kernel, tile = _tuned_kernel, {}
    if INTERPRETED:  # nothing to measure
        kernel, tile = conv3x3_kernel, dict(ROWS=64, COLUMNS=64, INPUTS=32)
    kernel[grid](y, index, count, weight, bias, rows, len(index), *weight.shape[1::-1],
                 *y.shape[-2:], *size, *extent, *patch_grid(size, granularity), stride, dilation,
                 **tile)
    return rows
