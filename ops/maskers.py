"""Deciding in one pass over the block's input."""
import torch
import torch.nn.functional as F

from .library import op
from .patch_conv import conv1x1_positions
from .units import patch_grid


def _fake_mask(x, weight, bias, window):
    return x.new_empty(x.shape[0], *patch_grid(x.shape[-2:], window), dtype=torch.bool)


@op('(Tensor x, Tensor weight, Tensor bias, int window) -> Tensor', fake=_fake_mask)
def patch_mask(x, weight, bias, window):
    """Decide on patches: average pool, 1x1 convolution, threshold (method, section 2).

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        weight (Tensor): (C,), of logit_on - logit_off.
        bias (Tensor): (1,), of logit_on - logit_off.
        window (int): Side of a pooling window, S times the block's stride; the
            last row and column may be partial.

    Returns:
        Tensor: (N, ceil(H / window), ceil(W / window)) bool.
    """
    height, width = (min(window, n) for n in x.shape[-2:])
    wide = torch.promote_types(x.dtype, torch.float32)
    pooled = F.avg_pool2d(x.to(wide), (height, width), ceil_mode=True, count_include_pad=False)
    logits = torch.einsum('nchw,c->nhw', pooled, weight.to(wide)) + bias.to(wide)
    return ~(logits < 0)  # NaN is on


def _fake_sums(sums, whole, listed, index, count, weight, bias, area):
    return sums.new_empty(len(sums), 1, 1, dtype=torch.bool), sums.new_empty(sums.shape)


@op('(Tensor sums, Tensor? whole, Tensor listed, Tensor index, Tensor count, Tensor weight, '
    'Tensor bias, SymInt area) -> (Tensor, Tensor)', fake=_fake_sums)
def sums_mask(sums, whole, listed, index, count, weight, bias, area):
    """`patch_mask` of whole maps by what their channels add up to; no map is read.

    Args:
        sums (Tensor): (N, C) float32, of samples that the others leave out.
        whole (Tensor | None): Pieces of `conv1x1_shortcut`, of all samples: instead of `sums`.
        listed (Tensor): Pieces of `conv1x1_add_patches_`, of listed samples: before all else.
        index (Tensor): Which samples are listed, of `active_patches`.
        count (Tensor): Likewise.
        weight (Tensor): (C,), of logit_on - logit_off.
        bias (Tensor): (1,), of logit_on - logit_off.
        area (int): Positions of a map.

    Returns:
        tuple[Tensor, Tensor]: (N, 1, 1) bool, and (N, C) float32: the sums of all samples.
    """
    total, n = sums.clone() if whole is None else whole.sum(1), int(count)
    total[index[:n].long()] = listed[:n].sum(1).to(total.dtype)
    wide = torch.promote_types(total.dtype, torch.float32)
    logits = total.to(wide) @ weight.to(wide) / area + bias.to(wide)
    return ~(logits < 0)[:, None, None], total.to(sums.dtype)  # NaN is on


def _fake_means(x):
    return x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))


@op('(Tensor x) -> Tensor', fake=_fake_means)
def position_means(x):
    """Average each channel over the positions of a map.

    Args:
        x (Tensor): (N, C, H, W), channels-last.

    Returns:
        Tensor: (N, C), at least float32.
    """
    return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_masker_conv(x, weight, bias, mask_weight, mask_bias, window, packed=None):
    return _fake_like(x, weight), _fake_mask(x, mask_weight, mask_bias, window)


def _fake_like(x, weight):
    return torch.empty((x.shape[0], len(weight), *x.shape[-2:]), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


@op('(Tensor x, Tensor weight, Tensor bias, Tensor mask_weight, Tensor mask_bias, int window, '
    'Tensor? packed=None) -> (Tensor, Tensor)', fake=_fake_masker_conv)
def masker_conv1x1(x, weight, bias, mask_weight, mask_bias, window, packed=None):
    """`patch_mask` and a dense `conv1x1_positions` with ReLU in one pass over x.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        weight (Tensor): (C', C, 1, 1).
        bias (Tensor): (C',).
        mask_weight (Tensor): (C,).
        mask_bias (Tensor): (1,).
        window (int): See `patch_mask`.
        packed (Tensor | None): Weights prepared by `pack_conv`.

    Returns:
        tuple[Tensor, Tensor]: (N, C', H, W), channels-last, and the mask.
    """
    return (conv1x1_positions.reference(x, None, None, weight, bias),
            patch_mask.reference(x, mask_weight, mask_bias, window))
