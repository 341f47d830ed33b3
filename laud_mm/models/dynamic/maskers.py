"""Maskers: look at a block's input and decide what to compute (method, section 2)."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laud_mm import ops
from laud_mm.specs import CHANNEL_MASKERS, BottleneckShape, ConvNeXtShape
from laud_mm.specs.arguments import check_choice
from laud_mm.specs.bottleneck import MASKS

from .decision import Decision
from .plain import inside, plain, why_not_plain
from .precision import no_autocast, own_dtype


def gumbel_decide(logit_on: Tensor, logit_off: Tensor, temperature: float, noise: bool = True,
                  threshold: float = 0.5) -> Tensor:
    """Sample on/off with Gumbel-Softmax: hard forward, straight-through backward.

    Over two classes, softmax((logits + gumbel) / t) is a sigmoid of the logit
    difference plus the difference of two Gumbel samples.

    Args:
        logit_on (Tensor): Logits of "compute", any shape.
        logit_off (Tensor): Logits of "skip", same shape.
        temperature (float): Gumbel temperature, above 0.
        noise (bool): False leaves the sampling noise out.
        threshold (float): Probability from which on a unit is on, in (0, 1).

    Returns:
        Tensor: Same shape, values 0 and 1.
    """
    margin = logit_on - logit_off
    if noise:
        # -log(Exponential) is a Gumbel sample.
        margin = margin + (torch.empty_like(margin).exponential_().log()
                           - torch.empty_like(margin).exponential_().log())
    soft = torch.sigmoid(margin / temperature)
    # As `soft >= threshold`, but exact at equal logits.
    hard = (margin >= temperature * math.log(threshold / (1 - threshold))).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the value is exactly 0 or 1


def global_mean(x):
    """Average over the positions of a map: (N, C, H, W) to (N, C)."""
    if x.device.type == 'cpu' and x.dtype == torch.float32:
        # A matrix product reads a large map faster than mean() does, a pool a small one.
        if x.numel() > 1 << 20 and x.is_contiguous(memory_format=torch.channels_last):
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            weights = rows.new_full((1, rows.shape[1]), 1 / rows.shape[1])
            return torch.matmul(weights, rows)[:, 0]
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)
    return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _difference(layer):
    """Weight and bias of logit_on - logit_off, all that counts in evaluation."""
    (on, off), (bias_on, bias_off) = layer.weight.flatten(1).chunk(2), layer.bias.chunk(2)
    return on - off, bias_on - bias_off


def decide_patches(x: Tensor, weight: Tensor, bias: Tensor, window: int | None) -> Tensor:
    """Decide on patches by the difference of logits.

    Args:
        x (Tensor): (N, C, H, W), the block's input.
        weight (Tensor): (C,), see `TwoLogitMasker.difference`.
        bias (Tensor): (1,).
        window (int | None): See `SpatialMasker`.

    Returns:
        Tensor: (N, Hm, Wm) bool.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    return ops.patch_mask(x, weight, bias, window or ops.WHOLE)


def decide_channels(x: Tensor, weight: Tensor, bias: Tensor, kind: str,
                    inner: tuple[Tensor, Tensor] | None) -> Tensor:
    """Decide on channel groups by the difference of logits.

    Args:
        x (Tensor): (N, C, H, W), the block's input.
        weight (Tensor): (groups, hidden), see `TwoLogitMasker.difference`.
        bias (Tensor): (groups,).
        kind (str): See `ChannelMasker`.
        inner (tuple | None): Weight and bias of the layer before the last.

    Returns:
        Tensor: (N, groups) bool.
    """
    if kind == 'conv_linear' and inner is not None:
        x = F.relu(F.conv2d(x.to(weight.dtype), *inner))
    pooled = ops.position_means(x.contiguous(memory_format=torch.channels_last)).to(weight.dtype)
    if kind == 'mlp' and inner is not None:
        pooled = F.relu(F.linear(pooled, *inner))
    return ~(torch.addmm(bias, pooled, weight.t()) < 0)  # NaN is on


