"""Programs of a bottleneck block: its routes, their steps, and how much work rates make."""
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .opspec import Rates
from .program import WHOLE, Case, Loop, Program, around
from .steps import NO_OP, Step, Work

MASKS = 'masks'  # the loop over the channel masks of a batch
# Multiply-adds that reading a value in a pass of its own is worth, where masker and conv1
# could read it together: measured on a CPU, see docs/ops.md.
PASS_MACS = dict(cpu=8, cuda=64)
# Shares of active units beyond which a CPU is faster with everything, measured: see docs/ops.md.
BREAK_EVEN = dict(picked=0.65, shifted=0.55, shifted_halves=0.4, sliced=0.0)
# Channels of a group from which a GPU's kernels pick channels: weights of fewer lie in pieces of
# less than 16 bytes in half precision, and come too slowly for the products. An estimate.
LEAST_PICKED = 8


@dataclass(frozen=True)
class BottleneckRoute:
    """One way to compute a bottleneck block.

    Attributes:
        compute (str): 'dense': everything, by the framework's convolutions; 'listed': listed
            patches, or samples, which are patches as large as the map; 'none': the shortcut,
            of a block that is off for good.
        masks (tuple[str, ...]): Masks of the decision that are multiplied in, where what they
            turn off is computed.
        channels (str | None): Listed only: 'picked' by the kernels, or 'sliced' weights.
        winograd (bool): conv2 by Winograd's F(2x2, 3x3).
        fused_masker (bool): conv1 computes the mask on its way, everywhere.
    """
    compute: str
    masks: tuple[str, ...] = ()
    channels: str | None = None
    winograd: bool = False
    fused_masker: bool = False


STATIC = BottleneckRoute('dense')
REMOVED = BottleneckRoute('none')


def default_route(case: Case) -> BottleneckRoute:
    """The route of a case where no plan says otherwise."""
    shape = case.shape
    if not shape.paradigms:
        return STATIC
    if shape.channel_skipping:
        return BottleneckRoute('listed', channels='picked' if can_pick(case) else 'sliced')
    return BottleneckRoute('listed', winograd=winograd_pays(case), fused_masker=fusion_pays(case))


def full_route(case: Case) -> BottleneckRoute | None:
    """Everything by the kernels that list, with channels masked; None where the dense route is it.

    Kernels that read packed weights beat the framework's convolutions on a CPU.
    """
    if case.device != 'cpu' or not case.kernels or not set(case.shape.masks) <= {'channels'}:
        return None
    return BottleneckRoute('listed', case.shape.masks, winograd=winograd_pays(case))


def routes(case: Case) -> tuple[BottleneckRoute, ...]:
    """Every route that can run a case, the default first."""
    default = default_route(case)
    if not case.shape.paradigms:
        return (default,)
    others = [default]
    if can_fuse(case):
        others.append(replace(default, fused_masker=not default.fused_masker))
    others.append(BottleneckRoute('dense', case.shape.masks))
    return tuple(others)


def winograd_pays(case: Case) -> bool:
    """Whether conv2, with all channels, is faster by Winograd."""
    return case.packs and not case.dot_products and case.shape.tiles_pay(patch_side(case))


def can_pick(case: Case) -> bool:
    """Whether kernels pick each sample's channels."""
    shape = case.shape
    plain = shape.groups == 1 and not shape.se_channels and not shape.mask_before_norm
    return case.kernels and (case.device == 'cpu' or plain)


def can_fuse(case: Case) -> bool:
    """Whether masker and conv1 can run in one pass over the block's input."""
    shape = case.shape
    one_grid = shape.spatial_skipping != shape.layer_skipping
    return (one_grid and not shape.channel_skipping and shape.stride1 == 1
            and not case.gradients)


