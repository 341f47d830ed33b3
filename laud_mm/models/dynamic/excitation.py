"""Squeeze-and-excitation: scale a map's channels by what their means say."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .maskers import global_mean
from .plain import plain


@dataclass(frozen=True)
class Excitation:
    """The two linear layers between the channels' means and their scales.

    Attributes:
        weight1, bias1 (Tensor): (hidden, C) and (hidden,).
        weight2, bias2 (Tensor): (C, hidden) and (C,).
    """
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, as the operations take them."""
        return self.weight1, self.bias1, self.weight2, self.bias2

    def scales(self, means: Tensor) -> Tensor:
        """Turn means (N, C) into scales (N, C) between 0 and 1."""
        hidden = F.relu(F.linear(means.to(self.weight1.dtype), self.weight1, self.bias1))
        return torch.sigmoid(F.linear(hidden, self.weight2, self.bias2))

    def select(self, channels: Tensor) -> Excitation:
        """What is left of it when all channels but these (A,) are zero."""
        return Excitation(self.weight1.index_select(1, channels), self.bias1,
                          self.weight2.index_select(0, channels),
                          self.bias2.index_select(0, channels))


@plain
class SqueezeExcitation(nn.Module):
    """Scale the channels of a map by their means over the positions that are computed.

    Args:
        channels (int): Channels of the map.
        hidden (int): Hidden channels.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def excitation(self, dtype: torch.dtype | None = None) -> Excitation:
        """The weights as an `Excitation`, in another type where one is given."""
        dtype = dtype or self.fc1.weight.dtype
        tensors: list[Any] = [tensor for fc in (self.fc1, self.fc2)
                              for tensor in (fc.weight.flatten(1), fc.bias)]
        return Excitation(*(tensor.to(dtype) for tensor in tensors))

    def forward(self, y: Tensor, positions: Tensor | None = None) -> Tensor:
        """Scale y (N, C, H, W); means are over `positions` (N, H, W), 1 where computed."""
        if positions is None:
            means = global_mean(y)
        else:
            positions = positions.to(y.dtype)[:, None]
            # Where nothing is computed the means are 0, not 0/0.
            share = global_mean(positions).clamp(min=0.5 / positions[0].numel())
            means = global_mean(y * positions) / share
        hidden = F.relu(self.fc1(means.to(y.dtype)[:, :, None, None]))
        return y * torch.sigmoid(self.fc2(hidden)).to(y.dtype)
