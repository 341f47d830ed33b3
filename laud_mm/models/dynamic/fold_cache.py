"""FoldCache: keeps what was made from weights until they change."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class FoldCache:
    """Keeps a fold until a weight under it changes.

    A fold is made anew when a source tensor was modified in place, moved or
    replaced, when a module was replaced, when autocast asks for another type,
    and after `clear()`. Writes through `Tensor.data` leave no trace, so modules
    also clear their cache whenever `train()` or `eval()` is called, which every
    evaluation loop does. While gradients are recorded nothing is cached: the
    fold is part of the graph.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget the fold."""
        self._modules: Any = None
        self._sources: Any = None
        self._dtype: Any = None
        self._value: Any = None

    def get(self, modules: list, build: Callable[[torch.dtype], Any]) -> Any:
        """Return `build(dtype)`, cached for as long as the modules stay as they are.

        Args:
            modules (list[nn.Module]): Convolutions and norms that the fold is
                made from, a convolution first.
            build (Callable): Makes the fold in the type it is given.
        """
        dtype = compute_dtype(modules[0].weight)
        if torch.is_grad_enabled():
            return build(dtype)
        if not self._is_current(modules, dtype):
            sources = [(tensors, name, tensor) for module in modules
                       for tensors in (module._parameters, module._buffers)
                       for name, tensor in tensors.items() if tensor is not None]
            if any(tensor.is_inference() for *_, tensor in sources):
                return build(dtype)  # inference tensors keep no version to watch
            self._sources = [(*source, source[-1].data_ptr(), source[-1]._version)
                             for source in sources]
            self._modules, self._dtype, self._value = modules, dtype, build(dtype)
        return self._value

    def _is_current(self, modules, dtype):
        # Runs in every block of every forward pass, so it reads the modules' own
        # dicts: nn.Module's attribute lookup is several times slower.
        if self._value is None or dtype != self._dtype:
            return False
        return all(new is old for new, old in zip(modules, self._modules)) and all(
            tensors[name] is tensor and tensor.data_ptr() == pointer
            and tensor._version == version
            for tensors, name, tensor, pointer, version in self._sources)

    def __deepcopy__(self, memo):
        return FoldCache()

    def __reduce__(self):
        return FoldCache, ()


def compute_dtype(tensor):
    """The type that a convolution of this weight would compute in, under autocast or not."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype
