"""ActivationRecord: what every block of one forward pass decided, and what that cost."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from laud_mm.specs import NetworkSpec, OpSpec, Rates, Size, dynamic_flops, static_flops

from .decision import Masks
from .precision import no_autocast


@dataclass(frozen=True)
class BlockActivity:
    """One block in one forward pass.

    Attributes:
        shape (BottleneckShape | TransformerShape): Geometry of the block.
        in_size (tuple[int, int]): Height and width of its input; tokens and 1 for a transformer.
        decision (Decision | TransformerDecision): What it computed on the batch.
    """
    shape: Any
    in_size: Size
    decision: Masks

    def rates(self) -> Rates:
        """Activation rates, per image where something is skipped: `Rates` of (N,)."""
        return self.decision.rates(self.shape, self.in_size)


@dataclass
class ActivationRecord:
    """All decisions of one forward pass. Rates and FLOPs are worked out when asked for.

    Attributes:
        batch_size (int): N.
        stem (tuple[OpSpec, ...]): The work before the first block.
        blocks (list[BlockActivity]): In the order they ran.
        device (torch.device): Where the rates live.
        image_size (tuple[int, int] | None): Height and width of the images.
        op_specs (Callable | None): The backbone's: an image size to a `NetworkSpec`.
    """
    batch_size: int
    stem: tuple[OpSpec, ...]
    device: torch.device
    blocks: list[BlockActivity] = field(default_factory=list)
    image_size: Size | None = None
    op_specs: Callable[[Size], NetworkSpec] | None = None

    def add(self, shape: Any, in_size: Size, decision: Masks) -> None:
        """Note what the next block decided on an input of `in_size`."""
        self.blocks.append(BlockActivity(shape, in_size, decision))

    def detach(self) -> ActivationRecord:
        """The same record without autograd history, and without the backbone's `op_specs`."""
        blocks = [replace(b, decision=b.decision.detach()) for b in self.blocks]
        return ActivationRecord(self.batch_size, self.stem, self.device, blocks, self.image_size)

    @property
    def decisions(self) -> dict[str, Masks]:
        """Decisions by block name; feed them to `replay`."""
        return {b.shape.name: b.decision for b in self.blocks}

    def cost(self) -> ActivationCost:
        """Work out rates and FLOPs of every image.

        Returns:
            ActivationCost: Differentiable where the decisions are.
        """
        # Counts are exact in float32, not in what autocast may choose.
        with no_autocast(self.device):
            return self._cost()

    def _cost(self):
        names, rates, details, flops, static = [], [], [], [], []
        for block in self.blocks:
            block_rates, ops = block.rates(), block.shape.op_specs(block.in_size)
            names.append(block.shape.name)
            rates.append(self._per_image(block_rates.unit))
            details.append(block_rates)
            flops.append(self._per_image(dynamic_flops(ops, block_rates)))
            static.append(static_flops(ops))
        dynamic = [not b.decision.is_static for b in self.blocks]
        return ActivationCost(tuple(names), tuple(dynamic), torch.stack(rates), tuple(details),
                              torch.stack(flops), tuple(static),
                              dynamic_flops(self.stem, Rates()),
                              tuple(b.decision for b in self.blocks), self.image_size,
                              self.op_specs)

    def _per_image(self, value):
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        return value.expand(self.batch_size)

    # A copied model needs no history, and only leaf tensors can be copied or sent.

    def __deepcopy__(self, memo: dict) -> ActivationRecord:
        return self.detach()

    def __getstate__(self) -> dict:
        return dict(self.detach().__dict__)


