"""Execution: how the decisions of a forward pass are made, and which programs run.

What somebody asks for in a `with` block holds in that thread (and in what it awaits) only.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from laud_mm.specs.arguments import check_choice

from .record import ActivationRecord

MODES = ('auto', 'masked', 'skipping')


@dataclass(frozen=True)
class Execution:
    """How a backbone runs.

    Attributes:
        mode (str): 'masked', 'skipping', or 'auto': masked in training, skipping in
            evaluation, but dense where the plan says that this is faster.
        plan (ExecutionPlan | None): Which program of a block is the faster one, for 'auto'.
        static (bool): No masker, everything on: the `paradigm=None` net of the same weights.
        override (Callable | None): `(block_name, decision) -> Decision`, changes decisions.
        clock (StepClock | None): Runs every step, to time it.
    """
    mode: str = 'auto'
    plan: Any = None
    static: bool = False
    override: Callable[[str, Any], Any] | None = None
    clock: Any = None

    def __post_init__(self) -> None:
        check_choice('execution', self.mode, MODES)

    def is_masked(self, training: bool) -> bool:
        """Whether a module whose `training` flag is given runs dense × mask.

        Raises:
            RuntimeError: For 'skipping' in training.
        """
        if training and self.mode == 'skipping':
            raise RuntimeError("execution='skipping' runs in evaluation only, got a backbone in "
                               "training mode: call eval(), or use 'auto' or 'masked'")
        return training if self.mode == 'auto' else self.mode == 'masked'

    def decide(self, name: str, decision: Any) -> Any:
        """The decision of a block after the override."""
        if self.override is None or decision.is_static:
            return decision
        return self.override(name, decision)


@dataclass
class ForwardPass:
    """One forward pass of a backbone, as its blocks see it.

    Attributes:
        execution (Execution): How it runs.
        masked (bool): Whether the masked executor runs.
        record (ActivationRecord | None): Notes what blocks decide.
        unseen (Tensor | None): What the last block wrote, where nobody else can hold it: the
            next one may write over it.
        summed (Tensor | None): What the last block wrote, where no hook changed it.
        sums (MapSums | None): Of `summed`, where kernels added it up.
        called (dict[str, str]): Blocks that could not skip, and why: see `why_not_plain`.
        unchanged (bool): Whether all modules are known to be as they were in an earlier pass.
    """
    execution: Execution
    masked: bool
    record: ActivationRecord | None = None
    unseen: Tensor | None = None
    summed: Tensor | None = None
    sums: Any = None
    called: dict[str, str] = field(default_factory=dict)
    unchanged: bool = False

    def note(self, module: Any, name: str, reason: str) -> None:
        """Note that a block, or the stem, could not skip; once for each reason."""
        if _is_new(module, reason):
            self.called[name] = reason

    def warn(self, backbone: Any = None) -> None:
        """Say what was noted; and once of a backbone, that it skips at the price of gradients."""
        if (backbone is not None and not self.masked and not self.execution.static
                and torch.is_grad_enabled() and not torch.compiler.is_compiling()
                and self.record is not None
                and any(block.shape.paradigms for block in self.record.blocks)
                and _is_new(backbone, 'gradients')):
            warnings.warn(f'{type(backbone).__name__} evaluates with gradients on: skipping then '
                          'runs without its kernels, slower than the static net; use '
                          'torch.no_grad() or torch.inference_mode()', stacklevel=3)
        if self.called:
            (name, reason), *others = self.called.items()
            more = f', and {len(others)} more blocks' * bool(others)
            warnings.warn(f'{name} ({reason}){more}: computed module by module, all of it, '
                          'instead of skipping', stacklevel=3)


def _is_new(module, reason):
    """Whether a module has not been warned of something yet."""
    told = module.__dict__.setdefault('_told', set())
    new = reason not in told
    told.add(reason)
    return new


_pass: ContextVar[ForwardPass | None] = ContextVar('laud_mm_pass', default=None)
_asked: ContextVar[tuple[tuple[Any, dict], ...]] = ContextVar('laud_mm_asked', default=())


@contextmanager
def executing(backbone: Any, **changes: Any) -> Iterator[Any]:
    """Change how a backbone runs in this thread, see `Execution`."""
    token = _asked.set((*_asked.get(), (backbone, changes)))
    try:
        yield backbone
    finally:
        _asked.reset(token)


def current_execution(backbone: Any, default: Execution) -> Execution:
    """How a backbone runs now: its own setting, and what was asked for in this thread."""
    changes: dict[str, Any] = {}
    for asked, own in _asked.get():
        if asked is backbone:
            changes.update(own)
    return replace(default, **changes) if changes else default


@contextmanager
def forward_pass(own: ForwardPass) -> Iterator[None]:
    """Let the blocks that run meanwhile belong to a pass."""
    token = _pass.set(own)
    try:
        yield
    finally:
        _pass.reset(token)


def current_pass() -> ForwardPass | None:
    """The pass that a block belongs to; None where no backbone runs it."""
    return _pass.get()
