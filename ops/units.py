"""Listing units: masks become compact indices with a count that stays on the device.

A unit is a patch, a position or a channel group. An index holds at most as many
int32 entries as there are units; the first `count` of them, ascending, are the
active ones, the rest is unspecified.
"""
import torch

from .library import op

WHOLE = 1 << 30  # a granularity or window as large as any map


def _fake_compact(mask):
    return (mask.new_empty(mask.shape, dtype=torch.int32),
            mask.new_empty(mask.shape[0], dtype=torch.int32))


@op('(Tensor mask) -> (Tensor, Tensor)', fake=_fake_compact)
def compact(mask):
    """List the active units of each row of a mask. Does not synchronise.

    Args:
        mask (Tensor): (R, U) bool.

    Returns:
        tuple[Tensor, Tensor]: Index (R, U) and count (R,), int32.
    """
    place = mask.cumsum(1) - 1
    count = place[:, -1:] + 1 if mask.shape[1] else place.new_zeros(len(mask), 1)
    # Units that are off go to a column of their own, which is cut away.
    place = torch.where(mask, place, mask.shape[1])
    units = torch.arange(mask.shape[1], device=mask.device).expand_as(place)
    index = place.new_zeros(len(mask), mask.shape[1] + 1).scatter_(1, place, units)
    return index[:, :-1].int().contiguous(), count[:, 0].int()


def active_patches(mask):
    """List the active patches of a batch.

    Args:
        mask (Tensor): (N, Hm, Wm), non-zero where a patch is on.

    Returns:
        tuple[Tensor, Tensor]: Index (N * Hm * Wm,) into the flat grid and count (1,), int32.
    """
    index, count = compact(mask.reshape(1, -1).bool())
    return index[0], count


def patch_extent(size, granularity):
    """Height and width of a patch on a map of `size`: at most the map's own."""
    # Sizes may be symbols, and what is compared would hold for these sizes only.
    return tuple(size) if granularity >= WHOLE else tuple(torch.sym_min(granularity, n)
                                                          for n in size)


def patch_grid(size, granularity):
    """Rows and columns of the patch grid over a map of `size`."""
    return (1, 1) if granularity >= WHOLE else tuple(-(-n // granularity) for n in size)


def patch_positions(index, count, size, granularity):
    """Flat output positions of the active patches. Synchronises.

    Args:
        index (Tensor): Of `active_patches`.
        count (Tensor): Of `active_patches`.
        size (tuple[int, int]): Height and width of the output map.
        granularity (int): S.

    Returns:
        tuple[Tensor, Tensor]: int64 positions (P, S * S) in the flat map, and
        bool, which of them lie inside it; the others hold its nearest position.
    """
    rows, columns = patch_grid(size, granularity)
    height, width = patch_extent(size, granularity)
    patches = index[:int(count)].long()
    sample, rest = patches // (rows * columns), patches % (rows * columns)

    def line(first, extent, limit):
        at = first[:, None] * granularity + torch.arange(extent, device=index.device)
        return at.clamp(max=limit - 1), at < limit
    y, in_y = line(rest // columns, height, size[0])
    x, in_x = line(rest % columns, width, size[1])
    flat = (sample[:, None, None] * size[0] + y[:, :, None]) * size[1] + x[:, None]
    return flat.flatten(1), (in_y[:, :, None] & in_x[:, None]).flatten(1)


def _fake_halo(index, count, samples, height, width, *_, **__):
    return index.new_empty(samples * height * width), index.new_empty(1)


@op('(Tensor index, Tensor count, int samples, int height, int width, int granularity, '
    'int stride=1, int dilation=1) -> (Tensor, Tensor)', fake=_fake_halo)
def halo_positions(index, count, samples, height, width, granularity, stride=1, dilation=1):
    """List the positions that a 3x3 convolution reads for the active patches.

    Args:
        index (Tensor): Of `active_patches`, on the output map's grid.
        count (Tensor): Of `active_patches`.
        samples (int): N.
        height (int): Of the map that is read.
        width (int): Of the map that is read.
        granularity (int): S.
        stride (int): Of the convolution.
        dilation (int): Of the convolution, and its padding.

    Returns:
        tuple[Tensor, Tensor]: Index (N * height * width,) and count (1,), int32.
    """
    size = tuple((n - 1) // stride + 1 for n in (height, width))
    flat, inside = patch_positions(index, count, size, granularity)
    flat = flat[inside]
    sample, y, x = flat // (size[0] * size[1]), flat // size[1] % size[0], flat % size[1]
    needed = torch.zeros(samples * height * width, dtype=torch.bool, device=index.device)
    for tap_y in (-1, 0, 1):
        for tap_x in (-1, 0, 1):
            at_y, at_x = y * stride + tap_y * dilation, x * stride + tap_x * dilation
            read = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            needed[((sample * height + at_y) * width + at_x)[read]] = True
    positions, found = compact(needed[None])
    return positions[0], found
