"""Schedules: which kernels a block launches, as the op specs and the rates say.

`PublishedSchedule` is the papers' predictor. `Schedule` is the same idea for
what this project runs, complete: stem, first projection, halos, transformers.
"""
import math
from dataclasses import dataclass, replace
from typing import Any

from laud_mm.specs import TransformerShape
from laud_mm.specs.arguments import check_choice

from .kernels import Add, Conv, PatchConv, ScatterAdd, Stream, patch_grid

FUSIONS = ('masker_conv1', 'gather_conv2', 'scatter_add')


@dataclass(frozen=True)
class Launch:
    """A kernel to launch.

    Attributes:
        name (str): Name of the op it serves.
        kernel: One of the kernels of `kernels.py`.
        samples (float): Share of the batch that it works on.
        probability (float): How often it runs at all.
    """
    name: str
    kernel: Any
    samples: float = 1.0
    probability: float = 1.0


@dataclass(frozen=True)
class Cheapest:
    """Launches that do the same in several ways; the cheapest way counts.

    Attributes:
        ways (tuple[tuple[Launch, ...], ...]): The alternatives.
    """
    ways: tuple


def dense_kernel(op):
    """The kernel that runs an `OpSpec` with everything on."""
    positions = op.out_size[0] * op.out_size[1]
    read = op.in_channels * op.in_size[0] * op.in_size[1]
    written = op.out_channels * positions
    if op.kind == 'matmul':
        return Conv(op.in_channels // op.groups, op.out_channels // op.groups, op.out_size,
                    matrices=op.groups)
    if op.kind in ('conv', 'linear'):
        if positions == 1 and (op.kind == 'linear' or op.dynamic):
            weights = op.in_channels * op.out_channels
            return Stream(read + written, shared=weights, macs=weights)
        return Conv(op.in_channels, op.out_channels, op.out_size, op.kernel_size, op.stride,
                    op.groups)
    if op.kind == 'add':
        return Add(op.out_channels, op.out_size)
    if op.kind == 'pool':
        return Stream(read + written, cached=read)
    if op.kind == 'scale':
        return Stream(2 * written, cached=3 * written)
    return Stream(read + written)


def _launches(ops):
    return [Launch(op.name, dense_kernel(op)) for op in ops]


def _by_part(block):
    """The ops of a block by their name inside it."""
    return {op.name[len(block.name) + 1:]: op for op in block.ops}


class _Bottleneck:
    """The ops of one bottleneck block, ready to be scheduled."""

    def __init__(self, block, fusions):
        self.shape, self.fusions, self.name = block.shape, fusions, block.name
        self.ops = _by_part(block)
        self.maskers = [op for op in block.ops if op.dynamic]
        self.se = [op for part, op in self.ops.items() if part.startswith('se.')]

    def dense(self, *parts):
        return _launches(self.ops[part] for part in parts if part in self.ops)

    def launch(self, part, kernel):
        return Launch(f'{self.name}.{part}', kernel)

    def patch_conv(self, part, patch, patches, gathered=False, channels=1.0):
        """A convolution on patches; with channel skipping its bottleneck side is compact."""
        op = self.ops[part]
        cin, cout = op.in_channels, op.out_channels
        # Compact channels are not spread evenly over convolution groups: there all stay.
        if part != 'conv1' and op.groups == 1:
            cin = _some(cin, channels)
        if part != 'conv3' and op.groups == 1:
            cout = _some(cout, channels)
        return self.launch(part, PatchConv(cin, cout, op.out_size, patch, patches, gathered,
                                           op.kernel_size, op.stride, op.groups))

    def conv2_on_patches(self, patch, patches, channels=1.0):
        """conv2 that gathers its windows, or a gather and a conv2."""
        op = self.ops['conv2']
        if 'gather_conv2' in self.fusions:
            return [self.patch_conv('conv2', patch, patches, channels=channels)]
        window = ((patch + 2) * op.stride)**2 * op.in_channels * patches
        return [self.launch('gather', Stream(2 * window)),
                self.patch_conv('conv2', patch, patches, True, channels)]

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
        ways = (tuple(fused), tuple(separate))
        return Cheapest(ways if 'masker_conv1' in self.fusions else ways[1:])


