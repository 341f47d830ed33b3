"""Patch gather and scatter in plain PyTorch: the steps that a calibration times.

Layout: maps are channels-last, so a position is one contiguous row of C
values. A patch is (sample, row, column) on the patch grid; its outputs are the
S x S positions from (row * S, column * S) on; those beyond the map's edge are
computed and then dropped.
"""
import torch
import torch.nn.functional as F


def _position_rows(x):
    """View a channels-last map (N, C, H, W) as (N*H*W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def active_patches(mask):
    """List the patches that are on. Synchronises: the count becomes a shape.

    Args:
        mask (Tensor): (N, Hm, Wm), non-zero where a patch is on.

    Returns:
        Tensor: (P, 3) int64, (sample, row, column), in raster order.
    """
    return mask.nonzero()


def gather_positions(x, positions, stride=1):
    """Copy the rows that a 1x1 convolution reads for some output positions.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        positions (Tensor): (R,) int64, flat indices into the strided map
            (N, ceil(H / stride), ceil(W / stride)).
        stride (int): Stride of the convolution.

    Returns:
        Tensor: (R, C).
    """
    if stride > 1:
        height, width = (-(-n // stride) for n in x.shape[-2:])
        sample, rest = positions // (height * width), positions % (height * width)
        y, x0 = rest // width * stride, rest % width * stride
        positions = (sample * x.shape[2] + y) * x.shape[3] + x0
    return _position_rows(x).index_select(0, positions)


def gather_windows(rows, positions, patches, size, granularity, grid, stride, dilation):
    """Lay out the 3x3-convolution input of each patch, halo included.

    Args:
        rows (Tensor): (R, C), values at `positions`; zero everywhere else.
        positions (Tensor): (R,) int64, flat indices into (N, *size).
        patches (Tensor): (P, 3), from `active_patches`.
        size (tuple[int, int, int]): N, height and width of the map.
        granularity (int): S.
        grid (tuple[int, int]): Height and width of the patch grid.
        stride (int): Stride of the convolution.
        dilation (int): Dilation of the convolution.

    Returns:
        Tensor: (P, C, K, K), channels-last, K = (S - 1) * stride + 2 * dilation + 1.
    """
    n, h, w = size
    window = (granularity - 1) * stride + 2 * dilation + 1
    # A zero border holds the convolution's padding and the overhang of partial patches.
    height, width = (max((g * granularity - 1) * stride + 2 * dilation + 1, m + dilation)
                     for g, m in zip(grid, (h, w)))
    sample, y, x = positions // (h * w), positions // w % h, positions % w
    padded = rows.new_zeros(n * height * width, rows.shape[1])
    padded.index_copy_(0, (sample * height + y + dilation) * width + x + dilation, rows)
    corner = (patches[:, 0] * height + patches[:, 1] * granularity * stride) * width \
        + patches[:, 2] * granularity * stride
    step = torch.arange(window, device=rows.device)
    index = corner[:, None, None] + step[:, None] * width + step
    windows = padded.index_select(0, index.flatten())
    return windows.view(len(patches), window, window, -1).permute(0, 3, 1, 2)


def patch_positions(patches, size, granularity):
    """Flat output positions of each patch.

    Args:
        patches (Tensor): (P, 3), from `active_patches`.
        size (tuple[int, int]): Height and width of the output map.
        granularity (int): S.

    Returns:
        tuple[Tensor, Tensor | None]: (P*S*S,) int64 positions, and the indices
        of those inside the map; None when all are.
    """
    step = torch.arange(granularity, device=patches.device)
    y = (patches[:, 1, None] * granularity + step)[:, :, None]
    x = (patches[:, 2, None] * granularity + step)[:, None, :]
    flat = ((patches[:, 0, None, None] * size[0] + y) * size[1] + x).flatten()
    if size[0] % granularity == 0 and size[1] % granularity == 0:
        return flat, None
    inside = ((y < size[0]) & (x < size[1])).flatten().nonzero()[:, 0]
    return flat[inside], inside


def scatter_add_relu(out, identity, positions, rows):
    """Write relu(identity + rows) at some positions; in place unless gradients are recorded.

    Args:
        out (Tensor): (N, C, H, W), channels-last; may be `identity` itself.
        identity (Tensor): (N, C, H, W), channels-last.
        positions (Tensor): (R,) int64, flat indices into (N, H, W), each at most once.
        rows (Tensor): (R, C), the residual.

    Returns:
        Tensor: `out`, or a new map when gradients are recorded.
    """
    values = _position_rows(identity).index_select(0, positions)
    values = F.relu(values + rows.to(values.dtype))
    if torch.is_grad_enabled():
        n, c, h, w = out.shape
        new = _position_rows(out).index_copy(0, positions, values.to(out.dtype))
        return new.view(n, h, w, c).permute(0, 3, 1, 2)
    _position_rows(out).index_copy_(0, positions, values.to(out.dtype))
    return out


def excite_rows(rows, excitation, samples):
    """Scale rows (R, C) by the means over their sample's rows; `samples` (R,) are sorted."""
    _, which, count = samples.unique_consecutive(return_inverse=True, return_counts=True)
    wide = torch.promote_types(rows.dtype, torch.float32)
    sums = torch.zeros(len(count), rows.shape[1], dtype=wide, device=rows.device)
    means = sums.index_add(0, which, rows.to(wide)) / count[:, None]
    return rows.mul_(excitation.scales(means).index_select(0, which).to(rows.dtype))
