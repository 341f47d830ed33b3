"""Decision: which units of a block are computed, as data (method, section 1)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm.specs import Rates, Size


class Masks:
    """Base of the decisions: dataclasses of masks.

    Masks hold 1 (or True) for a unit that is computed: bool in evaluation,
    floating with straight-through gradients in training. None: nothing of
    that kind is skipped.
    """
    MASKS: ClassVar[tuple[str, ...]] = ()

    def masks(self) -> dict[str, Tensor]:
        """The masks by name, without those that are None."""
        own = {name: getattr(self, name) for name in self.MASKS}
        return {name: mask for name, mask in own.items() if mask is not None}

    @property
    def is_static(self) -> bool:
        """True when the block has no masker: everything is computed."""
        return not self.masks()

    def map(self, fn: Callable[[Tensor], Tensor]) -> Any:
        """Apply a function to every mask."""
        own: Any = self
        return replace(own, **{name: fn(mask) for name, mask in self.masks().items()})

    def together(self, others: Sequence[Any]) -> Any:
        """The decisions of several batches as those of one.

        Raises:
            ValueError: If maps or tokens are not equally many in all.
        """
        found = {}
        for name in (name for name, value in vars(self).items() if value is not None):
            parts = [getattr(other, name) for other in others]
            if len({part.shape[1:] for part in parts}) > 1:
                if not name.startswith('patches'):
                    raise ValueError(f'{name} must be equally many in all passes, got '
                                     f'{[tuple(part.shape) for part in parts]}')
                continue  # no loss looks at them
            found[name] = torch.cat(parts)
        own: Any = type(self)
        return own(**found)

    def detach(self) -> Any:
        """The same decision without autograd history."""
        own: Any = self
        return replace(own, **{k: v.detach() for k, v in vars(self).items() if v is not None})

    def rates(self, shape: Any, in_size: Size) -> Rates:
        """Activation rates per image: `Rates` of (N,), or 1.0 where nothing is skipped.

        Args:
            shape: Geometry of the block.
            in_size (tuple[int, int]): Height and width of the block's input.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Decision(Masks):
    """What a convolutional block computes. Maskers make it, executors obey it.

    Attributes:
        layer (Tensor | None): (N, 1), the whole block.
        patches (Tensor | None): (N, Hm, Wm), patches of the output map.
        channels (Tensor | None): (N, groups), channel groups of the width.
        layer_logits, patches_logits, channels_logits (Tensor | None): In training, what each
            was decided from before noise: units with logits above 0 are mostly on.
    """
    layer: Tensor | None = None
    patches: Tensor | None = None
    channels: Tensor | None = None
    layer_logits: Tensor | None = None
    patches_logits: Tensor | None = None
    channels_logits: Tensor | None = None

    MASKS = ('layer', 'patches', 'channels')

    def logits(self) -> dict[str, Tensor]:
        """What the masks were decided from, by the masks' names; empty in evaluation."""
        own = {name: getattr(self, f'{name}_logits') for name in self.MASKS}
        return {name: logits for name, logits in own.items() if logits is not None}

    def rates(self, shape: Any, in_size: Size) -> Rates:
        return decision_rates(shape, in_size, self)


@dataclass(frozen=True)
class TransformerDecision(Masks):
    """What a transformer block computes. Maskers make it, executors obey it.

    The class token is always computed, so no mask has a place for it.

    Attributes:
        tokens (Tensor | None): (N, patch tokens).
        heads (Tensor | None): (N, heads), attention heads and their channels of the MLP's input.
        branches (Tensor | None): (N, 2), the attention and the MLP branch.
        head_logits (Tensor | None): (N, heads), what `heads` was decided from.
        branch_logits (Tensor | None): (N, 2), what `branches` was decided from.
    """
    tokens: Tensor | None = None
    heads: Tensor | None = None
    branches: Tensor | None = None
    head_logits: Tensor | None = None
    branch_logits: Tensor | None = None

    MASKS = ('tokens', 'heads', 'branches')

    @property
    def all_tokens(self) -> Tensor | None:
        """(N, T) `tokens` with the class token, which is on, in front; None where `tokens` is."""
        return None if self.tokens is None else F.pad(self.tokens, (1, 0), value=1)

    def rates(self, shape: Any, in_size: Size) -> Rates:
        decision, rates = self.map(Tensor.float), {}
        if decision.tokens is not None:
            rates['token'] = decision.all_tokens.mean(1)
        if decision.heads is not None:
            rates['head'] = decision.heads.mean(1)
        if decision.branches is not None:
            rates['attn'], rates['mlp'] = decision.branches.unbind(1)
        return Rates(**rates)


def expand_patches(patches: Tensor, size: Size, granularity: int) -> Tensor:
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


def halo(positions: Tensor, mid_size: Size, stride: int, dilation: int) -> Tensor:
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


def decision_rates(shape: Any, in_size: Size, decision: Decision) -> Rates:
    """Activation rates of a decision, per image.

    Args:
        shape (BottleneckShape | ConvNeXtShape): Geometry of the block.
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
        if shape.halo:
            rates['halo'] = halo(positions, shape.mid_size(in_size), shape.stride2,
                                 shape.dilation).mean((1, 2))
    if decision.channels is not None:
        rates['channel'] = decision.channels.mean(1)
        channels = decision.channels.repeat_interleave(shape.channel_granularity, 1)
        # A grouped convolution pairs channels of one convolution group only.
        per_group = channels.unflatten(1, (shape.groups, -1)).mean(2)
        rates['channel_pair'] = (per_group**2).mean(1)
    return Rates(**rates)