class Masker(nn.Module):
    """Base: samples a mask in training, decides on one in evaluation.

    Attributes:
        temperature (float): Gumbel temperature, set by the activation hook.
        noise (bool): Whether training samples; False decides by the logits alone.
        loaded (bool): Whether the weights came from a checkpoint.
    """

    def __init__(self, noise=True, temperature=1.0):
        super().__init__()
        self.temperature = temperature
        self.noise = noise
        self.loaded = False

    def logits(self, x: Tensor) -> Tensor:
        """What the decision on the block's input rests on."""
        raise NotImplementedError

    def sample(self, x: Tensor) -> Tensor:
        """Draw the mask (N, *units) of 0 and 1 in training, differentiable."""
        raise NotImplementedError

    def decide(self, x: Tensor) -> Tensor:
        """Return the mask (N, *units) bool in evaluation."""
        raise NotImplementedError

    def why_not_plain(self) -> str | None:
        """See the function of that name."""
        return 'decides as in training' if self.training else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask (N, *units): of 0 and 1 in training, else bool."""
        with no_autocast(x.device):
            return self.sample(x) if self.training else self.decide(x)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # All of it, in the right shape: a masker that loaded half way is a fresh one.
        self.loaded = self.loaded or all(
            prefix + name in state_dict and state_dict[prefix + name].shape == own.shape
            for name, own in self.state_dict().items())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class TwoLogitMasker(Masker):
    """Base: `logits` returns (N, 2, *units): index 0 is "compute", 1 is "skip"."""
    _difference: Tensor | None = None

    def sample(self, x: Tensor) -> Tensor:
        on, off = self.logits(x).unbind(1)
        self._difference = on - off
        return gumbel_decide(on, off, self.temperature, self.noise)

    def take_difference(self) -> Tensor | None:
        """logit_on - logit_off of the mask that was sampled last, (N, *units); only once."""
        # Kept no longer: a copy of the model must not need its history.
        last, self._difference = self._difference, None
        return last

    def difference(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of logit_on - logit_off, all that counts in evaluation."""
        raise NotImplementedError

    def decide_by(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Decide by the `difference`: the mask (N, *units) bool."""
        raise NotImplementedError

    def decide(self, x: Tensor) -> Tensor:
        if why_not_plain(inside(self)) is None:
            return self.decide_by(x, *self.difference())
        on, off = self.logits(x).unbind(1)
        return ~(on < off)  # NaN is on


@plain
class SpatialMasker(TwoLogitMasker):
    """Average pool to the patch grid, then a 1x1 convolution to two logits.

    Args:
        in_channels (int): Channels of the block's input.
        window (int | None): Side of a pooling window, S x the block's stride;
            None pools the whole map (layer skipping).
        noise (bool): See `gumbel_decide`.
    """

    def __init__(self, in_channels: int, window: int | None, noise: bool = True):
        super().__init__(noise)
        self.window = window
        self.conv = nn.Conv2d(in_channels, 2, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights: nearly every unit starts on."""
        # Small weights, so that the bias decides at first however wide the input is.
        nn.init.normal_(self.conv.weight, std=0.01)
        with torch.no_grad():
            bias: Any = self.conv.bias
            bias.zero_()[0] = 5.0

    def pool(self, x: Tensor) -> Tensor:
        """Means of the windows: (N, C, Hm, Wm)."""
        if self.window is None:
            return global_mean(x)[:, :, None, None]
        # The last window is partial, like the last patch.
        return F.avg_pool2d(x, self.window, ceil_mode=True, count_include_pad=False)

    def logits(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x).to(own_dtype(self.conv)))

    def difference(self) -> tuple[Tensor, Tensor]:
        weight, bias = _difference(self.conv)
        return weight[0], bias  # (C,) and (1,)

    def decide_by(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return decide_patches(x, weight, bias, self.window)


@plain
class ChannelMasker(TwoLogitMasker):
    """Global average pool, then an MLP to two logits per channel group.

    Args:
        in_channels (int): Channels of the block's input.
        groups (int): Channel groups of the bottleneck width.
        hidden (int): Hidden units of the 'mlp' and 'conv_linear' kinds.
        kind (str): 'mlp' (two linear layers), 'linear' (one), or 'conv_linear'
            (a 1x1 convolution before the pool, then one linear layer).
        noise (bool): See `gumbel_decide`.
    """

    def __init__(self, in_channels: int, groups: int, hidden: int, kind: str = 'mlp',
                 noise: bool = True):
        super().__init__(noise)
        check_choice('masker.channel', kind, CHANNEL_MASKERS)
        self.kind = kind
        if kind == 'mlp':
            self.fc1 = nn.Linear(in_channels, hidden)
        elif kind == 'conv_linear':
            self.conv = nn.Conv2d(in_channels, hidden, 1)
        self.fc2 = nn.Linear(in_channels if kind == 'linear' else hidden, 2 * groups)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights: most groups start on."""
        layers: Any = self.children()
        for layer in layers:
            layer.reset_parameters()
        with torch.no_grad():
            on, off = self.fc2.bias.chunk(2)
            on.fill_(2.0)
            off.fill_(-2.0)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees: (N, hidden), or (N, C) of the 'linear' kind."""
        if self.kind == 'conv_linear':
            x = F.relu(self.conv(x.to(own_dtype(self.conv))))
        pooled = global_mean(x).to(own_dtype(self.fc2))
        return F.relu(self.fc1(pooled)) if self.kind == 'mlp' else pooled

    def logits(self, x: Tensor) -> Tensor:
        return self.fc2(self.features(x)).unflatten(1, (2, -1))

    def inner(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the layer before the last; None where there is none."""
        layer: Any = {'mlp': 'fc1', 'conv_linear': 'conv'}.get(self.kind)
        layer = layer and getattr(self, layer)
        return layer and (layer.weight, layer.bias)

    def difference(self) -> tuple[Tensor, Tensor]:
        return _difference(self.fc2)  # (groups, hidden) and (groups,)

    def decide_by(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return decide_channels(x, weight, bias, self.kind, self.inner())


class MaskerSet(nn.Module):
    """Base: all maskers of one block, its children.

    Attributes:
        frozen (bool): Whether the backbone froze it, with its stage.
    """
    frozen = False

    @property
    def loaded(self) -> bool:
        """Whether all maskers' weights came from a checkpoint."""
        return all(m.loaded for m in self.children())

    def reset_parameters(self) -> None:
        """Fresh weights for the maskers that no checkpoint filled."""
        maskers: Any = self.children()
        for masker in maskers:
            if not masker.loaded:
                masker.reset_parameters()

    def set_temperature(self, temperature: float) -> None:
        """Set the Gumbel temperature of all maskers."""
        maskers: Any = self.children()
        for masker in maskers:
            masker.temperature = float(temperature)


@plain
class BlockMasker(MaskerSet):
    """All maskers of a convolutional block: makes its `Decision`.

    Args:
        shape (BottleneckShape | ConvNeXtShape): Geometry and paradigms of the block.
        noise (bool): See `gumbel_decide`.
    """

    def __init__(self, shape: BottleneckShape | ConvNeXtShape, noise: bool = True):
        super().__init__()
        if shape.layer_skipping:
            self.layer = SpatialMasker(shape.in_channels, None, noise)
        if shape.spatial_skipping:
            self.spatial = SpatialMasker(shape.in_channels,
                                         shape.spatial_granularity * shape.stride, noise)
        if isinstance(shape, BottleneckShape) and shape.channel_skipping:
            self.channel = ChannelMasker(shape.in_channels, shape.channel_groups,
                                         shape.masker_hidden, shape.channel_masker, noise)

    def differences(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By masker, see `TwoLogitMasker.difference`; as kernels of the device read them."""
        maskers: Any = self.named_children()
        return {name: self._as_read(name, *masker.difference()) for name, masker in maskers}

    @staticmethod
    def _as_read(name, weight, bias):
        if name == 'channel' or weight.device.type == 'cpu':
            return weight, bias
        # Else every pass would convert them, in kernels of their own.
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide), bias.to(wide)

    def forward(self, x: Tensor) -> Decision:
        """Decide from the block's input (N, C, H, W)."""
        found = {}
        maskers: Any = self.named_children()
        for name, masker in maskers:
            mask = MASKS[name]
            found[mask] = masker(x)
            take = getattr(masker, 'take_difference', None)  # others' maskers have none
            logits = take() if take and masker.training else None
            if logits is not None:
                found[f'{mask}_logits'] = logits
        return Decision(**{name: value.flatten(1) if name.startswith('layer') else value
                           for name, value in found.items()})

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Before version 0.2 the masker of a layer-skipping block was called `spatial` too.
        if hasattr(self, 'layer') and not hasattr(self, 'spatial'):
            for key in [k for k in state_dict if k.startswith(f'{prefix}spatial.')]:
                state_dict[f'{prefix}layer.{key.removeprefix(f"{prefix}spatial.")}'] = \
                    state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