def fusion_pays(case: Case, rate: float = 0.5) -> bool:
    """Whether a dense conv1 that decides on its way is faster than a masker and a listed conv1.

    One pass over the input is saved, and conv1 computes what the masker would have left out.
    """
    if not can_fuse(case) or case.shape.layer_skipping:
        return False
    left_out = 1 - case.shape.expected_rates(rate).halo
    return left_out * case.shape.width < PASS_MACS[case.device]


def patch_side(case: Case) -> int:
    """Side of the patches that are listed: S, or the map's where only whole samples are."""
    if case.shape.spatial_skipping:
        return case.shape.spatial_granularity
    return max(case.shape.out_size(case.in_size))


def lists_maps(case: Case) -> bool:
    """Whether conv1 takes listed samples as they are, without a list of their positions."""
    return case.device != 'cpu' and not case.shape.spatial_skipping


def adds_up(case: Case) -> bool:
    """Whether kernels add up what they write of each sample, for the next block's masker."""
    return case.device != 'cpu' and case.kernels and not case.gradients \
        and case.shape.masks == ('layer',)


def bottleneck_program(case: Case, route: BottleneckRoute | None = None) -> Program:
    """The steps of a case on a route, by default the default one."""
    return _program(case, route or default_route(case))


@lru_cache(maxsize=512)  # blocks and images share shapes and sizes
def _program(case, route):
    return _Steps(case, route).program()


