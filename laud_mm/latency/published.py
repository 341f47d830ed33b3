"""The papers' schedule: which kernels their predictor counts, as op specs and rates say.

What this project's executors run is priced from programs instead, see `kernel_table.py`.
"""
import math
from dataclasses import dataclass, replace

from laud_mm.specs import BottleneckShape, Rates, TransformerShape
from laud_mm.specs.arguments import check_choice

from .kernels import (
    Conv,
    Launch,
    PatchConv,
    ScatterAdd,
    Stream,
    count_patches,
    dense_kernel,
    launch_dense,
)

FUSIONS = ('masker_conv1', 'gather_conv2', 'scatter_add')


def _by_part(block):
    """The ops of a block by their name inside it."""
    return {op.name[len(block.name) + 1:]: op for op in block.ops}


@dataclass(frozen=True)
class Cheapest:
    """Launches that do the same on different routes; the cheapest counts.

    Attributes:
        routes (tuple[tuple[Launch, ...], ...]): The alternatives.
    """
    routes: tuple


class _Bottleneck:
    """The ops of one bottleneck block, ready to be scheduled."""

    def __init__(self, block, fusions):
        self.shape, self.fusions, self.name = block.shape, fusions, block.name
        self.ops = _by_part(block)
        self.maskers = [op for op in block.ops if op.dynamic]
        self.se = [op for part, op in self.ops.items() if part.startswith('se.')]

    def dense(self, *parts):
        return launch_dense(self.ops[part] for part in parts if part in self.ops)

    def launch(self, part, kernel):
        return Launch(f'{self.name}.{part}', kernel)

    def patch_conv(self, part, patch, patches, gathered=False):
        """A convolution on patches."""
        op = self.ops[part]
        return self.launch(part, PatchConv(op.in_channels, op.out_channels, op.out_size, patch,
                                           patches, gathered, op.kernel_size, op.stride,
                                           op.groups))

    def conv2_on_patches(self, patch, patches):
        """conv2 that gathers its windows, or a gather and a conv2."""
        op = self.ops['conv2']
        if 'gather_conv2' in self.fusions:
            return [self.patch_conv('conv2', patch, patches)]
        window = ((patch + 2) * op.stride)**2 * op.in_channels * patches
        return [self.launch('gather', Stream(2 * window)),
                self.patch_conv('conv2', patch, patches, True)]

    def add_patches(self, patch, patches):
        """Scatter-add, or a scatter and an add."""
        op = self.ops['add']
        if 'scatter_add' in self.fusions:
            return [self.launch('scatter_add',
                                ScatterAdd(op.out_channels, op.out_size, patch, patches))]
        written = op.out_channels * (2 * patches * patch**2 + op.out_size[0] * op.out_size[1])
        return [self.launch('scatter', Stream(written)), self.launch('add', dense_kernel(op))]

    def channel_convs(self, rates):
        """The convolutions on the active channels of each sample."""
        rate, size = float(rates.channel), self.shape.channel_granularity
        sides = dict(conv1=dict(out_rate=rate, granularity=size),
                     conv2=dict(in_rate=rate, out_rate=rate, granularity=size),
                     conv3=dict(in_rate=rate))
        return [self.launch(part, replace(dense_kernel(self.ops[part]), **side))
                for part, side in sides.items()]

    def choose_masker(self, fused, separate):
        both = (tuple(fused), tuple(separate))
        return Cheapest(both if 'masker_conv1' in self.fusions else both[1:])


def check_fusions(fusions):
    """Check names of fusions; return them as a tuple."""
    for fusion in fusions:
        check_choice('fusions', fusion, FUSIONS)
    return tuple(fusions)


def check_published(block):
    """Refuse a block that the papers' predictor does not know."""
    shape = block.shape
    if isinstance(shape, TransformerShape):
        return
    if not isinstance(shape, BottleneckShape):
        raise ValueError('network must be a ResNet, RegNet or T2T-ViT for the published predictor, '
                         f'got a {type(shape).__name__}: predict without published')
    if len(shape.paradigms) > 1:
        raise ValueError(f'paradigm {shape.paradigm!r} is not part of the published predictor, '
                         "which knows 'layer', 'channel', 'spatial' and None: predict without "
                         'published')
    if shape.avg_down:
        raise ValueError('avg_down=True is not part of the published predictor: predict without '
                         'published')


