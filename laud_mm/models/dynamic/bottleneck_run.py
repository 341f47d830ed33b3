"""How the steps of a bottleneck block run (method, section 4).

All kinds of skipping are one: a block computes listed patches (a sample that layer skipping
keeps is a patch as large as the map), on each sample's own channels.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm import ops
from laud_mm.specs import Step
from laud_mm.specs.bottleneck import MASKS

from .decision import Decision, expand_patches
from .precision import no_autocast
from .run_table import runs
from .slicing import slice_channels


class MapSums(NamedTuple):
    """What each sample of a map adds up to, as `ops.sums_mask` takes it; K pieces of a sample.

    Attributes:
        sums (Tensor): (N, C) float32; of samples that `whole` and `listed` leave out.
        whole (Tensor | None): (N, K, C), of all samples.
        listed (Tensor | None): (N, K, C), of listed samples, which come before all others.
        units, found (Tensor | None): Which samples these are, of `ops.active_patches`.
    """
    sums: Tensor
    whole: Tensor | None = None
    listed: Tensor | None = None
    units: Tensor | None = None
    found: Tensor | None = None


class BottleneckRun:
    """What the steps of a bottleneck block read and write.

    Attributes:
        block (DynamicBottleneck): The block.
        weights (FoldedBottleneck): Of the whole block, or sliced for this part; or what has its
            attributes.
        x, identity, out (Tensor): Input, shortcut and output map, channels-last.
        y (Tensor): What the next convolution reads, a map.
        rows (Tensor): (patches, S * S, C), what the next one reads, patch by patch.
        index, count (Tensor): Listed patches, see `ops.active_patches`.
        positions (tuple): Listed positions of conv1, or None and None.
        channels (dict): Arguments of operations that pick channels.
        masks (dict[str, Tensor]): What the maskers decided.
        sums (MapSums | None): Of `x` until something is computed, then of `out`; None where
            nobody added up.
        shifts (dict[str, Tensor | None]): What channels that are off add to 'conv2' and 'conv3'.
        decision (Decision): After the override.
        samples (Tensor | None): Samples of this part in the batch; None: all.
        which (tuple | None): The channel masks that occur, and which of them each sample has.
        mask (Tensor | None): Channel mask of this part.
        parent (BottleneckRun | None): The run that this is a part of.
    """

    def __init__(self, block: Any, x: Tensor, weights: Any):
        self.block, self.shape, self.weights = block, block.shape, weights
        self.x = self.identity = self.out = x
        self.y = self.rows = self.index = self.count = None
        self.positions: tuple[Tensor | None, Tensor | None] = (None, None)
        self.channels: dict[str, Any] = {}
        self.masks: dict[str, Tensor] = {}
        self.sums: MapSums | None = None
        self.shifts: dict[str, Tensor | None] = dict(conv2=None, conv3=None)
        self.decision = Decision()
        self.which: tuple[Tensor, Tensor] | None = None
        self.samples: Tensor | None = None
        self.mask: Tensor | None = None
        self.parent: BottleneckRun | None = None

    def decided(self) -> Decision:
        """The masks as a decision."""
        return Decision(**self.masks)

    def patches(self) -> Tensor:
        """(N, Hm, Wm) bool, what is listed: patches, or samples as one patch each."""
        patches, layer, samples = self.decision.patches, self.decision.layer, self.samples
        if patches is None and layer is None:
            return self.x.new_ones(self.x.shape[0], 1, 1, dtype=torch.bool)
        own = [mask.bool() if samples is None else mask[samples].bool()
               for mask in (patches, layer if layer is None else layer[:, :, None])
               if mask is not None]
        return own[0] if len(own) == 1 else own[0] & own[1]

    def channel_mask(self) -> Tensor:
        """(N, groups) bool."""
        mask = self.decision.channels
        return self.x.new_ones(self.x.shape[0], self.shape.channel_groups, dtype=torch.bool) \
            if mask is None else mask.bool()

    def channels_on(self) -> Tensor:
        """(N, width) bool."""
        return self.channel_mask().repeat_interleave(self.shape.channel_granularity, 1)

    def patch_of(self, step: Step) -> int:
        """Side of listed patches, on maps of any size."""
        return step.patch if self.shape.spatial_skipping else ops.WHOLE

    def parts(self, loop: str) -> Iterator[BottleneckRun]:
        """One run per channel mask that occurs: its samples, its slice of the weights."""
        assert self.which is not None  # `split_masks` ran before the loop
        masks, which = self.which
        for i, mask in enumerate(masks):
            part = BottleneckRun(self.block, self.x, self.weights)
            part.identity, part.out, part.decision = self.identity, self.out, self.decision
            part.mask, part.parent = mask, self
            if len(masks) > 1:
                part.samples = (which == i).nonzero()[:, 0]
            yield part

    def finish(self, part: BottleneckRun) -> None:
        """Take over what a part computed."""
        self.out = part.out if part.samples is None else self.out

    @property
    def group_size(self) -> int:
        """Channels that are picked at once; 0 where none are."""
        return self.channels.get('group_size', 0)

    # What steps run by, see `Step.when`.

    @property
    def taken(self) -> bool:
        return self.samples is not None

    @property
    def sliced(self) -> bool:
        return self.mask is not None and not bool(self.mask.all())

    @property
    def some_on(self) -> bool:
        return self.weights.width > 0

    @property
    def spread(self) -> bool:
        return self.weights.spread is not None


class StemRun:
    """What the steps of a folded stem read and write.

    Attributes:
        y (Tensor): The map so far.
        convs (dict): The stem's convolutions by the names of their ops.
    """

    def __init__(self, x: Tensor, convs: dict[str, Any]):
        self.x = self.y = x
        self.weights = self
        self.convs = convs

    def named(self, part: str) -> Any:
        """The convolution of an op."""
        return self.convs[part]


# Deciding, and listing what was decided.

@runs('layer_masker', 'spatial_masker', 'channel_masker')
def _decide(run, step):
    name = step.kind.removesuffix('_masker')
    masker, weights = getattr(run.block.masker, name), run.weights.maskers[name]
    with no_autocast(run.x.device):
        if name == 'layer' and run.sums is not None and run.sums.listed is not None:
            mask, sums = ops.sums_mask(*run.sums, *weights, run.x.shape[2] * run.x.shape[3])
            run.sums = MapSums(sums)
        else:
            mask = masker.decide_by(run.x, *weights)
    run.masks[MASKS[name]] = mask.flatten(1) if name == 'layer' else mask


@runs('masker_conv1x1')
def _decide_with_conv1(run, step):
    name, conv = 'layer' if run.shape.layer_skipping else 'spatial', run.weights.conv1
    run.y, mask = ops.masker_conv1x1(
        run.x, conv.weight, conv.bias, *run.weights.maskers[name],
        step.window or ops.WHOLE, conv.packed)
    run.masks[MASKS[name]] = mask.flatten(1) if name == 'layer' else mask


@runs('list_patches')
def _list_patches(run, step):
    run.index, run.count = ops.active_patches(run.patches())


@runs('list_channels')
def _list_channels(run, step):
    index, count = ops.compact(run.channel_mask())
    run.channels = dict(channel_index=index, channel_count=count,
                        group_size=run.shape.channel_granularity)


@runs('halo_positions')
def _list_positions(run, step):
    size = run.shape.mid_size(run.x.shape[-2:])
    run.positions = ops.halo_positions(run.index, run.count, run.x.shape[0], *size,
                                       run.patch_of(step), step.op.stride, step.op.dilation)


@runs('copy_map')
def _copy_map(run, step):
    run.out = run.identity.clone()


# The operations on what is listed.

@runs('shortcut1x1')
def _shortcut(run, step):
    conv = run.weights.shortcut
    # The map is ours to write: conv3 adds to what is active, the rest is relu(shortcut).
    run.out, pieces = ops.conv1x1_shortcut(
        run.identity, run.patches(), conv.weight, conv.bias, step.op.stride, run.patch_of(step),
        step.sums)
    run.identity = run.out
    run.sums = MapSums(pieces[:, 0], pieces) if step.sums else None


def _sum_pieces(run, samples, size):
    """Room for what listed samples add up to: (samples, K, C)."""
    return run.x.new_empty(samples, ops.sum_pieces(size, ops.WHOLE), run.shape.out_channels,
                           dtype=torch.float32)


@runs('rows1x1', 'picked1x1')
def _conv1x1_positions(run, step):
    if step.part == 'downsample':
        conv, run.sums = run.weights.shortcut, None
        # Where nothing is computed the output is relu(shortcut); the map is ours to write.
        run.identity = run.out = ops.conv1x1_positions(
            run.identity, None, None, conv.weight, conv.bias, step.op.stride, False,
            packed=conv.packed)
        return
    conv = run.weights.conv1
    listed, granularity = run.positions, 1
    if step.listed and listed[0] is None:
        listed, granularity = (run.index, run.count), run.patch_of(step)
    run.y = ops.conv1x1_positions(
        run.x, *listed, conv.weight, conv.bias, step.op.stride, True,
        packed=conv.packed_for(run.group_size), granularity=granularity, **run.channels)
    if run.weights.ones_channel:
        run.y = torch.cat([run.y, run.y.new_ones(run.y.shape[0], 1, *run.y.shape[2:])], 1)
    run.y = run.y.contiguous(memory_format=torch.channels_last)


@runs('shift_channels')
def _shift_channels(run, step):
    """A channel that is off before its norm holds relu(norm(0)), the rectified bias."""
    conv1, conv2, conv3 = (run.weights.named(name) for name in ('conv1', 'conv2', 'conv3'))
    off = 1 - run.channels_on().to(conv1.bias.dtype)
    taps = conv2.weight.permute(0, 2, 3, 1).flatten(0, 2)  # as channels-last weights lie
    run.shifts = dict(
        conv2=F.linear(off * F.relu(conv1.bias), taps).unflatten(1, (-1, 9)),
        conv3=F.linear(off * F.relu(conv2.bias), conv3.weight.flatten(1)))


@runs('rows3x3', 'rows3x3_winograd', 'rows3x3_grouped', 'picked3x3', 'picked3x3_grouped')
def _conv3x3_patches(run, step):
    conv, winograd = run.weights.conv2, step.kind == 'rows3x3_winograd'
    packed = conv.packed_winograd if winograd else conv.packed_for(run.group_size)
    run.rows = ops.conv3x3_patches(
        run.y, run.index, run.count, conv.weight, conv.bias, run.patch_of(step), step.op.stride,
        step.op.dilation, conv.groups, packed=packed,
        winograd=winograd and packed is not None, shifts=run.shifts['conv2'], **run.channels)


@runs('excite_rows', 'picked_excite')
def _excite_rows(run, step):
    run.rows = ops.excite_patches_(
        run.rows, run.index, run.count, *run.out.shape[-2:], run.patch_of(step),
        *run.weights.excitation.weights, **run.channels)


@runs('rows1x1_add', 'picked1x1_add')
def _conv1x1_add_patches(run, step):
    rows, conv = run.rows, run.weights.conv3
    if rows is None:  # no channel is on: the bias is left
        rows = run.x.new_empty(len(run.index), step.patch_rows, 0)
    pieces = None
    if run.sums is not None:  # of those that are not listed they stay
        if step.sums:
            pieces = _sum_pieces(run, len(run.index), run.out.shape[-2:])
            run.sums = run.sums._replace(listed=pieces, units=run.index, found=run.count)
        else:
            run.sums = None
    run.out = ops.conv1x1_add_patches_(run.out, run.identity, rows, run.index, run.count,
                                       conv.weight, conv.bias, run.patch_of(step),
                                       packed=conv.packed_for(run.group_size, inputs=True),
                                       shifts=run.shifts['conv3'], pieces=pieces,
                                       **run.channels)


# Weights sliced for every mask that occurs.

@runs('split_masks')
def _split_masks(run, step):
    run.which = run.channel_mask().unique(dim=0, return_inverse=True)


@runs('take_samples')
def _take_samples(run, step):
    name = step.part.removeprefix('take.')
    maps, samples = getattr(run, name), run.samples
    if len(samples) == 1:
        part = maps.narrow(0, int(samples), 1)  # a view: what is written there is there
    else:
        part = maps.movedim(1, -1).index_select(0, samples).movedim(-1, 1)
    setattr(run, name, part)


@runs('put_samples')
def _put_samples(run, step):
    batch, samples = run.parent.out, run.samples
    if torch.is_grad_enabled():
        rows = batch.movedim(1, -1).index_copy(0, samples, run.out.movedim(1, -1))
        run.parent.out = rows.movedim(-1, 1)  # channels-last, as it was
    elif len(samples) > 1:  # else it is a view, and written already
        batch.index_copy_(0, samples, run.out)


@runs('slice_weights')
def _slice_weights(run, step):
    on = run.mask.repeat_interleave(run.shape.channel_granularity)
    run.weights = slice_channels(run.weights, on, run.shape.mask_before_norm)
    convs = (run.weights.conv1, run.weights.conv2) if run.some_on else ()
    for conv in (*convs, run.weights.conv3):
        conv.packed  # noqa: B018 laid out here, where slicing is timed


@runs('spread_channels')
def _spread_channels(run, step):
    # Channels last, so that the result is too.
    run.y = run.y.movedim(1, -1).index_select(-1, run.weights.spread).movedim(-1, 1)


@runs('keep_channels')
def _keep_channels(run, step):
    run.rows = run.rows.index_select(2, run.weights.kept)


# The framework's convolutions on whole maps.

@runs('conv7x7', 'conv1x1', 'conv3x3', 'conv3x3_grouped')
def _conv_dense(run, step):
    op, part = step.op, step.part
    conv = run.weights.named(part)
    source = run.identity if part == 'downsample' else run.x if part == 'conv1' else run.y
    y = conv.convolve(source, op.stride, op.dilation)
    if part == 'downsample':
        run.identity = y
    else:
        run.y = y


@runs('relu')
def _relu(run, step):
    if step.part == 'relu':  # of the block's output
        run.out = F.relu(run.out) if torch.is_grad_enabled() else ops.rectify_(run.out)
    else:
        run.y = F.relu_(run.y)


@runs('stem_conv')
def _stem_conv(run, step):
    conv = run.weights.named(step.part)
    x = run.x.to(conv.weight.dtype)  # under autocast
    run.y = ops.stem_conv(x, conv.weight, conv.bias, step.op.stride, len(step.inner) > 0,
                          conv.packed_stem)


@runs('maxpool')
def _maxpool(run, step):
    run.y = ops.max_pool(run.y, step.op.kernel_size, step.op.stride)


@runs('avgpool')
def _avgpool(run, step):
    run.identity = ops.average_pool(run.identity, step.op.kernel_size)


@runs('mask_channels')
def _mask_channels(run, step):
    """Put into inactive channels of a rectified map what the masks leave there."""
    # Rows are those of whole samples: this is where nothing but channels is skipped.
    y, at = (run.y, (..., None, None)) if run.rows is None else (run.rows, (slice(None), None))
    on, left = run.channels_on(), None
    if run.shape.mask_before_norm:  # then they hold relu(norm(0))
        bias = F.relu(run.weights.named(step.part.removesuffix('.mask')).bias)
        left = torch.where(on, 0, bias).to(y.dtype)
    if y.element_size() == 2 and not torch.is_grad_enabled():
        # By bits: several times as fast as products of half types on a CPU.
        y.view(torch.int16).bitwise_and_(-on.to(torch.int16)[at])
        if left is not None:
            y.view(torch.int16).bitwise_or_(left.view(torch.int16)[at])
        return
    y.mul_(on.to(y.dtype)[at])
    if left is not None:
        y.add_(left[at])


@runs('excite', 'excite_masked')
def _excite(run, step):
    if step.kind == 'excite' or run.block.se_pool == 'dense':
        means = ops.position_means(run.y.contiguous(memory_format=torch.channels_last))
    else:
        means = _means(run.y, _positions(run, run.y))
    run.y = run.y * run.weights.excitation.scales(means).to(run.y.dtype)[:, :, None, None]


@runs('add_relu')
def _add_relu(run, step):
    run.sums = None
    y = run.y.contiguous(memory_format=torch.channels_last)  # cuDNN in float64 returns another
    run.out = F.relu_(y.add_(run.identity.to(y.dtype)))


@runs('add_masked_relu')
def _add_masked_relu(run, step):
    run.sums = None
    run.out = F.relu_(add_masked(run, run.y.contiguous(memory_format=torch.channels_last)))


def add_masked(run: BottleneckRun, y: Tensor) -> Tensor:
    """The shortcut and what the masks leave of the branch, written over it."""
    on: Any = 1
    if run.decision.patches is not None:
        on = _positions(run, y)[:, None]
    if run.decision.layer is not None:
        on = on * run.decision.layer.to(y.dtype)[:, :, None, None]
    return torch.addcmul(run.identity.to(y.dtype), y, on.to(y.dtype), out=y)


def _positions(run, y):
    """(N, H, W), 1 at positions of active patches."""
    return expand_patches(run.decision.patches, y.shape[-2:],
                          run.shape.spatial_granularity).to(y.dtype)


def _means(y, positions):
    """Means (N, C) of y over positions (N, H, W), 1 where computed; 0 where there are none."""
    wide = torch.promote_types(y.dtype, torch.float32)
    share = positions.to(wide) / positions.sum((1, 2), keepdim=True, dtype=wide).clamp(min=1)
    rows = y.permute(0, 2, 3, 1).flatten(1, 2).to(wide)
    return torch.bmm(share.flatten(1)[:, None], rows)[:, 0]
