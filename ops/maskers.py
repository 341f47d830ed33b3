"""Deciding in one pass over the block's input."""
import torch
import torch.nn.functional as F

from .library import op
from .patch_conv import conv1x1_positions
from .units import patch_grid


def _fake_mask(x, weight, bias, window, *_, **__):
    return x.new_empty(x.shape[0], *patch_grid(x.shape[-2:], window), dtype=torch.bool)


@op('(Tensor x, Tensor weight, Tensor bias, int window, Tensor(a!)? sums=None, '
    'Tensor? whole=None, Tensor? listed=None, Tensor? index=None, Tensor? count=None) -> Tensor',
    fake=_fake_mask)
def patch_mask(x, weight, bias, window, sums=None, whole=None, listed=None, index=None,
               count=None):
    """Decide on patches: average pool, 1x1 convolution, threshold (method, section 2).

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        weight (Tensor): (C,), of logit_on - logit_off.
        bias (Tensor): (1,), of logit_on - logit_off.
        window (int): Side of a pooling window, S times the block's stride; the
            last row and column may be partial.
        sums (Tensor | None): (patches, C) float32, what each window of x adds up to. It is
            brought up to date by the other arguments, and x is not read. On a GPU only.
        whole (Tensor | None): `pieces` of `conv1x1_positions` for all windows; None: `sums` holds
            those that are not listed.
        listed (Tensor | None): `pieces` of `conv1x1_add_patches_` for listed windows.
        index (Tensor | None): Of `active_patches`, with `listed`.
        count (Tensor | None): Likewise.

    Returns:
        Tensor: (N, ceil(H / window), ceil(W / window)) bool.
    """
    height, width = (min(window, n) for n in x.shape[-2:])
    wide = torch.promote_types(x.dtype, torch.float32)
    if sums is None:
        pooled = F.avg_pool2d(x.to(wide), (height, width), ceil_mode=True,
                              count_include_pad=False)
    else:
        if whole is not None:
            sums.copy_(whole.sum(1))
        if listed is not None:
            n = int(count)
            sums[index[:n].long()] = listed[:n].sum(1).to(sums.dtype)
        area = F.avg_pool2d(x.new_ones(1, 1, *x.shape[-2:], dtype=wide), (height, width),
                            ceil_mode=True, divisor_override=1)
        pooled = sums.to(wide).view(len(x), *area.shape[-2:], x.shape[1]).permute(0, 3, 1, 2) / area
    logits = torch.einsum('nchw,c->nhw', pooled, weight.to(wide)) + bias.to(wide)
    return ~(logits < 0)  # NaN is on


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
