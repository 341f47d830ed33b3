"""Folding: batch norms become part of the convolutions in evaluation (method, section 4)."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laud_mm import ops

from .excitation import Excitation


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with its norm folded in.

    Attributes:
        weight (Tensor): (out, in / groups, k, k).
        bias (Tensor): (out,).
        groups (int): Groups of the convolution.
    """
    weight: Tensor
    bias: Tensor
    groups: int = 1

    @cached_property
    def packed(self) -> Tensor | None:
        """The weights as the CPU kernels read them; None where there is no such kernel."""
        if not self._for_kernels():
            return None
        return ops.pack_conv(self.weight, self.bias, self.groups)

    def convolve(self, x: Tensor, stride: int, dilation: int) -> Tensor:
        """Compute a whole map (N, in, H, W), padded by half a window."""
        padding = self.weight.shape[2] // 2 * dilation
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)

    def packed_for(self, group_size: int = 0, inputs: bool = False) -> Tensor | None:
        """The weights for kernels that pick channels.

        Args:
            group_size (int): Channels that are picked at once; 0: none are.
            inputs (bool): Whether only inputs are picked.
        """
        if not group_size:
            return self.packed
        # Pairs are multiplied in bfloat16, so pairs are picked; odd ones are multiplied in float.
        grouped = self.groups > 1
        conv = self._wide if group_size % 2 or grouped and self.weight.shape[1] % 2 else self
        return conv.packed if inputs or grouped else conv.sliceable

    @cached_property
    def _wide(self):
        if self.weight.dtype != torch.bfloat16:
            return self
        return FoldedConv(self.weight.float(), self.bias.float(), self.groups)

    @cached_property
    def packed_winograd(self) -> Tensor | None:
        """The weights as the CPU kernels transform them, of a 3x3 convolution; None likewise."""
        if not self._for_kernels():
            return None
        return ops.pack_winograd(self.weight, self.bias)

    @cached_property
    def packed_stem(self) -> Tensor | None:
        """The weights as the CPU kernel of a net's first convolution reads them; None likewise."""
        return ops.pack_stem(self.weight, self.bias) if self._for_kernels() else None

    @cached_property
    def sliceable(self) -> Tensor | None:
        """The weights as the CPU kernels pick channels of them; None where there is none."""
        return ops.slice_ready(self.weight) if self._for_kernels() else None

    def _for_kernels(self):
        return (self.weight.device.type == 'cpu' and ops.has_kernel('cpu')
                and not (torch.is_grad_enabled() and self.weight.requires_grad))


@dataclass(frozen=True)
class FoldedBottleneck:
    """The weights of a block as the skipping executor reads them.

    Attributes:
        conv1, conv2, conv3 (FoldedConv): The residual branch.
        shortcut (FoldedConv | None): The downsample convolution.
        excitation (Excitation | None): Squeeze-and-excitation between conv2 and conv3.
        maskers (dict[str, tuple[Tensor, Tensor]]): See `BlockMasker.differences`.
        ones_channel (bool): conv2 reads one more channel than conv1 writes, all ones.
        spread (Tensor | None): For each input channel of conv2, the output channel of
            conv1 that it is; None: they are the same.
        kept (Tensor | None): Output channels of conv2 that are read on; None: all.
    """
    conv1: FoldedConv
    conv2: FoldedConv
    conv3: FoldedConv
    shortcut: FoldedConv | None = None
    excitation: Excitation | None = None
    maskers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ones_channel: bool = False
    spread: Tensor | None = None
    kept: Tensor | None = None

    def named(self, part: str) -> Any:
        """The convolution of a part: 'conv1', 'conv2', 'conv3' or 'downsample'."""
        return self.shortcut if part == 'downsample' else getattr(self, part)

    @property
    def width(self) -> int:
        """Channels that conv3 reads: the active ones of the bottleneck width."""
        return self.conv3.weight.shape[1]


def fold_conv_norm(conv: nn.Conv2d, norm: Any,
                   dtype: torch.dtype | None = None) -> FoldedConv:
    """Fold a batch norm (running statistics) into the convolution before it.

    Args:
        conv (nn.Conv2d): Convolution.
        norm (nn.Module): Batch norm over its outputs, or an identity.
        dtype (torch.dtype, optional): Type of the result; folding is done in
            the weights' type, at least float32.

    Returns:
        FoldedConv: channels-last weight and bias; differentiable.
    """
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    weight = conv.weight.to(wide)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.to(wide)
    if not isinstance(norm, nn.Identity):
        scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
        if norm.weight is not None:
            scale = norm.weight.to(wide) * scale
        bias = (bias - norm.running_mean.to(wide)) * scale
        if norm.bias is not None:
            bias = norm.bias.to(wide) + bias
        weight = weight * scale[:, None, None, None]
    dtype = dtype or conv.weight.dtype
    return FoldedConv(weight.to(dtype).contiguous(memory_format=torch.channels_last),
                      bias.to(dtype), conv.groups)
