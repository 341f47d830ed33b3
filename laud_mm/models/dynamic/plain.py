"""Plain modules: those that programs may read past, because they know all that they do.

A program reads the weights of a block's modules and calls no module. That gives what the
modules would give only while they are plain: of a known type, in evaluation, without hooks
or a forward of their own.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from laud_mm.framework import DropPath, ModuleDict, ModuleList, Sequential
from laud_mm.specs import OpSpec

_NORMS = {nn.BatchNorm2d, nn.SyncBatchNorm}
# By name, so that mmcv's operations stay optional.
_NORM_NAMES = {'mmcv.ops.sync_bn.SyncBatchNorm', 'mmengine.model.utils._BatchNormXd'}
_DROPOUTS = {nn.Dropout: 'p', DropPath: 'drop_prob'}
_PLAIN = {nn.Conv2d, nn.Linear, nn.LayerNorm, nn.Identity, nn.AvgPool2d, nn.MaxPool2d, nn.ReLU,
          nn.GELU,
          nn.Sequential, nn.ModuleDict, nn.ModuleList, Sequential, ModuleDict, ModuleList}

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
_hooks = itemgetter(*_HOOKS)
_state = itemgetter('_parameters', '_buffers', '_modules', 'training')
_SETTINGS: dict[type, Callable] = {
    nn.Conv2d: itemgetter('stride', 'padding', 'dilation', 'groups', 'padding_mode'),
    nn.MaxPool2d: itemgetter('kernel_size', 'stride', 'padding', 'dilation', 'ceil_mode',
                             'return_indices'),
    nn.GELU: itemgetter('approximate'),
    nn.AvgPool2d: itemgetter('kernel_size', 'stride', 'padding', 'ceil_mode',
                             'count_include_pad', 'divisor_override')}
_version = attrgetter('_version')
_SAMPLE = 4  # neighbouring values of a tensor that are looked at again


def plain(cls: type) -> type:
    """Register a class of ours whose forward programs know."""
    _PLAIN.add(cls)
    return cls


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that folds in evaluation."""
    kind = type(module)
    return kind in _NORMS or f'{kind.__module__}.{kind.__qualname__}' in _NORM_NAMES


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody sees a module's inputs or outputs, or changes them."""
    if torch.compiler.is_compiling():
        return True  # there is no telling
    return any(_hooks(module.__dict__)) or any(_global_dicts()) and bool(_global_hooks())


def settings(module: nn.Module) -> tuple | None:
    """What a convolution or pool computes besides its weights: strides, sizes; None: unknown."""
    if type(module) not in _SETTINGS:
        return None
    own = _SETTINGS[type(module)](module.__dict__)
    if type(module) is not nn.Conv2d:
        return own
    weight = module._parameters.get('weight')
    return None if weight is None else (*own, tuple(weight.shape))


