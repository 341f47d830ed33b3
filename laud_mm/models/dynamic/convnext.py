"""How the steps of a ConvNeXt block run, and the weights that they read.

Steps read and write a `BottleneckRun`; those of the stem and of what lies between two stages
a `StemRun`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laud_mm import ops

from .bottleneck_run import StemRun, add_masked
from .decision import Decision
from .folding import FoldedConv
from .run_table import runs


@dataclass(frozen=True)
class FoldedNorm:
    """A layer norm over the channels of every position.

    Attributes:
        eps (float): Of the norm.
        weight, bias (Tensor | None): (C,); None where the next layer has them.
    """
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Norm a map (N, C, H, W), channels-last."""
        return norm_channels(x, self.weight, self.bias, self.eps)


def norm_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm of a map (N, C, H, W) over its channels, in the map's type."""
    rows = F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, eps)
    return rows.movedim(-1, 1).to(x.dtype)


@dataclass(frozen=True)
class FoldedConvNeXt:
    """The weights of a block as programs read them.

    Attributes:
        depthwise (FoldedConv): The depthwise convolution.
        norm (FoldedNorm): Without weights: they are part of `pointwise1`.
        pointwise1 (FoldedConv): Of the first pointwise layer, as a 1x1 convolution.
        pointwise2 (FoldedConv): Of the second one, the layer scale folded in.
        maskers (dict[str, tuple[Tensor, Tensor]]): See `BlockMasker.differences`.
    """
    depthwise: FoldedConv
    norm: FoldedNorm
    pointwise1: FoldedConv
    pointwise2: FoldedConv
    maskers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def named(self, part: str) -> Any:
        """The layer of a part."""
        return getattr(self, part)

    @cached_property
    def taps(self) -> Tensor:
        """(k, k, C), the depthwise convolution's weights."""
        return depthwise_taps(self.depthwise.weight)


def depthwise_taps(weight: Tensor) -> Tensor:
    """Weights (C, 1, k, k) as `ops.depthwise_norm_patches` reads them: (k, k, C)."""
    return weight[:, 0].permute(1, 2, 0).contiguous()


def fold_convnext(depthwise: nn.Conv2d, norm: nn.LayerNorm, pointwise1: nn.Linear,
                  pointwise2: nn.Linear, layer_scale: Tensor | None, maskers: dict,
                  dtype: torch.dtype | None) -> FoldedConvNeXt:
    """Fold a block's norm and layer scale into its pointwise layers; differentiable.

    Args:
        depthwise, norm, pointwise1, pointwise2 (nn.Module): The branch.
        layer_scale (Tensor | None): (C, 1, 1).
        maskers (dict): See `FoldedConvNeXt`.
        dtype (torch.dtype | None): Type of the result; folding is done in the weights' type, at
            least float32.
    """
    wide = torch.promote_types(pointwise1.weight.dtype, torch.float32)
    dtype = dtype or pointwise1.weight.dtype

    def layer(weight, bias):
        return FoldedConv(weight[:, :, None, None].to(dtype), bias.to(dtype))

    weight, bias = _tensors(pointwise1, wide)
    first = layer(weight * norm.weight.to(wide), bias + weight @ norm.bias.to(wide))
    weight, bias = _tensors(pointwise2, wide)
    if layer_scale is not None:
        scale = layer_scale.flatten().to(wide)
        weight, bias = weight * scale[:, None], bias * scale
    conv = FoldedConv(*_tensors(depthwise, dtype), depthwise.groups)
    return FoldedConvNeXt(conv, FoldedNorm(norm.eps), first, layer(weight, bias), maskers)


def _tensors(layer: Any, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer in a type."""
    weight, bias = layer.weight, layer.bias
    return weight.to(dtype or weight.dtype), bias.to(dtype or bias.dtype)


class FoldedPatchify(FoldedConv):
    """A convolution on windows side by side."""

    @cached_property
    def packed(self) -> Tensor | None:
        """The weights as the CPU kernel reads them; None where there is none."""
        return ops.pack_patchify(self.weight, self.bias) if self._for_kernels() else None

    def __call__(self, x: Tensor) -> Tensor:
        """Compute a map (N, out, H // k, W // k), channels-last."""
        return ops.patchify(x.to(self.weight.dtype), self.weight, self.bias, self.packed)


def fold_downsampling(conv: nn.Conv2d, norm: nn.LayerNorm,
                      dtype: torch.dtype | None) -> dict[str, Any]:
    """The weights of the stem, or of what lies between two stages, by the parts of its steps."""
    weight, bias = _tensors(conv, dtype)
    return dict(conv=FoldedPatchify(weight.contiguous(memory_format=torch.channels_last), bias),
                norm=fold_norm(norm, dtype))


def fold_norm(norm: nn.LayerNorm, dtype: torch.dtype | None) -> FoldedNorm:
    """A layer norm with its weights in a type."""
    weight, bias = _tensors(norm, dtype)
    return FoldedNorm(norm.eps, weight, bias)


class DownsampleRun(StemRun):
    """What the steps between two stages read and write."""
    decision = Decision()

    @property
    def out(self) -> Tensor:
        """The map so far."""
        return self.y

    def decided(self) -> Decision:
        """Nothing is decided."""
        return self.decision


@runs('patchify', 'channel_norm')
def _whole_map(run, step):
    run.y = run.weights.named(step.part)(run.y)


@runs('depthwise_conv')
def _depthwise(run, step):
    conv = run.weights.named(step.part)
    run.y = conv.convolve(run.x.to(conv.weight.dtype), 1, 1)


@runs('pointwise')
def _pointwise(run, step):
    layer = run.weights.named(step.part)
    rows = run.y.movedim(1, -1) if run.rows is None else run.rows
    run.rows = F.linear(rows, layer.weight.flatten(1), layer.bias)


@runs('add_map', 'add_masked_map')
def _add(run, step):
    y = run.rows.movedim(-1, 1)
    run.out = add_masked(run, y) if step.kind == 'add_masked_map' else y.add_(run.x.to(y.dtype))


@runs('depthwise_norm_rows')
def _depthwise_patches(run, step):
    weights = run.weights
    run.rows = ops.depthwise_norm_patches(
        run.x, run.index, run.count, weights.taps, weights.depthwise.bias, run.patch_of(step),
        weights.norm.eps)


@runs('mlp_rows_add')
def _mlp_patches(run, step):
    first, second = run.weights.pointwise1, run.weights.pointwise2
    run.out = ops.mlp_add_patches_(
        run.out, run.identity, run.rows, run.index, run.count, first.weight, first.bias,
        second.weight, second.bias, run.patch_of(step), first.packed, second.packed)
