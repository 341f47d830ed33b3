"""The first convolution of a net, on an image's few channels."""
import torch.nn.functional as F

from .library import has_dot_products, op
from .patch_conv import _strided, pack_conv


def pack_stem(weight, bias):
    """Lay out weights (out, C, k, k) for `stem_conv` on this machine's CPU: opaque."""
    if has_dot_products(weight):  # pairs of channels, or the rows of windows would lie unevenly
        weight = F.pad(weight, (0, 0, 0, 0, 0, weight.shape[1] % 2))
    # A row of a window is contiguous in a channels-last image: k taps of k * C inputs.
    rows = weight.permute(0, 3, 1, 2).reshape(len(weight), -1, weight.shape[2], 1)
    return pack_conv(rows.contiguous(), bias)


def _fake(x, weight, bias, stride, pool, packed=None):
    size = _strided(x.shape[-2:], stride)
    height, width = _strided(size, 2) if pool else size
    # Channels-last, with sizes that may be symbols.
    return x.new_empty(x.shape[0], height, width, len(weight)).permute(0, 3, 1, 2)


@op('(Tensor x, Tensor weight, Tensor bias, int stride, bool pool, Tensor? packed=None) -> Tensor',
    fake=_fake)
def stem_conv(x, weight, bias, stride, pool, packed=None):
    """A convolution padded by half its window, ReLU, and a 3x3 max pool with a stride of 2.

    Args:
        x (Tensor): (N, C, H, W), in any memory format.
        weight (Tensor): (C', C, k, k), k odd.
        bias (Tensor): (C',).
        stride (int): Of the convolution.
        pool (bool): Whether to pool.
        packed (Tensor | None): Of `pack_stem`.

    Returns:
        Tensor: (N, C', H', W'), channels-last.
    """
    y = F.relu(F.conv2d(x, weight, bias, stride, weight.shape[2] // 2))
    y = F.max_pool2d(y, 3, 2, 1) if pool else y
    # A map of one position or channel counts as any format: strides are set, not asked for.
    return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
