"""DynamicBlock: decide, then compute."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

from laud_mm import ops
from laud_mm.framework import BaseModule
from laud_mm.models.dynamic import Execution, FoldCache, ForwardPass, current_pass, run_program
from laud_mm.models.dynamic.plain import (
    inside,
    is_hooked,
    why_no_operations,
    why_not_plain,
)
from laud_mm.specs import Case, Program, Size, Work

_PROGRAMS_KEPT = 32  # per block, of the sizes that came last


class DynamicBlock(BaseModule):
    """A block that computes what its masker decides.

    In evaluation it skips by running a program, where its modules are plain (see
    `why_not_plain`); else they are called one by one, and what is off is masked.

    A subclass sets `masker` (None in a static block) and implements `decide`, `run_masked`,
    `start`, `exact_work` and `static_decision`, and `fold` if its programs read folded weights.

    Args:
        shape: Geometry and paradigms.
        with_cp (bool): Recompute activations in the backward pass.

    Attributes:
        owns_input (bool): Whether nothing else in the net reads the block's input, so that
            the output may overwrite it.
        folds (bool): Whether `fold` depends on weights.
        cache (FoldCache): Keeps what `fold` made.
    """

    folds = False

    def __init__(self, shape: Any, with_cp: bool = False, init_cfg: Any = None):
        super().__init__(init_cfg)
        self.shape, self.with_cp = shape, with_cp
        self.owns_input = False
        self.cache = FoldCache()
        self._programs: dict[tuple, tuple[Case, Program, Any]] = {}

    def decide(self, x: Tensor) -> Any:
        """What the maskers decide on x, and what they found out besides: a tuple."""
        raise NotImplementedError

    def run_masked(self, x: Tensor, decision: Any, *found: Any) -> Tensor:
        """Run dense × mask, given what `decide` returned."""
        raise NotImplementedError

    def start(self, x: Tensor, static: bool, weights: Any) -> Any:
        """What the steps of a program read and write, on an input; `static`: nothing is skipped.

        `weights` is what `fold` returned.
        """
        raise NotImplementedError

    def fold(self, dtype: torch.dtype | None) -> Any:
        """What programs read of the modules' weights, in the type that they compute in."""

    def why_not_plain(self) -> str | None:
        """Why the modules must be called one by one; None: programs may read past them."""
        return why_not_plain(inside(self))

    def weights(self, unchanged: bool = False) -> tuple[Any, str | None]:
        """What `fold` makes of the modules as they are now, and None; or None and the reason.

        `unchanged`: see `FoldCache.get`.
        """
        return self.cache.get((self,), self.fold, self.why_not_plain, self, self.folds, unchanged)

    def exact_work(self, case: Case, route: Any, decision: Any) -> Mapping[str, Sequence[Work]]:
        """The work of a decision on a route, as `Program.calls` takes it. Synchronises."""
        raise NotImplementedError

    def static_decision(self) -> Any:
        """The decision of a block that has no masker."""
        raise NotImplementedError

    def in_size(self, x: Tensor) -> Size:
        """Size of an input as op specs count it: (height, width)."""
        return tuple(x.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """Decide, then compute.

        Args:
            x (Tensor): The block's input: (N, C, H, W), or (N, T, C) tokens.

        Returns:
            Tensor: The output. The decision goes to the record of the forward pass.
        """
        own = current_pass()
        if own is not None:
            return self.run(x, own)
        own = ForwardPass(Execution(), self.training)  # called alone
        y = match_format(self.run(x, own), x)
        own.warn()
        return y

    def run(self, x: Tensor, own: ForwardPass) -> Tensor:
        """`forward` in a given pass."""
        size, hooked = self.in_size(x), is_hooked(self)
        owned = self.owns_input and own.unseen is x and not hooked
        if own.summed is not x:
            own.sums = None
        if self.with_cp and self.training and x.requires_grad:
            x, decision = checkpoint.checkpoint(self._forward, x, own, False, use_reentrant=False)
        else:
            x, decision = self._forward(x, own, owned)
        if own.record is not None:
            own.record.add(self.shape, size, decision)
        own.unseen = own.summed = None if hooked else x
        return x

    def _forward(self, x: Tensor, own: ForwardPass, owned: bool) -> tuple[Tensor, Any]:
        sums, own.sums = own.sums, None
        if not own.masked:
            weights, reason = self.weights(own.unchanged)
            reason = reason or why_no_operations(x)
            if reason is None:
                x, decision, own.sums = run_program(self, x, own.execution, weights, owned, sums)
                return x, decision
            own.note(self, self.shape.name, reason)
        if own.execution.static or self.masker is None:
            decision = self.static_decision()
            return self.run_masked(x, decision), decision
        decision, *found = self.decide(x)
        decision = own.execution.decide(self.shape.name, decision)
        return self.run_masked(x, decision, *found), decision

    def train(self, mode: bool = True) -> DynamicBlock:
        """Set training mode; the folded weights are made anew afterwards."""
        self.cache.clear()
        return super().train(mode)

    def case(self, x: Tensor, owns_input: bool = False) -> Case:
        """The case of an input: what the choice of a program depends on."""
        return Case(self.shape, self.in_size(x), len(x), x.device.type,
                    ops.has_kernel(x.device, x.dtype), torch.is_grad_enabled(), owns_input,
                    ops.has_dot_products(x))

    def program(self, x: Tensor, static: bool = False, plan: Any = None,
                owns_input: bool = False) -> tuple[Case, Program]:
        """The program that runs an input, with its case.

        Args:
            x (Tensor): The input.
            static (bool): Of the static block.
            plan (ExecutionPlan, optional): Chooses the route; default: the case's own.
            owns_input (bool): Whether the input may be written over.
        """
        key = (self.in_size(x), len(x), x.device.type, x.dtype,
               ops.has_kernel(x.device, x.dtype), torch.is_grad_enabled(), owns_input, static)
        kept = self._programs.get(key)
        if kept is None or kept[2] is not plan:
            case = self.case(x, owns_input)
            route = self.shape.static_route if static else None
            if plan is not None and not static and plan.fits(x):
                route = plan.route(case)
            if len(self._programs) >= _PROGRAMS_KEPT:
                self._programs.clear()
            kept = self._programs[key] = case, self.shape.program(case, route), plan
        return kept[:2]


def match_format(y: Tensor, like: Tensor) -> Tensor:
    """A map in the memory format of another: channels-last or contiguous."""
    return y if y.dim() != 4 or is_channels_last(like) else y.contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Whether a map is channels-last, and not contiguous as well."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) \
        and not x.is_contiguous()
