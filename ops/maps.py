"""Convolutions and pools of whole maps, by torch's own kernels.

As operations of ours they are the same for all sizes: torch's compiler follows its own for some
sizes only, because it asks which of its kernels will run.
"""
import torch
import torch.nn.functional as F

from .library import op


def _fake_map(x, channels, stride):
    height, width = ((n - 1) // stride + 1 for n in x.shape[-2:])
    return torch.empty((x.shape[0], channels, height, width), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


def _fake_conv(x, weight, bias, stride=1, dilation=1, groups=1):
    return _fake_map(x, len(weight), stride)


def _fake_pool(x, kernel_size, stride=None):
    return _fake_map(x, x.shape[1], stride or kernel_size)


@op('(Tensor x, Tensor weight, Tensor bias, int stride=1, int dilation=1, int groups=1) -> Tensor',
    fake=_fake_conv)
def conv_map(x, weight, bias, stride=1, dilation=1, groups=1):
    """A convolution, padded by half its window.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        weight (Tensor): (C', C / groups, k, k), k odd.
        bias (Tensor): (C',).
        stride (int): Of the convolution.
        dilation (int): Of the convolution.
        groups (int): Of the convolution.

    Returns:
        Tensor: (N, C', ceil(H / stride), ceil(W / stride)), channels-last.
    """
    padding = weight.shape[2] // 2 * dilation
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=torch.channels_last)


@op('(Tensor x, int kernel_size, int stride) -> Tensor', fake=_fake_pool)
def max_pool(x, kernel_size, stride):
    """Maxima of windows, padded by half their side.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        kernel_size (int): Side of a window, odd.
        stride (int): Of the windows.

    Returns:
        Tensor: (N, C, ceil(H / stride), ceil(W / stride)), channels-last.
    """
    y = F.max_pool2d(x, kernel_size, stride, kernel_size // 2)
    return y.contiguous(memory_format=torch.channels_last)


@op('(Tensor x, int kernel_size) -> Tensor', fake=_fake_pool)
def average_pool(x, kernel_size):
    """Means of windows side by side; the last ones may be partial.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        kernel_size (int): Side of a window.

    Returns:
        Tensor: (N, C, ceil(H / kernel_size), ceil(W / kernel_size)), channels-last.
    """
    y = F.avg_pool2d(x, kernel_size, ceil_mode=True, count_include_pad=False)
    return y.contiguous(memory_format=torch.channels_last)


@op('(Tensor(a!) y) -> ()')
def rectify_(y):
    """ReLU in place. Where gradients are recorded a copy is written instead of `y`.

    Args:
        y (Tensor): (N, C, H, W), channels-last.

    Returns:
        Tensor: What was written to.
    """
    F.relu_(y)
