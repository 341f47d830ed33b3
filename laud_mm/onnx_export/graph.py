"""Put ONNX graphs together, node by node."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

OPSET = 18
IR_VERSION = 9  # of the time of the opset: older runtimes read it


class Graph:
    """Nodes and constants of a graph, in order.

    Args:
        outer (Graph, optional): The graph around a branch, whose values the branch may read.

    Attributes:
        nodes (list): Of `onnx.NodeProto`.
        constants (dict[str, numpy.ndarray]): Initializers by name.
    """

    def __init__(self, outer: Graph | None = None):
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._numbers: Iterator[int] = count() if outer is None else outer._numbers

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; returns the name of the output."""
        from onnx import helper
        out = out or f'{kind}_{next(self._numbers)}'
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f'{out}_node', **attributes))
        return out

    def constant(self, value: Any, name: str | None = None) -> str:
        """Add a constant; returns its name."""
        array = np.asarray(value)
        if name is None:
            name = f'constant_{next(self._numbers)}'
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        """Add a constant vector of integers."""
        return self.constant(np.array(values, np.int64))

    def branch(self) -> Graph:
        """An empty graph for a branch of an `If` here."""
        return Graph(self)

    def choose(self, condition: str, yes: tuple[Graph, str], no: tuple[Graph, str]) -> str:
        """Add an `If` on a bool of one value; branches are graphs with their output."""
        return self.op('If', condition, then_branch=yes[0].proto('yes', [], [yes[1]]),
                       else_branch=no[0].proto('no', [], [no[1]]))

    def proto(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The `onnx.GraphProto`; outputs are names (float maps) or `onnx.ValueInfoProto`s."""
        from onnx import TensorProto, helper, numpy_helper
        infos = [helper.make_tensor_value_info(out, TensorProto.FLOAT, [None] * 4)
                 if isinstance(out, str) else out for out in outputs]
        return helper.make_graph(
            self.nodes, name, inputs, infos,
            [numpy_helper.from_array(value, key) for key, value in self.constants.items()])

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any],
              metadata: dict[str, str]) -> Any:
        """The `onnx.ModelProto`, checked."""
        import onnx
        model = onnx.helper.make_model(
            self.proto('laud_mm', inputs, outputs), ir_version=IR_VERSION,
            opset_imports=[onnx.helper.make_opsetid('', OPSET)], producer_name='laud_mm')
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