@dataclass(frozen=True)
class ActivationCost:
    """Rates and FLOPs of one forward pass (B blocks, N images).

    Attributes:
        names (tuple[str, ...]): Block names.
        dynamic (tuple[bool, ...]): Whether each block decides at all.
        rates (Tensor): (B, N) float32, share of each block's units computed, see `Rates.unit`.
        block_rates (tuple[Rates, ...]): What the share of each block is made of.
        block_flops (Tensor): (B, N) float32, multiply-adds, maskers included.
        static_block_flops (tuple[int, ...] | Tensor): Multiply-adds of the static blocks; (B, N)
            where images have several sizes.
        stem_flops (int | Tensor): Multiply-adds of the stem; (N,) likewise.
        decisions (tuple[Decision | TransformerDecision, ...]): What each block computed.
        image_size, op_specs: See `ActivationRecord`; None where there are several passes.
        passes (tuple[ActivationCost, ...]): What this is the cost of together; empty: of one pass.
    """
    names: tuple[str, ...]
    dynamic: tuple[bool, ...]
    rates: torch.Tensor
    block_rates: tuple[Rates, ...]
    block_flops: torch.Tensor
    static_block_flops: tuple[int, ...] | torch.Tensor
    stem_flops: int | torch.Tensor
    decisions: tuple[Masks, ...] = ()
    image_size: Size | None = None
    op_specs: Callable[[Size], NetworkSpec] | None = None
    passes: tuple[ActivationCost, ...] = ()

    @classmethod
    def together(cls, costs: Sequence[ActivationCost]) -> ActivationCost:
        """The cost of several passes of one backbone, on all of their images."""
        if len(costs) == 1:
            return costs[0]
        images = [cost.rates.shape[1] for cost in costs]
        static, stems = [], []
        for cost, n in zip(costs, images):
            each = cost.block_flops.new_tensor(cost.static_block_flops)
            static.append(each[:, None].expand(-1, n))
            stems.append(each.new_tensor(cost.stem_flops).expand(n))
        rates = tuple(_rates_together(own, images, static[0])
                      for own in zip(*(c.block_rates for c in costs)))
        decisions = tuple(own[0].together(own) for own in zip(*(c.decisions for c in costs)))
        return cls(costs[0].names, costs[0].dynamic, torch.cat([c.rates for c in costs], 1), rates,
                   torch.cat([c.block_flops for c in costs], 1), torch.cat(static, 1),
                   torch.cat(stems), decisions, passes=tuple(costs))

    @property
    def flops(self) -> torch.Tensor:
        """(N,) multiply-adds of the backbone: F_dyn of each image."""
        return self.block_flops.sum(0) + self.stem_flops

    @property
    def static_flops(self) -> int | torch.Tensor:
        """Multiply-adds of the static backbone: F_static; (N,) where images have several sizes."""
        return sum(self.static_block_flops) + self.stem_flops

    @property
    def fraction(self) -> torch.Tensor:
        """(N,) F_dyn / F_static."""
        return self.flops / self.static_flops

    @property
    def block_fractions(self) -> torch.Tensor:
        """(B, N) FLOPs fraction of every block: r_b of each image."""
        static = torch.as_tensor(self.static_block_flops, dtype=self.block_flops.dtype,
                                 device=self.block_flops.device)
        return self.block_flops / static.view(len(static), -1)

    @property
    def mean_rates(self) -> torch.Tensor:
        """(B,) `rates`, averaged over the images."""
        return self.rates.mean(1)

    @property
    def mean_rate(self) -> torch.Tensor:
        """Scalar: average of `mean_rates` over the blocks that decide (1 if none does)."""
        chosen = self.mean_rates[self.rates.new_tensor(self.dynamic, dtype=torch.bool)]
        return chosen.mean() if len(chosen) else self.rates.new_ones(())


def _rates_together(rates, images, like):
    """One block's rates on the images of several passes."""
    found = {}
    for name in vars(rates[0]):
        parts = [getattr(own, name) for own in rates]
        if any(torch.is_tensor(part) for part in parts):
            found[name] = torch.cat([torch.as_tensor(part, dtype=like.dtype, device=like.device)
                                     .expand(n) for part, n in zip(parts, images)])
    return Rates(**found)
