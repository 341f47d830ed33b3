"""One compiled graph of a deployed network for all batches and sizes."""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked


class CompiledBackbone(nn.Module):
    """`torch.compile(fullgraph=True, dynamic=True)` of a deployed network, as one graph.

    torch compiles a batch of 1 apart from others unless told that the batch is not known, and
    checks in every call that no module changed, which a deployed one does not.

    Args:
        deployed (nn.Module): A `DeployedBackbone`, or the module of an exported one.
        backend (str): Of `torch.compile`.
    """

    def __init__(self, deployed: nn.Module, backend: Any = 'inductor'):
        super().__init__()
        self.deployed, self._backend = deployed, backend
        self._run = torch.compile(_own_code(deployed), fullgraph=True, dynamic=True,
                                  backend=backend,
                                  options=dict(guard_filter_fn=_keep_inputs))

    def __deepcopy__(self, memo: dict) -> CompiledBackbone:
        # A copied function would go on with the network that it was made of.
        return type(self)(copy.deepcopy(self.deployed, memo), self._backend)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """As of the deployed network; images have more than 32 rows and columns."""
        x = x.detach()  # what is marked is not the caller's
        mark_unbacked(x, 0)
        return self._run(x)


def _own_code(deployed: nn.Module) -> Callable[[Tensor], Any]:
    """The network as a function with code of its own.

    torch keeps graphs by code, and tells networks of one class apart by the guards that are
    dropped here: another network's graph would run.
    """
    def run(x):
        return deployed(x)
    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None,
                        run.__closure__)


def _keep_inputs(guards: Sequence[Any]) -> list[bool]:
    """Guards of what the graph reads besides the network: its input and torch's own state."""
    return [guard.name in ('', "L['x']") or guard.guard_type in ('TENSOR_MATCH', 'SHAPE_ENV')
            for guard in guards]
