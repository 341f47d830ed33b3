"""DynamicBlock: decide, then compute."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor
from torch.utils import checkpoint

from laud_mm import ops
from laud_mm.models.dynamic import ForwardPass, current_pass, run_program
from laud_mm.specs import Case, Program, Size, Work

_PROGRAMS_KEPT = 32  # per block, of the sizes that came last


class DynamicBlock(BaseModule):
    """A block that computes what its masker decides.

    A subclass sets `masker` (None in a static block) and implements `decide`, `run_masked`,
    `start`, `exact_work` and `static_decision`.

    Args:
        shape: Geometry and paradigms.
        with_cp (bool): Recompute activations in the backward pass.

    Attributes:
        owns_input (bool): Whether nobody else reads the block's input, so that
            the output may overwrite it.
    """

    def __init__(self, shape: Any, with_cp: bool = False, init_cfg: Any = None):
        super().__init__(init_cfg)
        self.shape, self.with_cp = shape, with_cp
        self.owns_input = False
        self._programs: dict[tuple, tuple[Case, Program, Any]] = {}

    def decide(self, x: Tensor) -> Any:
        """What the maskers decide on x, and what they found out besides: a tuple."""
        raise NotImplementedError

    def run_masked(self, x: Tensor, decision: Any, *found: Any) -> Tensor:
        """Run dense × mask, given what `decide` returned."""
        raise NotImplementedError

    def start(self, x: Tensor, static: bool) -> Any:
        """What the steps of a program read and write, on an input; `static`: nothing is skipped."""
        raise NotImplementedError

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
        return self.run(x, current_pass(self.training))

    def run(self, x: Tensor, own: ForwardPass) -> Tensor:
        """`forward` in a given pass."""
        size = self.in_size(x)
        if self.with_cp and self.training and x.requires_grad:
            x, decision = checkpoint.checkpoint(self._forward, x, own, use_reentrant=False)
        else:
            x, decision = self._forward(x, own)
        if own.record is not None:
            own.record.add(self.shape, size, decision)
        return x

    def _forward(self, x: Tensor, own: ForwardPass) -> tuple[Tensor, Any]:
        if not own.masked:
            return run_program(self, x, own.execution)
        if own.execution.static or self.masker is None:
            decision = self.static_decision()
            return self.run_masked(x, decision), decision
        decision, *found = self.decide(x)
        decision = own.execution.decide(self.shape.name, decision)
        return self.run_masked(x, decision, *found), decision

    def case(self, x: Tensor) -> Case:
        """The case of an input: what the choice of a program depends on."""
        return Case(self.shape, self.in_size(x), len(x), x.device.type,
                    ops.has_kernel(x.device), torch.is_grad_enabled(), self.owns_input)

    def program(self, x: Tensor, static: bool = False, plan: Any = None) -> tuple[Case, Program]:
        """The program that runs an input, with its case.

        Args:
            x (Tensor): The input.
            static (bool): Of the static block.
            plan (ExecutionPlan, optional): Chooses the route; default: the case's own.
        """
        key = (self.in_size(x), len(x), x.device.type, x.dtype, ops.has_kernel(x.device),
               torch.is_grad_enabled(), self.owns_input, static)
        kept = self._programs.get(key)
        if kept is None or kept[2] is not plan:
            case = self.case(x)
            route = self.shape.static_route if static else None
            if plan is not None and not static and plan.fits(x):
                route = plan.route(case)
            if len(self._programs) >= _PROGRAMS_KEPT:
                self._programs.clear()
            kept = self._programs[key] = case, self.shape.program(case, route), plan
        return kept[:2]
