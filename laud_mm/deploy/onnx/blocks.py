"""Bottleneck blocks as ONNX: layer skipping skips, other masks are multiplied in."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper

from laud_mm.specs import Step

from .graph import Graph

# How a block is skipped. 'gather': the samples that are on are gathered, computed and put back.
# For a batch of one image: 'if': a branch; 'slice': the batch is cut to none or one image, of
# which a runtime with dynamic shapes computes nothing or all, and keeps its layouts.
SKIPS = ('gather', 'if', 'slice')
MASKER = 'masker'  # in the names of the nodes that decide


def add_conv(graph: Graph, x: str, conv: Any, stride: int = 1, dilation: int = 1,
             relu: bool = False) -> str:
    """Add a folded convolution, padded as the blocks' are."""
    kernel = conv.weight.shape[-1]
    y = graph.op('Conv', x, graph.weight(conv.weight), graph.weight(conv.bias),
                 kernel_shape=[kernel] * 2, strides=[stride] * 2, dilations=[dilation] * 2,
                 pads=[kernel // 2 * dilation] * 4, group=conv.groups)
    return graph.op('Relu', y) if relu else y


def add_stem(graph: Graph, x: str, steps: Sequence[Step], convs: Mapping[str, Any]) -> str:
    """Add a stem: folded convolutions, each with its ReLU, and pools."""
    for step in steps:
        for op in () if step.kind == 'relu' else (step.op, *step.inner):
            if op.kind == 'conv':
                x = add_conv(graph, x, convs[op.name], op.stride, relu=True)
            else:
                x = graph.op('MaxPool', x, kernel_shape=[op.kernel_size] * 2,
                             strides=[op.stride] * 2, pads=[op.kernel_size // 2] * 4)
    return x


def add_means(graph: Graph, x: str, window: int) -> str:
    """Add an average pool of windows; the last ones may be partial, as in the blocks."""
    # Runtimes differ in partial windows and in windows larger than the map: pad, and divide.
    missing, shares = [], []
    for axis in (2, 3):
        size = graph.op('Shape', x, start=axis, end=axis + 1)
        missing.append(graph.op('Mod', graph.op('Neg', size), graph.ints(window), fmod=0))
        # Not a pool of ones: OpenVINO has none in bfloat16 where sizes are known.
        ones = graph.op('ConstantOfShape', size,
                        value=numpy_helper.from_array(np.ones(1, np.float32)))
        ones = graph.op('Pad', ones, graph.op('Concat', graph.ints(0), missing[-1], axis=0))
        ones = graph.op('Reshape', ones, graph.ints(-1, window))
        shares.append(graph.op('ReduceMean', ones, graph.ints(1), keepdims=axis == 2))
    pads = graph.op('Concat', graph.ints(0, 0, 0, 0, 0, 0), *missing, axis=0)
    means = graph.op('AveragePool', graph.op('Pad', x, pads), kernel_shape=[window] * 2,
                     strides=[window] * 2)
    return graph.op('Div', means, graph.op('Mul', *shares))


class BlockGraph:
    """Adds one block to a graph.

    Args:
        graph (Graph): What it is added to.
        block (DeployedBlock): Its weights are read.
        skip (str): Of `SKIPS`.

    Attributes:
        masks (dict[str, str]): By mask, the bool value that says what is on.
        form (str): What becomes of the block, in words.
    """

    def __init__(self, graph: Graph, block: Any, skip: str):
        self.graph, self.shape, self.skip = graph, block.shape, skip
        self.weights, self.se_pool = block.weights, block.se_pool
        self.removed = block.computes == 'none'
        # A plan may find a block faster dense; other masks have no program that skips here.
        self.skips = (block.shape.layer_skipping and
                      (block.computes != 'dense' or block.shape.masks != ('layer',)))
        self.masks: dict[str, str] = {}

    @property
    def form(self) -> str:
        masked = [p for p in self.shape.paradigms if p != 'layer' or not self.skips]
        forms = [f'skipped by {self.skip}'] * self.skips
        forms += [f'{" and ".join(masked)} computed, then masked'] * bool(masked)
        return 'shortcut only' if self.removed else '; '.join(forms) or 'static'

    def add(self, x: str) -> str:
        """Add the block, given its input; returns its output."""
        graph = self.graph
        if self.removed:
            return self._skipped(graph, self._shortcut(x))
        self._decide_all(x, self.weights.masker)
        shortcut = self._shortcut(x)
        if not self.skips:
            return self._branch(graph, x, shortcut, self.masks)
        add = dict(zip(SKIPS, (self._gather, self._if, self._slice)))[self.skip]
        return add(x, shortcut)

    def _decide_all(self, x, maskers):
        shape, graph = self.shape, self.graph
        graph.scope = f'{shape.name}.{MASKER}.'
        if shape.layer_skipping:
            self.masks['layer'] = self._decide(self._layer_logit(x, maskers['layer']))
        if shape.spatial_skipping:
            logit = self._unit_logit(add_means(graph, x, maskers['spatial'].window),
                                     maskers['spatial'])
            self.masks['patches'] = self._decide(graph.op('Squeeze', logit, graph.ints(1)))
        if shape.channel_skipping:
            self.masks['channels'] = self._decide(self._channel_logit(x, maskers['channel']))
        graph.scope = f'{shape.name}.'

    def _shortcut(self, x):
        shape = self.shape
        if not shape.downsample:
            return x
        conv = self.weights.shortcut
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
        if 'layer' in masks:
            mask = graph.op('Reshape', masks['layer'], graph.ints(-1, 1, 1, 1))
            y = graph.op('Mul', y, graph.cast(mask, 'float32'))
        return graph.op('Relu', graph.op('Add', y, shortcut))

    def _skipped(self, graph, shortcut):
        """What a skipped block writes: relu(shortcut), which a block's input is already."""
        return graph.op('Relu', shortcut) if self.shape.downsample else shortcut

    def _gather(self, x, shortcut):
        graph, index = self.graph, self._on()
        kept = graph.op('Gather', x, index, axis=0)
        to_add = graph.op('Gather', shortcut, index, axis=0) if self.shape.downsample else kept
        masks = {name: graph.op('Gather', mask, index, axis=0) for name, mask in self._others()}
        done = self._branch(graph, kept, to_add, masks)
        return graph.op('ScatterND', self._skipped(graph, shortcut),
                        graph.op('Unsqueeze', index, graph.ints(1)), done)

    def _if(self, x, shortcut):
        graph = self.graph
        yes, no = graph.branch(), graph.branch()
        on = graph.op('Reshape', self.masks['layer'], graph.ints(1))
        done = self._branch(yes, x, shortcut, dict(self._others()))
        skipped = no.op('Relu' if self.shape.downsample else 'Identity', shortcut)
        return graph.choose(on, (yes, done), (no, skipped))

    def _slice(self, x, shortcut):
        graph = self.graph
        none, every, axis = graph.ints(0), graph.ints(1), graph.ints(0)
        count = graph.op('Shape', self._on())

        def cut(y):
            return graph.op('Slice', y, none, count, axis)
        kept = cut(x)
        to_add = cut(shortcut) if self.shape.downsample else kept
        done = self._branch(graph, kept, to_add, {n: cut(mask) for n, mask in self._others()})
        rest = self._skipped(graph, graph.op('Slice', shortcut, count, every, axis))
        return graph.op('Concat', done, rest, axis=0)

    def _on(self):
        """Indices (kept,) of the samples that are on."""
        flat = self.graph.op('Reshape', self.masks['layer'], self.graph.ints(-1))
        return self.graph.op('Reshape', self.graph.op('NonZero', flat), self.graph.ints(-1))

    def _others(self):
        return [(name, mask) for name, mask in self.masks.items() if name != 'layer']

    def _conv_relu(self, graph, x, conv, masks, stride, dilation):
        y = add_conv(graph, x, conv, stride, dilation, relu=True)
        if 'channels' not in masks:
            return y
        mask, size = graph.cast(masks['channels'], 'float32'), self.shape.channel_granularity
        if size > 1:  # each group's value, once per channel
            mask = graph.op('Expand', graph.op('Unsqueeze', mask, graph.ints(2)),
                            graph.ints(1, self.shape.channel_groups, size))
        mask = graph.op('Reshape', mask, graph.ints(-1, self.shape.width, 1, 1))
        y = graph.op('Mul', y, mask)
        if self.shape.mask_before_norm:  # what the norm makes of zeros
            off = graph.op('Sub', graph.constant(np.float32(1)), mask)
            left = graph.weight(conv.bias.clamp(min=0).reshape(1, -1, 1, 1))
            y = graph.op('Add', y, graph.op('Mul', off, left))
        return y

    def _positions(self, graph, patches, y):
        """(N, 1, H, W), 1 where patches are on, for maps as large as y."""
        size = self.shape.spatial_granularity
        mask = graph.op('Unsqueeze', graph.cast(patches, 'float32'), graph.ints(1))
        if size > 1:
            scales = graph.constant(np.array([1, 1, size, size], np.float32))
            mask = graph.op('Resize', mask, '', scales, mode='nearest', nearest_mode='floor',
                            coordinate_transformation_mode='asymmetric')
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
            means = graph.op(activation, graph.op('Conv', means,
                                                  graph.weight(weight[:, :, None, None]),
                                                  graph.weight(bias)))
        return graph.op('Mul', y, means)

    def _layer_logit(self, x, masker):
        logit = self._unit_logit(self.graph.op('GlobalAveragePool', x), masker)
        return self.graph.op('Reshape', logit, self.graph.ints(-1, 1))

    def _unit_logit(self, means, masker):
        """logit_on - logit_off of pooled inputs: (N, C, h, w) to (N, 1, h, w)."""
        return self.graph.op('Conv', means, self.graph.weight(masker.weight.reshape(1, -1, 1, 1)),
                             self.graph.weight(masker.bias))

    def _channel_logit(self, x, masker):
        graph = self.graph
        inner = () if masker.inner_weight is None else (
            graph.weight(masker.inner_weight), graph.weight(masker.inner_bias))
        if masker.kind == 'conv_linear':
            x = graph.op('Relu', graph.op('Conv', x, *inner))
        y = graph.op('Flatten', graph.op('GlobalAveragePool', x))
        if masker.kind == 'mlp':
            y = graph.op('Relu', graph.op('Gemm', y, *inner, transB=1))
        return graph.op('Gemm', y, graph.weight(masker.weight), graph.weight(masker.bias),
                        transB=1)

    def _decide(self, logit):
        less = self.graph.op('Less', logit, self.graph.constant(np.float32(0)))
        return self.graph.op('Not', less)  # NaN is on
