"""CUDA graphs: a forward pass is recorded once, and then launched as a whole.

Launched kernel by kernel, a network of a hundred layers costs the host more time than a GPU
needs to compute it.
"""
from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WARMUPS = 3  # untimed passes before a capture: weights are folded, libraries choose kernels


@contextmanager
def recording(graph: Any) -> Iterator[None]:
    """Record what is launched in the block into a `torch.cuda.CUDAGraph`.

    Where that fails, `torch.cuda.graph` of torch 2.11 leaves its own stream as the current one, and
    the allocator in the belief that it still records: memory that several streams used would not
    be used again. Both are set right here.
    """
    pool, device = torch.cuda.graph_pool_handle(), torch.cuda.current_device()
    with torch.cuda.stream(torch.cuda.current_stream()):  # the current one again afterwards
        try:
            with torch.cuda.graph(graph, pool=pool):
                yield
        except BaseException:
            _forget_pool(device, pool)
            raise


def _forget_pool(device, pool):
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # nothing is recorded: it failed before, or after all was recorded
        return
    torch._C._cuda_releasePool(device, pool)


class CapturedPass:
    """One forward pass on inputs of one kind, as a CUDA graph.

    Args:
        run (Callable): Takes a tensor on the GPU; what it launches is recorded.
        x (Tensor): An input; the graph reads a copy of it.

    Raises:
        RuntimeError: If something in `run` cannot be recorded, such as waiting for the device.
    """

    def __init__(self, run: Callable[[Tensor], Any], x: Tensor):
        with torch.cuda.device(x.device):
            self.x = x.detach().clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUPS):
                    run(self.x)
            torch.cuda.current_stream().wait_stream(stream)
            # Weights that autocast made within a graph must not be read outside of it.
            torch.clear_autocast_cache()
            self.graph = torch.cuda.CUDAGraph()
            try:
                with recording(self.graph):
                    self.outputs = run(self.x)
            finally:
                torch.clear_autocast_cache()

    def load(self, x: Tensor) -> None:
        """Take an input, for the next `replay`."""
        self.x.copy_(x)

    def replay(self) -> Any:
        """Run on what was loaded: the graph's own outputs, which the next replay writes over."""
        self.graph.replay()
        return self.outputs

    def __call__(self, x: Tensor) -> Any:
        """Run on an input."""
        self.load(x)
        return self.replay()


class PlainPass:
    """The same without a graph, on a copy of the input too."""

    def __init__(self, run: Callable[[Tensor], Any], x: Tensor):
        self.run, self.x = run, x.detach().clone()

    def load(self, x: Tensor) -> None:
        """See `CapturedPass`."""
        self.x.copy_(x)

    def replay(self) -> Any:
        """See `CapturedPass`."""
        return self.run(self.x)


def record_pass(run: Callable[[Tensor], Any], x: Tensor) -> CapturedPass | PlainPass:
    """A pass as it is best timed where x is: as a CUDA graph on a GPU, where this can be."""
    if not x.is_cuda:
        return PlainPass(run, x)
    try:
        return CapturedPass(run, x)
    except RuntimeError as error:
        _warn(error)
        return PlainPass(run, x)


class GraphedBackbone(nn.Module):
    """A network in evaluation, captured once for every kind of input and then replayed.

    A kind is a shape, type and memory format. Decisions are made anew in every replay, and what
    is off is skipped, since counts stay on the device. Where capture is not possible (without a
    GPU, or for a network that waits for the device) the network runs as it is, after one warning.

    Outputs lie in memory of the graph: copy what must outlive the next call. A graph keeps the
    weights that it was captured with: call `clear` when they change.

    Args:
        net (Callable): A backbone, deployed or not, or a function of a tensor.
        most (int): Graphs that are kept; the one used longest ago goes. Each has memory of its
            own for all maps of the pass.
        capture (Callable): `(net, x)` to what runs inputs like x.

    Attributes:
        graphs (OrderedDict): By kind of input; None where one cannot be captured.

    Raises:
        ValueError: If `most` is not a positive int.
    """

    def __init__(self, net: Callable[[Tensor], Any], most: int = 4,
                 capture: Callable[[Callable, Tensor], Callable] = CapturedPass):
        super().__init__()
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f'most must be a positive int, got {most!r}')
        self.net, self.most, self.capture = net, most, capture
        self.graphs: OrderedDict[tuple, Callable | None] = OrderedDict()
        self._warned = False

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """As of the network.

        Args:
            x (Tensor): (N, C, H, W) images.
        """
        kind = _kind(x)
        if kind not in self.graphs:
            while len(self.graphs) >= self.most:  # before a new one takes memory
                self.graphs.popitem(last=False)
            self.graphs[kind] = self._captured(x)
        self.graphs.move_to_end(kind)
        graph = self.graphs[kind]
        return self.net(x) if graph is None else graph(x)

    def clear(self) -> None:
        """Forget all graphs."""
        self.graphs.clear()

    def train(self, mode: bool = True) -> GraphedBackbone:
        """Set training mode; graphs are captured anew afterwards."""
        self.clear()
        return super().train(mode)

    def _captured(self, x):
        try:
            if self.capture is CapturedPass and not x.is_cuda:
                raise RuntimeError(f'images are on {x.device}, graphs are of CUDA devices')
            return self.capture(self.net, x)
        except RuntimeError as error:
            if not self._warned:
                _warn(error)
            self._warned = True
            return None


def _warn(error):
    warnings.warn(f'the network runs without a CUDA graph, kernel by kernel: '
                  f'{str(error).splitlines()[0]}', stacklevel=4)


def _kind(x):
    """What a graph is made for."""
    autocast = torch.is_autocast_enabled(x.device.type)
    return (tuple(x.shape), x.stride(), x.dtype, x.device,
            torch.get_autocast_dtype(x.device.type) if autocast else None)


def graphed(run: Callable[[Tensor], Any], device: Any, most: int = 1) -> Callable[[Tensor], Any]:
    """A function of a tensor as it is best timed on a device: graphed on a GPU."""
    return GraphedBackbone(run, most) if torch.device(device).type == 'cuda' else run
