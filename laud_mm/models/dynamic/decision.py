"""Decision: which units of a block are computed, as data (method, section 1)."""
from dataclasses import dataclass, fields, replace
from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from laud_mm.specs import Rates


@dataclass(frozen=True)
class Decision:
    """What a block computes. Maskers make it, executors obey it.

    Masks hold 1 (or True) for a unit that is computed: bool in evaluation,
    floating with straight-through gradients in training. None: nothing of
    that kind is skipped.

    Attributes:
        layer (Tensor | None): (N, 1), the whole block.
        patches (Tensor | None): (N, Hm, Wm), patches of the output map.
        channels (Tensor | None): (N, groups), channel groups of the width.
    """
    layer: Optional[Tensor] = None
    patches: Optional[Tensor] = None
    channels: Optional[Tensor] = None

    @property
    def is_static(self):
        """True when the block has no masker: everything is computed."""
        return self.layer is None and self.patches is None and self.channels is None

    def map(self, fn):
        """Apply a function to every mask."""
        masks = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: fn(m) for k, m in masks.items() if m is not None})

    def detach(self):
        """The same decision without autograd history."""
        return self.map(Tensor.detach)


def expand_patches(patches, size, granularity):
    """Repeat each patch S x S times and crop to the output map.

    Args:
        patches (Tensor): (N, Hm, Wm).
        size (tuple[int, int]): Height and width of the output map.
        granularity (int): S.

    Returns:
        Tensor: (N, H, W), same dtype.
    """
    grown = patches.repeat_interleave(granularity, 1).repeat_interleave(granularity, 2)
    return grown[:, :size[0], :size[1]]


def _readers(positions, mid_size, stride, dilation):
    """Count, per conv1 output position, the active 3x3 windows that read it."""
    # A transposed convolution spreads every output position over the window it
    # reads; output_padding keeps the last row and column of an even map.
    rest = [m - ((o - 1) * stride + 1) for m, o in zip(mid_size, positions.shape[-2:])]
    return F.conv_transpose2d(
        positions[:, None], positions.new_ones(1, 1, 3, 3), stride=stride, padding=dilation,
        dilation=dilation, output_padding=rest)[:, 0]


def halo(positions, mid_size, stride, dilation):
    """Where conv1 is needed: inside the 3x3 window of an active output position.

    Differentiable in evenly shared parts: each window that reads a position
    gets an equal share of its gradient.

    Args:
        positions (Tensor): (N, H, W) float, 1 at active output positions.
        mid_size (tuple[int, int]): Height and width of conv1's output.
        stride (int): Stride of conv2.
        dilation (int): Dilation of conv2.

    Returns:
        Tensor: (N, *mid_size) float, 1 where conv1 is needed.
    """
    count = _readers(positions, mid_size, stride, dilation)
    return count / count.detach().clamp(min=1)


def decision_rates(shape, in_size, decision):
    """Activation rates of a decision, per image.

    Args:
        shape (BottleneckShape): Geometry of the block.
        in_size (tuple[int, int]): Height and width of the block's input.
        decision (Decision): The block's decision on N images.

    Returns:
        Rates: float32 tensors of shape (N,), or 1.0 where nothing is skipped;
        differentiable where the masks are.
    """
    decision = decision.map(Tensor.float)
    rates = {}
    if decision.layer is not None:
        rates['layer'] = decision.layer[:, 0]
    if decision.patches is not None:
        positions = expand_patches(decision.patches, shape.out_size(in_size),
                                   shape.spatial_granularity)
        rates['patch'] = positions.mean((1, 2))
        rates['halo'] = halo(positions, shape.mid_size(in_size), shape.stride2,
                             shape.dilation).mean((1, 2))
    if decision.channels is not None:
        rates['channel'] = decision.channels.mean(1)
        channels = decision.channels.repeat_interleave(shape.channel_granularity, 1)
        # A grouped convolution pairs channels of one convolution group only.
        per_group = channels.unflatten(1, (shape.groups, -1)).mean(2)
        rates['channel_pair'] = (per_group**2).mean(1)
    return Rates(**rates)
