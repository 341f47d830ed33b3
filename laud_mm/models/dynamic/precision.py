"""The types that maskers compute in."""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_NOTHING = nullcontext()


def no_autocast(device: torch.device) -> AbstractContextManager:
    """A layer's own precision: neither decisions nor counts should depend on autocast."""
    # Entering an autocast costs as much as a small step, and meta tensors know none.
    if device.type == 'meta' or not torch.is_autocast_enabled(device.type):
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


def own_dtype(layer: Any) -> torch.dtype:
    """Type of what a layer reads: of its weights, or float32 where they are quantised."""
    weight = layer.weight
    return weight.dtype if isinstance(weight, Tensor) else torch.float32