def check_fusions(fusions):
    """Check names of fusions; return them as a tuple."""
    for fusion in fusions:
        check_choice('fusions', fusion, FUSIONS)
    return tuple(fusions)


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

    def static(self, block):
        """Launches of the static block."""
        return _launches(op for op in block.ops if not op.dynamic and self._counts(op))

    @staticmethod
    def _counts(op):
        return not (op.name.endswith('.downsample') and op.stride == 1)

    def dynamic(self, block, rates, batch):
        """Launches of the dynamic block.

        Args:
            block (BlockSpec): The block.
            rates (Rates): Scalars.
            batch (int): Images.

        Returns:
            list[Launch | Cheapest]: In order.
        """
        if block.shape.paradigm is None:
            return self.static(block)
        if isinstance(block.shape, TransformerShape):
            return transformer_launches(block, rates, batch)
        parts = _Bottleneck(block, self.fusions)
        if 'downsample' in parts.ops and not self._counts(parts.ops['downsample']):
            del parts.ops['downsample']
        if block.shape.paradigm == 'both':
            raise ValueError("paradigm 'both' is not part of the published predictor, which knows "
                             "'layer', 'channel', 'spatial' and None: predict without published")
        return getattr(self, f'_{block.shape.paradigm}')(parts, rates)

    def _layer(self, b, rates):
        op, size = b.ops['conv1'], b.ops['conv1'].in_size
        masker = Conv(op.in_channels, op.in_channels + 1, size, out_rate=0.0)
        branch = (*b.dense('conv1', 'conv2'), *_launches(b.se), *b.dense('conv3', 'add'))
        return [b.launch('masker', masker), *b.dense('downsample'),
                *(replace(one, probability=float(rates.layer)) for one in branch)]

    def _spatial(self, b, rates):
        s, conv1, out = b.shape.spatial_granularity, b.ops['conv1'], b.ops['add'].out_size
        patches = math.ceil(float(rates.patch) * patch_grid(out, s))
        count1 = math.ceil(float(rates.patch) * patch_grid(conv1.out_size, s))
        fused = replace(dense_kernel(conv1), out_channels=conv1.out_channels + 1)
        masker = replace(dense_kernel(conv1), out_channels=2)
        return [b.choose_masker([b.launch('conv1', fused)],
                                [b.launch('masker', masker), b.patch_conv('conv1', s, count1)]),
                *b.conv2_on_patches(s, patches), *_launches(b.se),
                b.patch_conv('conv3', s, patches, gathered=True),
                *b.add_patches(s, patches), *b.dense('downsample')]

    def _channel(self, b, rates):
        out = b.ops['add'].out_size
        return [*_launches(b.maskers), *b.channel_convs(rates), *_launches(b.se),
                *b.add_patches(1, out[0] * out[1]), *b.dense('downsample')]


class Schedule(PublishedSchedule):
    """What this project's kernels run: everything counts.

    Differs from the published one in that stem and projections count, maskers
    cost what their op specs say, layer skipping launches on the active samples,
    conv1 covers the halo of the active patches, SE only what is computed, and
    the channel paradigm adds maps plainly.
    """

    def outside(self, ops):
        return _launches(ops)

    @staticmethod
    def _counts(op):
        return True

    def dynamic(self, block, rates, batch):
        if block.shape.paradigm == 'both':
            return self._spatial(_Bottleneck(block, self.fusions), rates)
        launches = super().dynamic(block, rates, batch)
        if block.shape.paradigm == 'layer' and not isinstance(block.shape, TransformerShape):
            # A batch computes on its active samples; a single image, or not at all.
            return [one if one.probability == 1 else on_samples(one, one.probability, batch)
                    for one in launches]
        return launches

    def _layer(self, b, rates):
        masker, *rest = super()._layer(b, rates)
        return [*_launches(b.maskers), *rest]

    def _spatial(self, b, rates):
        s, conv1, out = b.shape.spatial_granularity, b.ops['conv1'], b.ops['add'].out_size
        patches = math.ceil(float(rates.patch) * patch_grid(out, s))
        side1 = s * b.shape.stride2
        count1 = math.ceil(float(rates.halo) * patch_grid(conv1.out_size, side1))
        channels = float(rates.channel)
        dense1 = dense_kernel(conv1)
        if b.shape.channel_skipping:
            dense1 = replace(dense1, out_channels=_some(conv1.out_channels, channels))
        fused = replace(dense1, out_channels=dense1.out_channels + 2)
        spatial = [op for op in b.maskers if '.spatial_masker.' in op.name]
        return [*_launches(op for op in b.maskers if op not in spatial),
                b.choose_masker(
                    [b.launch('conv1', fused)],
                    [*_launches(spatial), b.patch_conv('conv1', side1, count1, channels=channels)]),
                *b.conv2_on_patches(s, patches, channels),
                *(b.launch(op.name[len(b.name) + 1:], _scaled(dense_kernel(op), rates.patch))
                  for op in b.se),
                b.patch_conv('conv3', s, patches, True, channels),
                *b.add_patches(s, patches), *b.dense('downsample')]

    def _channel(self, b, rates):
        return [*_launches(b.maskers), *b.channel_convs(rates), *_launches(b.se),
                *b.dense('add', 'downsample')]


def _some(channels, share):
    """How many channels a share is: at least one."""
    return max(math.ceil(channels * share - 1e-9), 1)


def _scaled(stream, share):
    """A stream over a share of the positions; small layers on pooled vectors stay."""
    if stream.macs:
        return stream
    return replace(stream, elements=stream.elements * share, cached=stream.cached * share)


def on_samples(launch, share, batch):
    """The launch on a share of the batch's samples; below one sample, now and then."""
    count = share * batch
    return replace(launch, samples=max(count, 1.0) / batch, probability=min(count, 1.0))


def transformer_launches(block, rates, batch):
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
