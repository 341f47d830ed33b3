"""Bottleneck blocks as ONNX: layer skipping skips, other masks are multiplied in."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from laud_mm.models.dynamic import FoldedBottleneck, FoldedConv
from laud_mm.specs import OpSpec

from .graph import Graph


def to_numpy(tensor: Any) -> np.ndarray:
    """A weight as ONNX keeps it: float32, one value after another."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def add_conv(graph: Graph, x: str, conv: FoldedConv, stride: int = 1, dilation: int = 1,
             relu: bool = False, bias: bool = True) -> str:
    """Add a folded convolution, padded as the blocks' are."""
    kernel = conv.weight.shape[-1]
    inputs = [x, graph.constant(to_numpy(conv.weight))]
    if bias:
        inputs.append(graph.constant(to_numpy(conv.bias)))
    y = graph.op('Conv', *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                 dilations=[dilation] * 2, pads=[kernel // 2 * dilation] * 4, group=conv.groups)
    return graph.op('Relu', y) if relu else y


def add_stem(graph: Graph, x: str, specs: tuple[OpSpec, ...], convs: list[FoldedConv]) -> str:
    """Add a stem: folded convolutions, each with its ReLU, and pools."""
    rest = iter(convs)
    for op in specs:
        if op.kind == 'conv':
            x = add_conv(graph, x, next(rest), op.stride, relu=True)
        else:
            pad = op.kernel_size // 2
            x = graph.op('MaxPool', x, kernel_shape=[op.kernel_size] * 2,
                         strides=[op.stride] * 2, pads=[pad] * 4)
    return x


def add_means(graph: Graph, x: str, window: int) -> str:
    """Add an average pool of windows; the last ones may be partial, as in the blocks."""
    # Runtimes differ in partial windows and in windows larger than the map: pad, and divide.
    size = graph.op('Shape', x, start=2, end=4)
    side = graph.ints(window, window)
    missing = graph.op('Mod', graph.op('Neg', size), side, fmod=0)
    pads = graph.op('Concat', graph.ints(0, 0, 0, 0, 0, 0), missing, axis=0)
    ones = graph.op('ConstantOfShape', graph.op('Concat', graph.ints(1, 1), size, axis=0),
                    value=_tensor(np.ones(1, np.float32)))
    sums, shares = (graph.op('AveragePool', graph.op('Pad', y, pads), kernel_shape=[window] * 2,
                             strides=[window] * 2) for y in (x, ones))
    return graph.op('Div', sums, shares)


def _tensor(array):
    from onnx import numpy_helper
    return numpy_helper.from_array(array)


class BlockGraph:
    """Adds one block to a graph.

    Args:
        graph (Graph): What it is added to.
        block (DynamicBottleneck): Its weights are read, folded.
        batch_one (bool): The batch is one image: a skipped block is a branch of an `If`.
            Else the samples that are on are gathered, computed and scattered.
    """

    def __init__(self, graph: Graph, block: Any, batch_one: bool):
        self.graph, self.shape, self.batch_one = graph, block.shape, batch_one
        self.weights: FoldedBottleneck = block.fold(None)
        self.masker, self.se_pool = block.masker, block.se_pool
        self.masks: dict[str, str] = {}

    def add(self, x: str) -> str:
        """Add the block, given its input; returns its output."""
        shape, graph = self.shape, self.graph
        if shape.layer_skipping:
            self.masks['layer'] = self._decide(self._layer_logit(x))
        if shape.spatial_skipping:
            window = shape.spatial_granularity * shape.stride
            self.masks['patches'] = self._decide(graph.op('Squeeze', self._unit_logit(
                add_means(graph, x, window), 'spatial'), graph.ints(1)))
        if shape.channel_skipping:
            self.masks['channels'] = self._decide(self._channel_logit(x))
        shortcut = self._shortcut(x)
        if not shape.layer_skipping:
            return self._branch(graph, x, shortcut, self.masks)
        return (self._if_on if self.batch_one else self._listed)(x, shortcut)

    def _shortcut(self, x):
        conv, shape = self.weights.shortcut, self.shape
        if conv is None:
            return x
        if shape.pooled_shortcut:
            return add_conv(self.graph, add_means(self.graph, x, shape.stride), conv)
        return add_conv(self.graph, x, conv, shape.stride)

    def _branch(self, graph, x, shortcut, masks):
        """The residual branch, added to the shortcut."""
        shape, weights = self.shape, self.weights
        y = self._conv_relu(graph, x, weights.conv1, masks, shape.stride1, 1)
        y = self._conv_relu(graph, y, weights.conv2, masks, shape.stride2, shape.dilation)
        positions = self._positions(graph, masks['patches'], y) if 'patches' in masks else None
        if weights.excitation is not None:
            y = self._excite(graph, y, positions if self.se_pool == 'computed' else None)
        y = add_conv(graph, y, weights.conv3)
        if positions is not None:
            y = graph.op('Mul', y, positions)
        return graph.op('Relu', graph.op('Add', y, shortcut))

    def _skipped(self, graph, shortcut):
        """What a skipped block writes: relu(shortcut), which a block's input is already."""
        return shortcut if self.weights.shortcut is None else graph.op('Relu', shortcut)

    def _if_on(self, x, shortcut):
        graph = self.graph
        yes, no = graph.branch(), graph.branch()
        on = graph.op('Reshape', self.masks['layer'], graph.ints(1))
        masks = {name: mask for name, mask in self.masks.items() if name != 'layer'}
        done = self._branch(yes, x, shortcut, masks)
        skipped = no.op('Identity', shortcut) if self.weights.shortcut is None \
            else no.op('Relu', shortcut)
        return graph.choose(on, (yes, done), (no, skipped))

    def _listed(self, x, shortcut):
        graph = self.graph
        flat = graph.op('Reshape', self.masks['layer'], graph.ints(-1))
        index = graph.op('Reshape', graph.op('NonZero', flat), graph.ints(-1))
        masks = {name: graph.op('Gather', mask, index, axis=0)
                 for name, mask in self.masks.items() if name != 'layer'}
        kept = graph.op('Gather', x, index, axis=0)
        to_add = kept if self.weights.shortcut is None else graph.op('Gather', shortcut, index,
                                                                     axis=0)
        done = self._branch(graph, kept, to_add, masks)
        return graph.op('ScatterND', self._skipped(graph, shortcut),
                        graph.op('Unsqueeze', index, graph.ints(1)), done)

    def _conv_relu(self, graph, x, conv, masks, stride, dilation):
        y = add_conv(graph, x, conv, stride, dilation, relu=True)
        if 'channels' not in masks:
            return y
        size = self.shape.channel_granularity
        mask = graph.op('Cast', masks['channels'], to=1)
        if size > 1:  # each group's value, once per channel
            groups = self.shape.channel_groups
            mask = graph.op('Expand', graph.op('Unsqueeze', mask, graph.ints(2)),
                            graph.ints(1, groups, size))
        mask = graph.op('Reshape', mask, graph.ints(-1, self.shape.width, 1, 1))
        y = graph.op('Mul', y, mask)
        if self.shape.mask_before_norm:  # what the norm makes of zeros
            off = graph.op('Sub', graph.constant(np.float32(1)), mask)
            left = graph.constant(to_numpy(conv.bias).clip(0).reshape(1, -1, 1, 1))
            y = graph.op('Add', y, graph.op('Mul', off, left))
        return y

    def _positions(self, graph, patches, y):
        """(N, 1, H, W), 1 where patches are on, for maps as large as y."""
        size = self.shape.spatial_granularity
        mask = graph.op('Unsqueeze', graph.op('Cast', patches, to=1), graph.ints(1))
        if size > 1:
            mask = graph.op('Resize', mask, '', graph.constant(np.array([1, 1, size, size],
                                                                        np.float32)),
                            mode='nearest', coordinate_transformation_mode='asymmetric',
                            nearest_mode='floor')
        ends = graph.op('Shape', y, start=2, end=4)
        return graph.op('Slice', mask, graph.ints(0, 0), ends, graph.ints(2, 3))

    def _excite(self, graph, y, positions):
        own = self.weights.excitation
        if positions is None:
            means = graph.op('GlobalAveragePool', y)
        else:
            share = graph.op('GlobalAveragePool', positions)
            # Where nothing is computed the means are 0, not 0/0.
            some = graph.op('Max', share, graph.constant(np.float32(1e-9)))
            means = graph.op('Div', graph.op('GlobalAveragePool', graph.op('Mul', y, positions)),
                             some)
        for weight, bias, activation in ((own.weight1, own.bias1, 'Relu'),
                                         (own.weight2, own.bias2, 'Sigmoid')):
            means = graph.op(activation, graph.op(
                'Conv', means, graph.constant(to_numpy(weight)[:, :, None, None]),
                graph.constant(to_numpy(bias))))
        return graph.op('Mul', y, means)

    def _layer_logit(self, x):
        logit = self._unit_logit(self.graph.op('GlobalAveragePool', x), 'layer')
        return self.graph.op('Reshape', logit, self.graph.ints(-1, 1))

    def _unit_logit(self, means, name):
        """logit_on - logit_off of pooled inputs: (N, C, h, w) to (N, 1, h, w)."""
        weight, bias = self.weights.maskers[name]
        return self.graph.op('Conv', means, self.graph.constant(
            to_numpy(weight).reshape(1, -1, 1, 1)), self.graph.constant(to_numpy(bias)))

    def _channel_logit(self, x):
        graph, masker = self.graph, self.masker.channel
        weight, bias = self.weights.maskers['channel']
        if masker.kind == 'conv_linear':
            x = graph.op('Relu', graph.op('Conv', x, graph.constant(to_numpy(masker.conv.weight)),
                                          graph.constant(to_numpy(masker.conv.bias))))
        y = graph.op('Flatten', graph.op('GlobalAveragePool', x))
        if masker.kind == 'mlp':
            y = graph.op('Relu', graph.op(
                'Gemm', y, graph.constant(to_numpy(masker.fc1.weight)),
                graph.constant(to_numpy(masker.fc1.bias)), transB=1))
        return graph.op('Gemm', y, graph.constant(to_numpy(weight)),
                        graph.constant(to_numpy(bias)), transB=1)

    def _decide(self, logit):
        less = self.graph.op('Less', logit, self.graph.constant(np.float32(0)))
        return self.graph.op('Not', less)  # NaN is on
