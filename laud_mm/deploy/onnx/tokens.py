"""T2T-ViTs as ONNX: tokens and branches that are off are skipped, heads multiplied in."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from laud_mm.specs.t2t_vit import SOFT_SPLITS, token_grid

from .graph import Graph

LEAST = -1e30  # a score that is no attention, and finite: a row of them has weights
# What becomes of the units of each paradigm.
FORMS = dict(token='tokens', layer='branches', head='heads computed, then masked')


def form_of(shape: Any) -> str:
    """What becomes of a block, in words."""
    skipped = [FORMS[p] for p in shape.paradigms if p != 'head']
    forms = [f'skipped by gather: {", ".join(skipped)}'] * bool(skipped)
    return '; '.join(forms + [FORMS['head']] * ('head' in shape.paradigms)) or 'static'


class TokensGraph:
    """Adds the parts of a T2T-ViT to a graph.

    Args:
        graph (Graph): What it is added to.
        net (LAUDT2TViT): Its weights are read.
    """

    def __init__(self, graph: Graph, net: Any):
        self.graph, self.net = graph, net

    def add_stem(self, images: str) -> str:
        """Add the soft splits: (N, C, H, W) images to (N, T, C) tokens."""
        graph, module, x = self.graph, self.net.tokens_to_token, images
        channels, width = self.net.in_channels, self.net.cls_token.shape[-1]
        layers = (module.attention1, module.attention2, None)
        for (window, stride, pad), layer in zip(SOFT_SPLITS, layers):
            if layer is None:  # windows and a linear layer are a convolution
                weight = graph.weight(module.project.weight.reshape(-1, channels, window, window))
                bias, groups = [graph.weight(module.project.bias)], 1
            else:  # a window's values, one after another
                eye = np.eye(window**2, dtype=np.float32).reshape(-1, 1, window, window)
                weight, bias = graph.constant(np.tile(eye, (channels, 1, 1, 1))), []
                groups = channels
            x = graph.op('Conv', x, weight, *bias, kernel_shape=[window] * 2, group=groups,
                         strides=[stride] * 2, pads=[pad] * 4)
            size = graph.op('Shape', x, start=2, end=4)
            outputs = channels * window**2 if layer else width
            flat = graph.op('Reshape', x, graph.ints(0, outputs, -1))
            tokens = graph.op('Transpose', flat, perm=[0, 2, 1])
            if layer is not None:
                add = self._performer if self.net.t2t_type == 'performer' else self._transformer
                tokens, channels = add(tokens, layer), self.net.token_dim
                ends = graph.op('Concat', graph.ints(0, channels), size, axis=0)
                x = graph.op('Reshape', graph.op('Transpose', tokens, perm=[0, 2, 1]), ends)
        first = graph.op('Expand', graph.weight(self.net.cls_token), graph.op(
            'Concat', graph.op('Shape', tokens, end=1), graph.ints(1, width), axis=0))
        return graph.op('Add', graph.op('Concat', first, tokens, axis=1), self._positions(size))

    def _positions(self, size):
        """The position embedding for a grid, (1, T, C)."""
        graph, embedding = self.graph, self.net.pos_embed
        width = embedding.shape[-1]
        patches = embedding[:, 1:].transpose(1, 2).unflatten(2, token_grid(self.net.img_size))
        sizes = graph.op('Concat', graph.ints(1, width), size, axis=0)
        resized = graph.op('Resize', graph.weight(patches), '', '', sizes, mode='cubic',
                           coordinate_transformation_mode='half_pixel', cubic_coeff_a=-0.75)
        rows = graph.op('Transpose', graph.op('Reshape', resized, graph.ints(1, width, -1)),
                        perm=[0, 2, 1])
        return graph.op('Concat', graph.weight(embedding[:, :1]), rows, axis=1)

    def _performer(self, x, layer):
        graph = self.graph
        kqv = self._linear(self._norm(x, layer.norm1), layer.kqv)
        k, q, v = self._chunk(kqv, 3, layer.proj.weight.shape[0])
        directions = graph.weight(layer.w.t())

        def features(t):
            square = graph.op('ReduceSum', graph.op('Mul', t, t), graph.ints(-1))
            half = graph.op('Mul', square, graph.constant(np.float32(0.5)))
            exponent = graph.op('Sub', graph.op('MatMul', t, directions), half)
            return graph.op('Mul', graph.op('Exp', exponent),
                            graph.constant(np.float32(1 / math.sqrt(len(layer.w)))))
        k, q = features(k), features(q)
        turned = graph.op('Transpose', k, perm=[0, 2, 1])
        sums = graph.op('ReduceSum', turned, graph.ints(2))
        over = graph.op('Add', graph.op('MatMul', q, sums),
                        graph.constant(np.float32(layer.EPSILON)))
        mixed = graph.op('Div', graph.op('MatMul', q, graph.op('MatMul', turned, v)), over)
        y = graph.op('Add', v, self._linear(mixed, layer.proj))
        return self._add_mlp(y, layer.norm2, layer.mlp[0], layer.mlp[2])

    def _transformer(self, x, layer):
        graph, width = self.graph, layer.attn.proj.weight.shape[0]
        q, k, v = self._chunk(self._linear(self._norm(x, layer.norm1), layer.attn.qkv), 3, width)
        scores = graph.op('MatMul', self._scaled(q, width), graph.op('Transpose', k,
                                                                     perm=[0, 2, 1]))
        mixed = graph.op('MatMul', graph.op('Softmax', scores, axis=-1), v)
        y = graph.op('Add', v, self._linear(mixed, layer.attn.proj))
        return self._add_mlp(y, layer.norm2, layer.mlp.fc1, layer.mlp.fc2)

    def _add_mlp(self, y, norm, fc1, fc2):
        return self.graph.op('Add', y, self._mlp(self._norm(y, norm), fc1, fc2))

    def add_block(self, x: str, block: Any) -> tuple[str, dict[str, str]]:
        """Add a block: (N, T, C) tokens to such, and the masks by name."""
        graph, shape = self.graph, block.shape
        masks = self._decide(x, block)
        channels = None
        if 'heads' in masks:  # each head's value, once per channel
            heads = graph.op('Unsqueeze', graph.cast(masks['heads'], 'float32'), graph.ints(2))
            wide = graph.op('Expand', heads, graph.ints(1, shape.num_heads, shape.head_dims))
            channels = graph.op('Reshape', wide, graph.ints(-1, shape.embed_dims))
        skips = 'tokens' in masks or 'branches' in masks
        add = self._add_skipped if skips else self._add_whole
        for column, (norm, run) in enumerate(((block.norm1, self._attention),
                                              (block.norm2, self._mlp_branch))):
            x = add(x, block, norm, run, channels, self._on(masks, column, x) if skips else None)
        return x, masks

    def _add_whole(self, x, block, norm, run, channels, _):
        """A branch on all tokens."""
        graph = self.graph
        own = channels and graph.op('Unsqueeze', channels, graph.ints(1))
        return graph.op('Add', x, run(self._norm(x, norm), block, own, None))

    def _add_skipped(self, x, block, norm, run, channels, on):
        """A branch on the tokens that are on, one after another: rows (R, C)."""
        graph = self.graph
        index = graph.op('Transpose', graph.op('NonZero', on), perm=[1, 0])  # (R, 2)
        rows = graph.op('GatherND', x, index)
        sample = graph.op('Gather', index, graph.constant(np.int64(0)), axis=1)
        own = channels and graph.op('Gather', channels, sample, axis=0)
        y = run(self._norm(rows, norm), block, own, (on, index, sample))
        return graph.op('ScatterND', x, index, graph.op('Add', rows, y))

    def _decide(self, x, block):
        graph, masker, masks = self.graph, block.masker, {}
        if masker is None:
            return masks
        if hasattr(masker, 'token'):
            patches = graph.op('Slice', self._norm(x, block.norm1), graph.ints(1),
                               graph.ints(2**31), graph.ints(1))
            masks['tokens'] = graph.op('Squeeze', self._sigmoid_mask(patches, masker.token),
                                       graph.ints(2))
        first = graph.op('Gather', x, graph.constant(np.int64(0)), axis=1)
        for name, mask in (('head', 'heads'), ('layer', 'branches')):
            if hasattr(masker, name):
                masks[mask] = self._sigmoid_mask(first, getattr(masker, name))
        return masks

    def _sigmoid_mask(self, x, masker):
        graph = self.graph
        share = graph.op('Sigmoid', self._linear(x, masker.fc))
        off = graph.op('LessOrEqual', share, graph.constant(np.float32(masker.threshold)))
        return graph.op('Not', off)  # NaN is on

    def _on(self, masks, column, x):
        """(N, T) bool: tokens that a branch computes."""
        graph = self.graph
        size = graph.op('Shape', x, end=2)
        ones = graph.op('Expand', graph.constant(np.array([[True]])), size)
        on = ones
        if 'tokens' in masks:  # the class token is always on
            first = graph.op('Slice', ones, graph.ints(0), graph.ints(1), graph.ints(1))
            on = graph.op('Concat', first, masks['tokens'], axis=1)
        if 'branches' in masks:
            on = graph.op('And', on, graph.op('Gather', masks['branches'], graph.ints(column),
                                              axis=1))
        return on

    def _attention(self, rows, block, channels, listed):
        graph = self.graph
        qkv = self._linear(rows, block.attn.qkv)
        if listed is None:
            y = self._mix(qkv, block.shape, None)
        else:
            y = self._mix_rows(qkv, block.shape, *listed)
        return self._linear(y if channels is None else graph.op('Mul', y, channels),
                            block.attn.proj)

    def _mix_rows(self, qkv, shape, on, index, sample):
        """Attention among the rows of each sample, which are padded to the longest."""
        graph, counted = self.graph, self.graph.cast(on, 'int64')
        order = graph.op('CumSum', counted, graph.constant(np.int64(1)))
        slot = graph.op('Sub', graph.op('GatherND', order, index), graph.constant(np.int64(1)))
        slots = graph.op('Concat', *(graph.op('Unsqueeze', t, graph.ints(1))
                                     for t in (sample, slot)), axis=1)
        lengths = graph.op('ReduceSum', counted, graph.ints(1))  # (N, 1)
        most = graph.op('Reshape', graph.op('ReduceMax', lengths, keepdims=0), graph.ints(1))
        longest = graph.op('Max', most, graph.ints(1))  # where no branch runs too
        size = graph.op('Concat', graph.op('Shape', on, end=1), longest,
                        graph.ints(3 * shape.embed_dims), axis=0)
        empty = graph.op('Expand', graph.constant(np.zeros((1, 1, 1), np.float32)), size)
        places = graph.op('Range', graph.constant(np.int64(0)),
                          graph.op('Squeeze', longest, graph.ints(0)), graph.constant(np.int64(1)))
        present = graph.op('Unsqueeze', graph.op('Less', places, lengths), graph.ints(1, 2))
        padded = graph.op('ScatterND', empty, slots, qkv)
        return graph.op('GatherND', self._mix(padded, shape, present), slots)

    def _mix(self, qkv, shape, present):
        """Softmax attention: (N, L, 3 C) to (N, L, C), to what is `present` (N, 1, 1, L)."""
        graph, dims = self.graph, shape.head_dims
        split = graph.op('Transpose', graph.op('Reshape', qkv, graph.ints(
            0, 0, 3, shape.num_heads, dims)), perm=[2, 0, 3, 1, 4])
        q, k, v = (graph.op('Gather', split, graph.constant(np.int64(i)), axis=0)
                   for i in range(3))
        scores = graph.op('MatMul', self._scaled(q, dims),
                          graph.op('Transpose', k, perm=[0, 1, 3, 2]))
        if present is not None:
            scores = graph.op('Where', present, scores, graph.constant(np.float32(LEAST)))
        mixed = graph.op('MatMul', graph.op('Softmax', scores, axis=-1), v)
        return graph.op('Reshape', graph.op('Transpose', mixed, perm=[0, 2, 1, 3]),
                        graph.ints(0, 0, shape.embed_dims))

    def _mlp_branch(self, rows, block, channels, *_):
        rows = rows if channels is None else self.graph.op('Mul', rows, channels)
        return self._mlp(rows, block.mlp.fc1, block.mlp.fc2)

    def _mlp(self, rows, fc1, fc2):
        graph, y = self.graph, self._linear(rows, fc1)
        erf = graph.op('Erf', graph.op('Mul', y, graph.constant(np.float32(0.5**0.5))))
        half = graph.op('Mul', y, graph.constant(np.float32(0.5)))  # GELU
        gelu = graph.op('Mul', half, graph.op('Add', erf, graph.constant(np.float32(1))))
        return self._linear(gelu, fc2)

    def add_output(self, x: str, index: int, out: str, size: str) -> None:
        """Add an output of the net after block `index`; `size` is the images' (H, W)."""
        graph, net = self.graph, self.net
        if index == net.num_stages - 1:
            x = self._norm(x, net.norm)
        patches = graph.op('Slice', x, graph.ints(1), graph.ints(2**31), graph.ints(1))
        if net.out_type == 'raw':
            graph.op('Identity', x, out=out)
        elif net.out_type == 'cls_token':
            graph.op('Gather', x, graph.constant(np.int64(0)), axis=1, out=out)
        elif net.out_type == 'avg_featmap':
            graph.op('ReduceMean', patches, graph.ints(1), keepdims=0, out=out)
        else:
            for window, stride, pad in SOFT_SPLITS:
                fits = graph.op('Add', size, graph.ints(2 * pad - window, 2 * pad - window))
                steps = graph.op('Div', fits, graph.ints(stride, stride))
                size = graph.op('Add', steps, graph.ints(1, 1))
            width = net.cls_token.shape[-1]
            ends = graph.op('Concat', graph.ints(0, width), size, axis=0)
            graph.op('Reshape', graph.op('Transpose', patches, perm=[0, 2, 1]), ends, out=out)

    def _norm(self, x, norm):
        return self.graph.op('LayerNormalization', x, self.graph.weight(norm.weight),
                             self.graph.weight(norm.bias), axis=-1, epsilon=norm.eps)

    def _linear(self, x, linear):
        graph = self.graph
        y = graph.op('MatMul', x, graph.weight(linear.weight.t()))
        return y if linear.bias is None else graph.op('Add', y, graph.weight(linear.bias))

    def _chunk(self, x, count, width):
        names = [self.graph.name('Split') for _ in range(count)]
        self.graph.ops('Split', x, self.graph.ints(*[width] * count), outs=names, axis=-1)
        return names

    def _scaled(self, q, dims):
        return self.graph.op('Mul', q, self.graph.constant(np.float32(dims**-0.5)))
