"""Bottleneck blocks as ONNX: layer skipping skips, other masks are multiplied in."""
from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper

from laud_mm.specs import Step

from .graph import Graph


def to_numpy(tensor: Any) -> np.ndarray:
    """A weight as ONNX keeps it: float32, one value after another."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def add_conv(graph: Graph, x: str, conv: Any, stride: int = 1, dilation: int = 1,
             relu: bool = False) -> str:
    """Add a folded convolution, padded as the blocks' are."""
    kernel = conv.weight.shape[-1]
    y = graph.op('Conv', x, graph.constant(to_numpy(conv.weight)),
                 graph.constant(to_numpy(conv.bias)), kernel_shape=[kernel] * 2,
                 strides=[stride] * 2, dilations=[dilation] * 2,
                 pads=[kernel // 2 * dilation] * 4, group=conv.groups)
    return graph.op('Relu', y) if relu else y


def add_stem(graph: Graph, x: str, steps: tuple[Step, ...], convs: dict[str, Any]) -> str:
    """Add a stem: folded convolutions, each with its ReLU, and pools."""
    for step in steps:
        ops = () if step.kind == 'relu' else (step.op, *step.inner)
        for op in ops:
            if op.kind == 'conv':
                x = add_conv(graph, x, convs[op.name], op.stride, relu=True)
            else:
                x = graph.op('MaxPool', x, kernel_shape=[op.kernel_size] * 2,
                             strides=[op.stride] * 2, pads=[op.kernel_size // 2] * 4)
    return x


def add_means(graph: Graph, x: str, window: int) -> str:
    """Add an average pool of windows; the last ones may be partial, as in the blocks."""
    # Runtimes differ in partial windows and in windows larger than the map: pad, and divide.
    size = graph.op('Shape', x, start=2, end=4)
    side = graph.ints(window, window)
    missing = graph.op('Mod', graph.op('Neg', size), side, fmod=0)
    pads = graph.op('Concat', graph.ints(0, 0, 0, 0, 0, 0), missing, axis=0)
    ones = graph.op('ConstantOfShape', graph.op('Concat', graph.ints(1, 1), size, axis=0),
                    value=numpy_helper.from_array(np.ones(1, np.float32)))
    sums, shares = (graph.op('AveragePool', graph.op('Pad', y, pads), kernel_shape=[window] * 2,
                             strides=[window] * 2) for y in (x, ones))
    return graph.op('Div', sums, shares)


class BlockGraph:
    """Adds one block to a graph.

    Args:
        graph (Graph): What it is added to.
        block (DeployedBlock): Its weights are read.
        batch_one (bool): The batch is one image: a skipped block is a branch of an `If`.
            Else the samples that are on are gathered, computed and scattered.

    Attributes:
        masks (dict[str, str]): By mask, the bool output that decides.
    """

    def __init__(self, graph: Graph, block: Any, form: str):
        self.graph, self.shape, self.form = graph, block.shape, form
        self.weights, self.se_pool = block.weights, block.se_pool
        self.removed = block.program.route.compute == 'none'
        self.masks: dict[str, str] = {}

    def add(self, x: str) -> str:
        """Add the block, given its input; returns its output."""
        shape, graph = self.shape, self.graph
        if self.removed:
            return self._skipped(graph, self._shortcut(x))
        maskers = self.weights.masker
        if shape.layer_skipping:
            self.masks['layer'] = self._decide(self._layer_logit(x, maskers['layer']))
        if shape.spatial_skipping:
            logit = self._unit_logit(add_means(graph, x, maskers['spatial'].window),
                                     maskers['spatial'])
            self.masks['patches'] = self._decide(graph.op('Squeeze', logit, graph.ints(1)))
        if shape.channel_skipping:
            self.masks['channels'] = self._decide(self._channel_logit(x, maskers['channel']))
        shortcut = self._shortcut(x)
        if not shape.layer_skipping:
            return self._branch(graph, x, shortcut, self.masks)
        return getattr(self, '_' + self.form)(x, shortcut)

    @property
    def _has_shortcut(self):
        return self.shape.downsample

    def _shortcut(self, x):
        shape = self.shape
        if not shape.downsample:
            return x
        conv = self.weights.shortcut
        self.graph.scope = f'{shape.name}.shortcut.'
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
        return graph.op('Relu', shortcut) if self._has_shortcut else shortcut

    def _if(self, x, shortcut):
        graph = self.graph
        yes, no = graph.branch(), graph.branch()
        on = graph.op('Reshape', self.masks['layer'], graph.ints(1))
        masks = {name: mask for name, mask in self.masks.items() if name != 'layer'}
        done = self._branch(yes, x, shortcut, masks)
        skipped = no.op('Relu', shortcut) if self._has_shortcut else no.op('Identity', shortcut)
        return graph.choose(on, (yes, done), (no, skipped))

    def _ifh(self, x, shortcut):
        graph = self.graph
        yes, no = graph.branch(), graph.branch()
        on = graph.op('Reshape', self.masks['layer'], graph.ints(1))
        def inn(g, v): return g.op('Transpose', v, perm=[0, 3, 1, 2])
        def out(g, v): return g.op('Transpose', v, perm=[0, 2, 3, 1])
        xi = inn(yes, self.nhwc)
        if self._has_shortcut:
            s = yes.op('Identity', xi)
            conv = self.weights.shortcut
            done = self._branch(yes, xi, add_conv(yes, xi, conv, self.shape.stride), {})
            skipped = out(no, add_conv(no, inn(no, self.nhwc), conv, self.shape.stride, relu=True))
        else:
            done = self._branch(yes, xi, xi, {})
            skipped = no.op('Identity', self.nhwc)
        self.nhwc = graph.choose(on, (yes, out(yes, done)), (no, skipped))
        return inn(graph, self.nhwc)

    def _flat(self, x, shortcut):
        graph = self.graph
        graph.scope = f'{self.shape.name}.branch.'
        masks = {name: mask for name, mask in self.masks.items() if name != 'layer'}
        out = self._branch(graph, x, shortcut, masks)
        graph.scope = ''
        return out

    def _gather(self, x, shortcut):
        graph = self.graph
        flat = graph.op('Reshape', self.masks['layer'], graph.ints(-1))
        index = graph.op('Reshape', graph.op('NonZero', flat), graph.ints(-1))
        masks = {name: graph.op('Gather', mask, index, axis=0)
                 for name, mask in self.masks.items() if name != 'layer'}
        kept = graph.op('Gather', x, index, axis=0)
        to_add = graph.op('Gather', shortcut, index, axis=0) if self._has_shortcut else kept
        done = self._branch(graph, kept, to_add, masks)
        return graph.op('ScatterND', self._skipped(graph, shortcut),
                        graph.op('Unsqueeze', index, graph.ints(1)), done)

    def _split(self, x, shortcut):
        graph = self.graph
        flat = graph.op('Reshape', self.masks['layer'], graph.ints(-1))
        count = graph.op('Shape', graph.op('NonZero', flat), start=1, end=2)
        zero, one = graph.ints(0), graph.ints(1)
        masks = {name: graph.op('Slice', mask, zero, count, zero)
                 for name, mask in self.masks.items() if name != 'layer'}
        kept = graph.op('Slice', x, zero, count, zero)
        to_add = graph.op('Slice', shortcut, zero, count, zero) if self._has_shortcut else kept
        done = self._branch(graph, kept, to_add, masks)
        rest = self._skipped(graph, graph.op('Slice', shortcut, count, one, zero))
        return graph.op('Concat', done, rest, axis=0)

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

    def _layer_logit(self, x, masker):
        graph = self.graph
        if self.form == 'ifh':
            if not hasattr(self, 'nhwc'):
                self.nhwc = graph.op('Transpose', x, perm=[0, 2, 3, 1])
            means = graph.op('ReduceMean', self.nhwc, graph.ints(1, 2), keepdims=0)
        else:
            means = graph.op('Flatten', graph.op('GlobalAveragePool', x))
        return graph.op('Gemm', means, graph.constant(to_numpy(masker.weight).reshape(-1, 1)),
                        graph.constant(to_numpy(masker.bias)))

    def _unit_logit(self, means, masker):
        """logit_on - logit_off of pooled inputs: (N, C, h, w) to (N, 1, h, w)."""
        return self.graph.op(
            'Conv', means, self.graph.constant(to_numpy(masker.weight).reshape(1, -1, 1, 1)),
            self.graph.constant(to_numpy(masker.bias)))

    def _channel_logit(self, x, masker):
        graph = self.graph
        inner = () if masker.inner_weight is None else (
            graph.constant(to_numpy(masker.inner_weight)),
            graph.constant(to_numpy(masker.inner_bias)))
        if masker.kind == 'conv_linear':
            x = graph.op('Relu', graph.op('Conv', x, *inner))
        y = graph.op('Flatten', graph.op('GlobalAveragePool', x))
        if masker.kind == 'mlp':
            y = graph.op('Relu', graph.op('Gemm', y, *inner, transB=1))
        return graph.op('Gemm', y, graph.constant(to_numpy(masker.weight)),
                        graph.constant(to_numpy(masker.bias)), transB=1)

    def _decide(self, logit):
        less = self.graph.op('Less', logit, self.graph.constant(np.float32(0)))
        return self.graph.op('Not', less)  # NaN is on
