"""Put ONNX graphs together, node by node."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9  # of the time of the opset: older runtimes read it
_TYPES = dict(float32=TensorProto.FLOAT, int64=TensorProto.INT64, bool=TensorProto.BOOL)


class Graph:
    """Nodes and constants of a graph, in order.

    Args:
        outer (Graph, optional): The graph around a branch, whose values the branch may read.

    Attributes:
        nodes (list): Of `onnx.NodeProto`.
        constants (dict[str, numpy.ndarray]): Initializers by name. Those of a branch are its own:
            onnxruntime lays out weights for its kernels only where they are.
        scope (str): What names of new values start with.
    """

    def __init__(self, outer: Graph | None = None):
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._numbers: Iterator[int] = count() if outer is None else outer._numbers
        self.scope: str = '' if outer is None else outer.scope

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; returns the name of the output."""
        return self.ops(kind, *inputs, outs=[out or self.name(kind)], **attributes)[0]

    def ops(self, kind: str, *inputs: str, outs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node of several outputs, whose names are given; returns them."""
        self.nodes.append(helper.make_node(kind, inputs, outs, name=f'{outs[0]}_node',
                                           **attributes))
        return list(outs)

    def constant(self, value: Any) -> str:
        """Add a constant; returns its name."""
        name = self.name('constant')
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, tensor: Any) -> str:
        """Add a tensor of torch as float32; returns its name."""
        return self.constant(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))

    def ints(self, *values: int) -> str:
        """Add a constant vector of integers."""
        return self.constant(np.array(values, np.int64))

    def cast(self, x: str, dtype: str) -> str:
        """Add a change of type."""
        return self.op('Cast', x, to=_TYPES[dtype])

    def branch(self) -> Graph:
        """An empty graph for a branch of an `If` here."""
        return Graph(self)

    def choose(self, condition: str, yes: tuple[Graph, str], no: tuple[Graph, str]) -> str:
        """Add an `If` on a bool of one value; branches are graphs with their output, a map."""
        branches = [helper.make_graph(graph.nodes, f'{out}_branch', [],
                                      [value('float32', out, [None] * 4)], graph._tensors())
                    for graph, out in (yes, no)]
        return self.op('If', condition, then_branch=branches[0], else_branch=branches[1])

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any],
              metadata: Mapping[str, str]) -> Any:
        """The `onnx.ModelProto`, checked."""
        graph = helper.make_graph(self.nodes, 'laud_mm', inputs, outputs, self._tensors())
        model = helper.make_model(graph, ir_version=IR_VERSION, producer_name='laud_mm',
                                  opset_imports=[helper.make_opsetid('', OPSET)])
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        return model

    def _tensors(self):
        return [numpy_helper.from_array(array, name) for name, array in self.constants.items()]

    def name(self, kind: str) -> str:
        """A new name."""
        return f'{self.scope}{kind}_{next(self._numbers)}'


def value(dtype: str, name: str, sizes: Sequence[Any]) -> Any:
    """An input or output; a size is a number, a name, or None."""
    return helper.make_tensor_value_info(name, _TYPES[dtype], sizes)