def op_settings(op: OpSpec) -> tuple:
    """`settings` of a plain convolution or max pool as its spec says, padded to the same size."""
    kernel = op.kernel_size
    if op.kind == 'pool':
        return kernel, op.stride, kernel // 2, 1, False, False
    return ((op.stride,) * 2, (kernel // 2,) * 2, (1, 1), 1, 'zeros',
            (op.out_channels, op.in_channels, kernel, kernel))


def inside(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside a module, by name, without itself."""
    return ((name, module) for name, module in root.named_modules() if module is not root)


def why_not_plain(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Why named modules must be called one by one; None: programs may read past them."""
    if _global_hooks():
        return 'hooks are registered for all modules'
    for name, module in modules:
        kind, own = type(module), module.__dict__
        if any(_hooks(own)):
            return f'{name} has hooks'
        if 'forward' in own or '_call_impl' in own:
            return f'{name} has a forward of its own'
        if is_norm(module):
            if module.training:
                return f'{name} is in training mode'
            if module.running_mean is None:
                return f'{name} has no running statistics'
        elif kind in _DROPOUTS:
            if module.training and getattr(module, _DROPOUTS[kind]):
                return f'{name} drops: it is in training mode'
        elif kind not in _PLAIN:
            return f'{name} is a {kind.__name__}'
        if kind in (nn.Conv2d, nn.Linear) and own['_parameters'].get('weight') is None:
            return f'{name} has no plain weight'
        reason = getattr(module, 'why_not_plain', None)
        if reason is not None and (found := reason()):
            return f'{name} {found}'
    return None


def differentiating_forward() -> bool:
    """Whether forward-mode derivatives, or torch.func's transforms, are being taken.

    Operations of ours have no formulas for them, and none would be silently zero.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0)


def why_no_operations(x: Tensor) -> str | None:
    """Why operations of ours cannot run on an input, but its modules can; None: they can."""
    if differentiating_forward():
        return 'forward-mode derivatives are taken'
    return 'meta tensors hold no decisions' if x.is_meta else None


def _global_dicts() -> list[Any]:
    return [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks]


def _global_hooks() -> list[Any]:
    """Hooks of all modules, without those of torch's own FLOP counter: they change nothing."""
    return [hook for hooks in _global_dicts() for hook in hooks.values()
            if getattr(hook, '__module__', '') != 'torch.utils.module_tracker']


class ModuleWatch:
    """What modules were when something was made from them.

    Args:
        roots (Sequence[nn.Module]): Modules; all that is inside them is watched.
        called (nn.Module | None): One that is called whatever is kept, so its hooks may change.
        weights (bool): Whether the modules' tensors are watched too.
    """

    def __init__(self, roots: Sequence[nn.Module], called: nn.Module | None = None,
                 weights: bool = True):
        self._modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        self._dicts = [m.__dict__ for m in self._modules]
        self._types = list(map(type, self._modules))
        self._lengths = list(map(len, self._dicts))
        self._states = list(chain.from_iterable(map(_state, self._dicts)))
        self._seen_dicts = [own for m, own in zip(self._modules, self._dicts) if m is not called]
        children = [own['_modules'] for own in self._dicts]
        self._children = [own for own in children if own]
        self._child_modules = _values(self._children)
        self._child_counts = list(map(len, self._children))
        self._settings = [(own, get, get(own)) for m, own in zip(self._modules, self._dicts)
                          for get in _settings_of(m)]
        slots = [tensors for own in self._dicts for tensors in (own['_parameters'],
                                                                own['_buffers']) if tensors]
        self._slots = slots if weights else []
        self._in_slots = _values(self._slots)
        self.tensors: list[Tensor] = [t for t in self._in_slots
                                      if t is not None and t.is_floating_point()]
        # Others, such as fake ones, have no versions or no values to look at.
        self.lasting = all(type(t) in (Tensor, nn.Parameter) and not t.is_inference()
                           for t in self.tensors)
        if self.lasting:
            self._versions = list(map(_version, self.tensors))
            self._pointers = list(map(Tensor.data_ptr, self.tensors))
            self._samples: list[list[Tensor]] = _samples(self.tensors)
            self._sampled = [torch.cat(own) for own in self._samples]

    @classmethod
    def merged(cls, watches: Sequence[ModuleWatch]) -> ModuleWatch:
        """One for the modules of all of them; hooks of every module count."""
        own = cls.__new__(cls)
        for name in _LISTS:
            setattr(own, name, list(chain.from_iterable(getattr(w, name) for w in watches)))
        own._seen_dicts = own._dicts
        own.lasting = all(w.lasting for w in watches)
        samples: dict[torch.dtype, list[Tensor]] = {}
        values: dict[torch.dtype, list[Tensor]] = {}
        for watch in watches:
            for views, seen in zip(watch._samples, watch._sampled):
                samples.setdefault(seen.dtype, []).extend(views)
                values.setdefault(seen.dtype, []).append(seen)
        own._samples, own._sampled = list(samples.values()), list(map(torch.cat, values.values()))
        return own

    def is_current(self) -> bool:
        """Whether nothing has changed. Runs in every pass, or block: no Python loops."""
        return (self._types == list(map(type, self._modules))
                and self._lengths == list(map(len, self._dicts))
                and all(map(is_, chain.from_iterable(map(_state, self._dicts)), self._states))
                and not any(chain.from_iterable(map(_hooks, self._seen_dicts)))
                and not any(_global_dicts())
                and self._child_counts == list(map(len, self._children))
                and all(map(is_, _values(self._children), self._child_modules))
                and all([get(own) == value for own, get, value in self._settings])
                and self._same_tensors())

    def _same_tensors(self):
        now = _values(self._slots)
        return (len(now) == len(self._in_slots) and all(map(is_, now, self._in_slots))
                and self._versions == list(map(_version, self.tensors))
                and self._pointers == list(map(Tensor.data_ptr, self.tensors))
                # Writes through `Tensor.data` or NumPy leave no other trace.
                and all([torch.equal(torch.cat(own), old)
                         for own, old in zip(self._samples, self._sampled)]))


# What `ModuleWatch.merged` joins.
_LISTS = ('_modules', '_dicts', '_types', '_lengths', '_states', '_children', '_child_modules',
          '_child_counts', '_settings', '_slots', '_in_slots', 'tensors', '_versions', '_pointers')


def _values(dicts):
    return list(chain.from_iterable(map(dict.values, dicts)))


_eps = itemgetter('eps')


def _settings_of(module) -> tuple[Callable, ...]:
    if type(module) in _SETTINGS:
        return (_SETTINGS[type(module)],)
    return (_eps,) if is_norm(module) or isinstance(module, nn.LayerNorm) else ()


def _samples(tensors):
    """A few values of every tensor on the CPU, its largest among them, as views by type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and tensor.device.type == 'cpu':  # elsewhere reading would wait
            tensor = tensor.detach()
            if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                tensor = tensor.permute(0, 2, 3, 1)
            top = int(tensor.abs().argmax())
            if tensor.is_contiguous():
                start = max(min(top, tensor.numel() - _SAMPLE), 0)
                view = tensor.view(-1)[start:start + _SAMPLE]
            else:
                view = tensor[tuple(map(int, np.unravel_index(top, tensor.shape)))].view(1)
            groups.setdefault(tensor.dtype, []).append(view)
    return list(groups.values())