class PublishedSchedule:
    """What the papers' predictor counts: residual blocks, without the first stage's projection.

    Args:
        fusions (Sequence[str]): Which of `FUSIONS` are on.
    """

    def __init__(self, fusions=FUSIONS):
        self.fusions = check_fusions(fusions)

    def outside(self, ops):
        """Launches of the stem or the tail: none is counted."""
        return []

    def static(self, block, batch):
        """Launches of the static block."""
        check_published(block)
        return launch_dense(op for op in block.ops if not op.dynamic and self._counts(op))

    @staticmethod
    def _counts(op):
        return not (op.name.endswith('.downsample') and op.stride == 1)

    def dynamic(self, block, rates, batch):
        """Launches of the dynamic block.

        Args:
            block (BlockSpec): The block.
            rates (Rates | None): Scalars; None: everything on.
            batch (int): Images.

        Returns:
            list[Launch | Cheapest]: In order.
        """
        rates = rates or Rates()
        if not block.shape.paradigms:
            return self.static(block, batch)
        check_published(block)
        if isinstance(block.shape, TransformerShape):
            return transformerlaunch_dense(block, rates, batch)
        parts = _Bottleneck(block, self.fusions)
        if 'downsample' in parts.ops and not self._counts(parts.ops['downsample']):
            del parts.ops['downsample']
        return getattr(self, f'_{block.shape.paradigm}')(parts, rates)

    def _layer(self, b, rates):
        op, size = b.ops['conv1'], b.ops['conv1'].in_size
        masker = Conv(op.in_channels, op.in_channels + 1, size, out_rate=0.0)
        branch = (*b.dense('conv1', 'conv2'), *launch_dense(b.se), *b.dense('conv3', 'add'))
        return [b.launch('masker', masker), *b.dense('downsample'),
                *(replace(one, probability=float(rates.layer)) for one in branch)]

    def _spatial(self, b, rates):
        s, conv1, out = b.shape.spatial_granularity, b.ops['conv1'], b.ops['add'].out_size
        patches = math.ceil(float(rates.patch) * count_patches(out, s))
        count1 = math.ceil(float(rates.patch) * count_patches(conv1.out_size, s))
        fused = replace(dense_kernel(conv1), out_channels=conv1.out_channels + 1)
        masker = replace(dense_kernel(conv1), out_channels=2)
        return [b.choose_masker([b.launch('conv1', fused)],
                                [b.launch('masker', masker), b.patch_conv('conv1', s, count1)]),
                *b.conv2_on_patches(s, patches), *launch_dense(b.se),
                b.patch_conv('conv3', s, patches, gathered=True),
                *b.add_patches(s, patches), *b.dense('downsample')]

    def _channel(self, b, rates):
        out = b.ops['add'].out_size
        return [*launch_dense(b.maskers), *b.channel_convs(rates), *launch_dense(b.se),
                *b.add_patches(1, out[0] * out[1]), *b.dense('downsample')]


def on_samples(launch, share, batch):
    """The launch on a share of the batch's samples; below one sample, now and then."""
    count = share * batch
    return replace(launch, samples=max(count, 1.0) / batch, probability=min(count, 1.0))


def transformerlaunch_dense(block, rates, batch):
    """Launches of a transformer block with token, head and branch skipping (AdaViT).

    Tokens shorten the maps, heads thin out matmuls and channels, branches pick samples.
    """
    heads, launches = float(rates.head), []
    dims = block.shape.embed_dims // block.shape.num_heads
    for op in block.ops:
        tokens = math.ceil(op.out_size[0] * float(rates.token) - 1e-9)
        kernel = dense_kernel(op)
        if 'token' in op.scaled_by:
            kernel = _with_tokens(op, kernel, tokens)
        if 'head' in op.scaled_by:
            kernel = _with_heads(op, kernel, heads, dims)
        launch = Launch(op.name, kernel)
        if heads == 0 and op.kind == 'matmul':
            launch = replace(launch, probability=0.0)
        for branch in {'attn', 'mlp'} & set(op.scaled_by):
            if getattr(rates, branch) != 1:
                launch = on_samples(launch, float(getattr(rates, branch)), batch)
        launches.append(launch)
    return launches


def _with_tokens(op, kernel, tokens):
    if isinstance(kernel, Stream):
        share = (tokens / op.out_size[0])**op.scaled_by.count('token')
        return replace(kernel, elements=kernel.elements * share)
    kernel = replace(kernel, size=(tokens, 1))
    if op.name.endswith('.scores'):
        return replace(kernel, out_channels=tokens)
    if op.name.endswith('.mix'):
        return replace(kernel, in_channels=tokens)
    return kernel


def _with_heads(op, kernel, heads, dims):
    if isinstance(kernel, Stream):
        return replace(kernel, elements=kernel.elements * heads)
    if kernel.matrices:
        return replace(kernel, matrices=kernel.matrices * (heads or 1))
    if op.name.endswith('.qkv'):
        return replace(kernel, out_rate=heads, granularity=dims)
    return replace(kernel, in_rate=heads)