class _Steps:
    """Makes the steps of one case on one route."""

    def __init__(self, case, route):
        self.case, self.route, self.shape = case, route, case.shape
        self.mid, self.out = (size(case.in_size) for size in (self.shape.mid_size,
                                                             self.shape.out_size))
        self.ops = {op.name.lstrip('.'): op for op in self.shape.op_specs(case.in_size)}

    def step(self, kind, part='', op=None, **kwargs):
        return Step(kind, part, op or self.ops.get(part, NO_OP), **kwargs)

    def program(self):
        if self.route == REMOVED:
            return Program(self.route, (Step('block'),), self.removed())
        if self.route.compute == 'dense':
            return Program(self.route, self.deciding(), self.dense(), full=full_route(self.case))
        return Program(self.route, self.deciding(), self.listed(), self.break_even(),
                       full_route(self.case))

    def break_even(self):
        if self.case.gradients:
            return 1.0
        if self.case.device != 'cpu':
            # Shapes that depend on values would have to be waited for.
            waits = self.route.channels == 'sliced' or not self.case.kernels
            small = (self.route.channels == 'picked'
                     and self.shape.channel_granularity < LEAST_PICKED)
            return 0.0 if waits or small else 1.0
        kind = self.route.channels
        if kind == 'picked' and self.shape.mask_before_norm:
            kind = 'shifted_halves' if self.case.dot_products else 'shifted'
        return BREAK_EVEN.get(kind, 1.0) if self.case.kernels else 1.0

    def deciding(self):
        shape, conv1 = self.shape, self.ops['conv1']
        steps = [Step('block', listed=self.route != STATIC)]
        if self.route == STATIC:
            return tuple(steps)
        if self.route.fused_masker:
            grid = (1, 1) if shape.layer_skipping else shape.grid_size(self.case.in_size)
            steps.append(self.step('masker_conv1x1', 'conv1', units=math.prod(grid),
                                   window=self.window()))
        else:
            if shape.layer_skipping:
                steps.append(self.step('layer_masker', op=conv1))
            if shape.spatial_skipping:
                grid = math.prod(shape.grid_size(self.case.in_size))
                steps.append(self.step('spatial_masker', op=conv1, units=grid,
                                       window=self.window()))
        if shape.channel_skipping:
            layers = tuple(op for name, op in self.ops.items()
                           if name.startswith('channel_masker.'))
            steps.append(self.step('channel_masker', op=conv1, units=shape.channel_groups,
                                   inner=layers))
        return tuple(steps)

    def window(self):
        shape = self.shape
        return 0 if shape.layer_skipping else shape.spatial_granularity * shape.stride

    def pool(self):
        return [self.step('avgpool', 'downsample_pool')] if self.shape.pooled_shortcut else []

    def dense(self):
        shape, masks, steps = self.shape, self.route.masks, self.pool()
        mask_channels = 'channels' in masks
        if shape.downsample:
            steps.append(self.step('conv1x1', 'downsample'))
        for part in ('conv1', 'conv2'):
            op = self.ops[part]
            kind = 'conv3x3_grouped' if op.groups > 1 else f'conv{op.kernel_size}x{op.kernel_size}'
            steps += [self.step(kind, part), self.step('relu', f'{part}.relu', op)]
            if mask_channels:
                steps.append(self.step('mask_channels', f'{part}.mask', op))
        if shape.se_channels:
            kind = 'excite_masked' if 'patches' in masks else 'excite'
            steps.append(self.step(kind, 'se', self.excitation()))
        add = 'add_relu' if set(masks) <= {'channels'} else 'add_masked_relu'
        return (*steps, self.step('conv1x1', 'conv3'), self.step(add, 'add'))

    def removed(self):
        """The shortcut alone; one that is the input has been rectified already."""
        if not self.shape.downsample:
            return ()
        return (*self.pool(), self.step('rows1x1', 'downsample'),
                self.step('relu', 'relu', self.ops['add']))

    def excitation(self):
        """Squeeze-and-excitation as one op over the map that it scales."""
        return replace(self.ops['se.fc1'], in_size=self.out, out_size=self.out)

    def listed(self):
        shape, steps, add = self.shape, self.pool(), self.ops['add']
        case = self.case
        rectifies = (shape.downsample and case.device != 'cpu' and case.kernels
                     and not case.gradients and self.route.channels != 'sliced')
        if rectifies:
            steps.append(self.step('shortcut1x1', 'downsample', patch=patch_side(case),
                                   sums=adds_up(case)))
        elif shape.downsample:
            steps.append(self.step('rows1x1', 'downsample'))
        elif case.gradients or not case.owns_input:
            steps.append(self.step('copy_map', 'identity', add))
        grid = math.prod(-(-n // patch_side(self.case)) for n in self.out)
        listing = self.step('list_patches', op=add, units=grid)
        if self.route.channels == 'sliced':
            groups = self.step('split_masks', op=add, units=shape.channel_groups)
            steps += [groups, Loop(MASKS, self.sliced(listing))]
        else:
            if self.route.channels == 'picked':
                steps.append(self.step('list_channels', op=add, units=shape.channel_groups))
            steps += [listing, *self.compute()]
        if shape.downsample and not rectifies:
            steps.append(self.step('relu', 'relu', add))
        return tuple(steps)

    def sliced(self, listing):
        shape, conv2 = self.shape, self.ops['conv2']
        outer = shape.in_channels + shape.out_channels
        take = [self.step('take_samples', part, op, when='taken') for part, op in (
            ('take.x', replace(self.ops['conv1'], out_channels=shape.in_channels,
                               out_size=self.case.in_size)),
            ('take.identity', self.ops['add']), ('take.out', self.ops['add']))]
        return (*take, listing,
                self.step('slice_weights', 'slice', conv2, units=outer, when='sliced'),
                *self.compute(),
                self.step('put_samples', 'put', self.ops['add'], when='taken'))

    def compute(self):
        """The three convolutions on listed patches."""
        shape, side = self.shape, patch_side(self.case)
        picked, sliced = (self.route.channels == name for name in ('picked', 'sliced'))
        kind, when = 'picked' if picked else 'rows', 'some_on' if sliced else ''
        narrow = bool(self.route.channels)
        everything = not (shape.spatial_skipping or shape.layer_skipping)
        extra = dict(patch=side, group_size=shape.channel_granularity * picked, when=when)
        steps = []
        if not self.route.fused_masker:
            if not everything and not lists_maps(self.case):
                steps.append(self.step('halo_positions', 'halo', self.ops['conv2'], patch=side,
                                       when=when))
            steps.append(self.step(f'{kind}1x1', 'conv1', listed=not everything,
                                   narrow='out' * narrow,
                                   **dict(extra, patch=side * shape.stride2)))
        masked = 'channels' in self.route.masks
        if masked:
            steps.append(self.step('mask_channels', 'conv1.mask', self.ops['conv1']))
        if sliced and shape.groups > 1:
            steps.append(self.step('spread_channels', 'spread', self.ops['conv2'],
                                   when='spread'))
        if picked and shape.mask_before_norm:
            steps.append(self.step('shift_channels', 'shift', self.ops['conv2'],
                                   units=shape.out_channels))
        conv2 = f'{kind}3x3'
        if shape.groups > 1:
            conv2 += '_grouped'
        elif self.route.winograd:
            conv2 = 'rows3x3_winograd'
        steps.append(self.step(conv2, 'conv2', narrow='both' * narrow, **extra))
        if masked:
            steps.append(self.step('mask_channels', 'conv2.mask', self.ops['conv2']))
        if sliced and shape.groups > 1:
            steps.append(self.step('keep_channels', 'keep', self.ops['conv2'], patch=side,
                                   when='spread'))
        if shape.se_channels:
            steps.append(self.step('picked_excite' if picked else 'excite_rows', 'se',
                                   self.excitation(), patch=side, when=when))
        return (*steps, self.step(f'{kind}1x1_add', 'conv3', narrow='in' * narrow,
                                  patch=side, group_size=extra['group_size'],
                                  sums=adds_up(self.case) and not narrow))


def expected_work(case: Case, route: BottleneckRoute, rates: Rates | None) -> Mapping[str, tuple]:
    """Work to expect at activation rates.

    Args:
        case (Case): The block's case.
        route (BottleneckRoute): How it is computed.
        rates (Rates | None): Scalars; one of 1 counts like one just below it. None: everything
            is known to be on.

    Returns:
        dict[str, tuple[Work, ...]]: As `Program.calls` takes it.
    """
    shape, batch, certain = case.shape, case.batch, rates is None
    rates = rates or Rates()
    layer, patch, halo, channel = (float(r) for r in (rates.layer, rates.patch, rates.halo,
                                                      rates.channel))
    if route.channels is None:
        channel = 1.0
    channels = _expected_channels(shape, channel)
    if route.channels == 'sliced' and not certain:
        # Every sample has its own mask.
        alone = [_part(case, 1, kept, halo, patch, channels) for kept in (0, 1)]
        sliced = dict(times=batch, sliced=1.0, taken=float(batch > 1), spread=_spreads(shape),
                      ones=float(shape.mask_before_norm))
        passes = tuple(replace(one, **dict(sliced, times=batch * share))
                       for one, share in zip(alone, (1 - layer, layer)) if share > 0)
        return {WHOLE: (Work(batch),), MASKS: passes}
    whole = tuple(replace(_part(case, batch, kept, halo, patch, channels), times=share)
                  for kept, share in around(layer * batch))
    return {WHOLE: whole, MASKS: whole}


def _expected_channels(shape, channel):
    """Active channels, and channels of the convolution groups that have one, to expect."""
    active = shape.width * channel
    units = max(shape.width // shape.groups // shape.channel_granularity, 1)
    return active, shape.width * (1 - (1 - channel)**units) if shape.groups > 1 else active


def _spreads(shape):
    """1 where the active channels of a group may leave others of it off."""
    return float(shape.groups > 1 and shape.width // shape.groups > shape.channel_granularity)


def _part(case, samples, kept, halo, patch, channels):
    """Work on some samples of which so many are kept, at rates within those."""
    shape = case.shape
    out, side = shape.out_size(case.in_size), patch_side(case)
    grid = math.prod(-(-n // side) for n in out)
    patches = kept * grid * patch
    mid = math.prod(shape.mid_size(case.in_size))
    return Work(samples, patches=patches, computing=min(kept, patches),
                positions=kept * mid * halo, channels=channels[0], read_channels=channels[1],
                some_on=float(channels[0] > 0))
