"""Control what a backbone decides: replay recorded decisions, or force rates."""
from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from zlib import crc32

import torch

from laud_mm.specs.arguments import check_fraction

from .execution import executing


def override_decisions(backbone: Any, override: Callable[[str, Any], Any]
                       ) -> AbstractContextManager[Any]:
    """Let a function change what the maskers decide, in this thread.

    The maskers still run, so that timings include them.

    Args:
        backbone (LAUDBackbone): The backbone.
        override (Callable): `override(block_name, decision) -> Decision`.
    """
    return executing(backbone, override=override)


def replay(backbone: Any, decisions: dict[str, Any]) -> AbstractContextManager[Any]:
    """Make every block decide as recorded, for example in another executor.

    Args:
        backbone (LAUDBackbone): The backbone.
        decisions (dict[str, Decision]): From `ActivationRecord.decisions`.
    """
    return override_decisions(backbone, lambda name, _: decisions[name])


def force_rate(backbone: Any, rate: float | dict[str, float],
               seed: int = 0) -> AbstractContextManager[Any]:
    """Turn on an exact share of randomly chosen units, whatever the maskers say.

    Args:
        backbone (LAUDBackbone): The backbone.
        rate (float | dict[str, float]): Share of units on, in [0, 1], or one for
            each block by its name. A block decides on its N samples together; a
            count that is not whole is rounded up or down at random, block by
            block, so that the rate holds over the network.
        seed (int): Seed of the choice, the same in every forward pass.

    Raises:
        ValueError: If a rate is out of its range, or a block has none.
    """
    names = [block.shape.name for block in backbone.blocks() if block.masker is not None]
    rates = rate if isinstance(rate, dict) else dict.fromkeys(names, rate)
    if set(names) - set(rates):
        raise ValueError(f'rate must name every block that decides, got none for '
                         f'{", ".join(sorted(set(names) - set(rates)))}')
    for name in names:
        check_fraction('rate', rates[name])

    def override(name, decision):
        # One generator per block: the choice must not depend on the execution.
        generator = torch.Generator().manual_seed(crc32(f'{seed}/{name}'.encode()))
        return decision.map(lambda mask: random_mask(mask, rates[name], generator))
    return override_decisions(backbone, override)


def random_mask(mask, rate, generator=None):
    """A mask like `mask` with an exact share `rate` of its units on, at random places.

    A count that is not whole is rounded up or down at random.
    """
    count = math.floor(rate * mask.numel() + torch.rand((), generator=generator).item())
    order = torch.randperm(mask.numel(), generator=generator)
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view(mask.shape).to(mask.device, mask.dtype)
