"""FoldCache: keeps what was made from weights until they change."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .plain import ModuleWatch

_steps: int | None = None  # of all optimizers, counted once there is a fold


class FoldCache:
    """Keeps what was made from modules for as long as they stay plain and as they are.

    Anything that leaves a trace is seen: modules replaced, hooked, or set otherwise; tensors
    replaced, moved, or written in place; steps of any optimizer. Of what leaves none, writes
    to whole tensors on the CPU are seen (through `Tensor.data`, or NumPy), because a few values
    of each are compared; writes of single values, and on a GPU, where comparing would wait for
    it, are not, before `clear()`, which `train()` and `eval()` call. While gradients are
    recorded nothing is cached: the fold is part of the graph. Threads may share it: what is
    kept is swapped as one.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def clear(self) -> None:
        """Forget the folds."""
        self._kept = None

    def get(self, roots: Sequence[nn.Module], make: Callable[[torch.dtype | None], Any],
            why_not: Callable[[], str | None], called: nn.Module | None = None,
            weights: bool = True, unchanged: bool = False) -> tuple[Any, str | None]:
        """What was made from modules, or why they must be called one by one.

        Args:
            roots (Sequence[nn.Module]): Where all of the modules are.
            make (Callable): Makes the fold in the type that convolutions compute in.
            why_not (Callable): Why the modules are not plain; None: they are.
            called (nn.Module | None): See `ModuleWatch`.
            weights (bool): Whether the fold depends on tensors.
            unchanged (bool): Whether a `PassWatch` has found that all is as it was.

        Returns:
            tuple[Any, str | None]: The fold and None, or None and the reason.
        """
        if torch.compiler.is_compiling():  # what is compiled is checked by its own guards
            return make(compute_dtype(next(roots[0].parameters()))), None
        kept = self._kept
        if kept is None or not (unchanged or kept.is_current(roots)):
            self._kept = None
            reason = why_not()
            if reason is not None:
                return None, reason
            kept = _Kept(roots, ModuleWatch(roots, called, weights))
            if kept.watch.lasting:
                self._kept = kept
        lead = kept.watch.tensors[:1]
        dtype = compute_dtype(lead[0]) if lead else None
        if weights and torch.is_grad_enabled():
            return make(dtype), None
        if dtype not in kept.folds:
            kept.folds[dtype] = make(dtype)
        return kept.folds[dtype], None

    def __deepcopy__(self, memo: Any) -> FoldCache:
        return FoldCache()

    def __reduce__(self) -> tuple:
        return FoldCache, ()


class PassWatch:
    """Asks once, when a pass begins, whether all of a net is as it was, and not in every block.

    Where something has hooks, which may change anything on the way, blocks have to ask.
    """

    def __init__(self) -> None:
        self._seen: tuple[list[_Kept], ModuleWatch] | None = None

    def is_current(self, caches: Sequence[FoldCache]) -> bool:
        """Whether what these caches keep was made of modules that are as they were."""
        if self._seen is None or not caches:
            return False
        kept, watch = self._seen
        return (_same([cache._kept for cache in caches], kept) and watch.is_current()
                and all(own.steps == _steps for own in kept))

    def renew(self, caches: Sequence[FoldCache]) -> None:
        """Watch what these caches keep now, after a pass in which every block asked."""
        kept = [cache._kept for cache in caches]
        if not kept:
            return
        if self._seen is not None and _same(kept, self._seen[0]):
            return  # nothing to gain: there are hooks
        known = [own for own in kept if own is not None]
        self._seen = (known, ModuleWatch.merged([own.watch for own in known])) \
            if len(known) == len(kept) else None

    def __deepcopy__(self, memo: Any) -> PassWatch:
        return PassWatch()

    def __reduce__(self) -> tuple:
        return PassWatch, ()


def _same(one, other):
    return len(one) == len(other) and all(map(is_, one, other))


class _Kept:
    """Folds by type, and what their modules were."""

    def __init__(self, roots, watch):
        global _steps
        if _steps is None:
            _steps = 0
            register_optimizer_step_post_hook(_count_step)
        self.roots, self.watch, self.folds, self.steps = tuple(roots), watch, {}, _steps

    def is_current(self, roots):
        return (self.steps == _steps and all(map(is_, roots, self.roots))
                and self.watch.is_current())


def _count_step(*_):
    # Some optimizers write through `Tensor.data`.
    global _steps
    _steps += 1


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type that a convolution of this weight would compute in, under autocast or not."""
    device = tensor.device.type
    if device != 'meta' and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype
