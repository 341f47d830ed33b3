"""The geometry of a LAUD bottleneck block, and from it the block's op specs."""
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .arguments import check_choice, paradigm_set, paradigms_per_stage, per_stage
from .bottleneck_program import STATIC, BottleneckRoute, bottleneck_program, expected_work, routes
from .opspec import OpSpec, Rates, Size
from .program import Case, Program

PARADIGMS = ('layer', 'spatial', 'channel')
# The mask of a decision that each paradigm makes.
MASKS = dict(layer='layer', spatial='patches', channel='channels')
CHANNEL_MASKERS = ('mlp', 'linear', 'conv_linear')


def ceil_div(a, b):
    """Smallest integer not below a / b."""
    return -(-a // b)


def stage_paradigms(num_stages, paradigm, spatial_granularity, channel_granularity,
                    channel_masker, masker_reduction, of=None):
    """What the blocks of each stage decide, as `BottleneckShape` takes it.

    Args:
        num_stages (int): Number of stages.
        paradigm: See `paradigms_per_stage`.
        spatial_granularity (int | Sequence[int]): S, for all stages or per stage.
        channel_granularity (int | Sequence[int]): G, for all stages or per stage.
        channel_masker (str): One of `CHANNEL_MASKERS`.
        masker_reduction (int): Groups per hidden unit of the 'mlp' masker.
        of (int, optional): See `per_stage`.

    Returns:
        list[dict]: Keyword arguments, one dict per stage.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    check_choice('masker.channel', channel_masker, CHANNEL_MASKERS)
    spatial = per_stage('spatial_granularity', spatial_granularity, num_stages, of=of)
    channel = per_stage('channel_granularity', channel_granularity, num_stages, of=of)
    paradigms = paradigms_per_stage(paradigm, num_stages, PARADIGMS, of)
    return [dict(paradigms=p, spatial_granularity=s, channel_granularity=c,
                 channel_masker=channel_masker, masker_reduction=masker_reduction)
            for p, s, c in zip(paradigms, spatial, channel)]


class MapDecisions:
    """What the paradigms of a block of maps say.

    Attributes:
        paradigms (tuple[str, ...]): What is skipped.
    """
    paradigms: tuple[str, ...]

    @property
    def paradigm(self) -> str | None:
        """What is skipped, as one word; None for a static block."""
        return '+'.join(self.paradigms) or None

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks of the block's `Decision`."""
        return tuple(MASKS[paradigm] for paradigm in self.paradigms)

    @property
    def spatial_skipping(self) -> bool:
        return 'spatial' in self.paradigms

    @property
    def layer_skipping(self) -> bool:
        return 'layer' in self.paradigms


@dataclass(frozen=True)
class BottleneckShape(MapDecisions):
    """Everything about a bottleneck block that is known before its weights.

    Attributes:
        name (str): Module path inside the backbone, such as 'layer1.0'.
        stage (int): Stage index, from 0.
        in_channels (int): Channels of the block's input.
        width (int): Channels of conv1 and conv2 (the bottleneck).
        out_channels (int): Channels of the block's output.
        stride (int): Stride of the block.
        dilation (int): Dilation of conv2.
        stride_in_conv1 (bool): 'caffe' style: the stride sits in conv1.
        groups (int): Groups of conv2.
        se_channels (int): Hidden channels of the squeeze-and-excitation after conv2; 0: none.
        downsample (bool): Whether the shortcut is a 1x1 convolution.
        avg_down (bool): Its stride sits in an average pool before it.
        paradigms (tuple[str, ...]): What is skipped, of `PARADIGMS`; empty: a static block.
        spatial_granularity (int): S, side of a patch in output positions.
        channel_granularity (int): G, channels per group.
        channel_masker (str): One of `CHANNEL_MASKERS`.
        masker_reduction (int): Groups per hidden unit of the 'mlp' masker.
        mask_before_norm (bool): Channel masks act before the norms.
    """
    name: str
    stage: int
    in_channels: int
    width: int
    out_channels: int
    stride: int = 1
    dilation: int = 1
    stride_in_conv1: bool = False
    groups: int = 1
    se_channels: int = 0
    downsample: bool = False
    avg_down: bool = False
    paradigms: tuple[str, ...] = ()
    spatial_granularity: int = 1
    channel_granularity: int = 1
    channel_masker: str = 'mlp'
    masker_reduction: int = 16
    mask_before_norm: bool = False

    halo = True  # conv1 has to run around the patches that conv2 reads

    def __post_init__(self):
        object.__setattr__(self, 'paradigms', paradigm_set(self.paradigms, PARADIGMS))
        if self.mask_before_norm and (self.groups > 1 or self.se_channels):
            raise ValueError('mask_before_norm must be False for blocks with grouped convolutions '
                             f'or squeeze-and-excitation, got True for {self.name}')
        if self.width % self.groups:
            raise ValueError(f'groups must divide the bottleneck width, got {self.groups} for '
                             f'width {self.width} ({self.name})')
        if self.channel_skipping and self.width % self.channel_granularity:
            raise ValueError(
                f'channel_granularity must divide the bottleneck width of every stage, got '
                f'{self.channel_granularity} for width {self.width} ({self.name})')

    @property
    def channel_skipping(self) -> bool:
        return 'channel' in self.paradigms

    @property
    def stride1(self) -> int:
        """Stride of conv1."""
        return self.stride if self.stride_in_conv1 else 1

    @property
    def stride2(self) -> int:
        """Stride of conv2."""
        return 1 if self.stride_in_conv1 else self.stride

    @property
    def pooled_shortcut(self) -> bool:
        """Whether the shortcut averages positions before its convolution."""
        return self.downsample and self.avg_down and self.stride > 1

    @property
    def channel_groups(self) -> int:
        """Number of channel groups that the masker decides on."""
        return self.width // self.channel_granularity

    @property
    def masker_hidden(self) -> int:
        """Hidden units of the 'mlp' channel masker (method, section 2)."""
        return max(self.channel_groups // self.masker_reduction, 16)

    def tiles_pay(self, granularity: int) -> bool:
        """Whether Winograd's F(2x2, 3x3) suits conv2 on patches of S x S, S = `granularity`.

        A tile of 2x2 outputs costs 16 products instead of 36; patches of odd
        size have tiles that are partly theirs.
        """
        tiles = ceil_div(granularity, 2)
        return (self.stride2 == self.dilation == self.groups == 1
                and 16 * tiles**2 < 8 * granularity**2)

    def mid_size(self, in_size: Size) -> Size:
        """Height and width of conv1's output, which conv2 reads."""
        return tuple(ceil_div(n, self.stride1) for n in in_size)

    def out_size(self, in_size: Size) -> Size:
        """Height and width of the block's output."""
        return tuple(ceil_div(n, self.stride) for n in in_size)

    def grid_size(self, in_size: Size) -> Size:
        """Height and width of the patch grid: ceil(output / S)."""
        return tuple(ceil_div(n, self.spatial_granularity) for n in self.out_size(in_size))

    def expected_rates(self, rate: float, in_size: Size | None = None) -> Rates:
        """Activation rates to expect when units are on independently with a probability.

        Args:
            rate (float): Share of units on: of samples, patches or channel groups.
            in_size (tuple[int, int], optional): Not needed for a bottleneck.

        Returns:
            Rates: Of one image; borders of the map are not looked at.
        """
        rates = {}
        if self.layer_skipping:
            rates['layer'] = rate
        if self.spatial_skipping:
            rates.update(patch=rate, halo=self._expected_halo(rate))
        if self.channel_skipping:
            # The square of a group's share exceeds the squared mean by its variance.
            units = max(self.width // self.groups // self.channel_granularity, 1)
            rates.update(channel=rate, channel_pair=rate**2 + rate * (1 - rate) / units)
        return Rates(**rates)

    def _expected_halo(self, rate):
        """Share of conv1's positions that some window of an active patch reads."""
        side, reach = self.spatial_granularity * self.stride2, self.dilation
        # Along an axis: how many patches read the position at each offset in a patch.
        # Output o reads the inputs o * stride + (-1, 0, 1) * dilation.
        readers = [len({(offset + shift) // self.stride2 // self.spatial_granularity
                        for shift in (-reach, 0, reach)
                        if (offset + shift) % self.stride2 == 0}) for offset in range(side)]
        counts = Counter(a * b for a in readers for b in readers)
        return sum(n * (1 - (1 - rate)**k) for k, n in counts.items()) / side**2

    def program(self, case: Case, route: Any = None) -> Program:
        """The steps of a case of this shape, see `bottleneck_program`."""
        return bottleneck_program(case, route)

    @property
    def static_route(self) -> Any:
        """The route of the static block."""
        return STATIC

    def dense_route(self, masks: tuple[str, ...]) -> Any:
        """The route that computes everything and multiplies by some of the masks."""
        return BottleneckRoute('dense', masks)

    def routes(self, case: Case) -> tuple:
        """Routes that can run a case, the default first."""
        return routes(case)

    def expected_work(self, case: Case, route: Any, rates: Rates) -> Mapping[str, tuple]:
        """Work to expect of a case at `Rates`."""
        return expected_work(case, route, rates)

    def op_specs(self, in_size: Size) -> tuple[OpSpec, ...]:
        """Describe the block's work on one image.

        Args:
            in_size (tuple[int, int]): Height and width of the block's input.

        Returns:
            tuple[OpSpec, ...]: Convolutions, excitation, shortcut, add and maskers.
        """
        mid, out = self.mid_size(in_size), self.out_size(in_size)

        def conv(name, cin, cout, read, written, **kwargs):
            return OpSpec(f'{self.name}.{name}', 'conv', cin, cout, read, written, **kwargs)

        ops = [
            conv('conv1', self.in_channels, self.width, in_size, mid, stride=self.stride1,
                 scaled_by=('layer', 'halo', 'channel')),
            conv('conv2', self.width, self.width, mid, out, kernel_size=3, stride=self.stride2,
                 dilation=self.dilation, groups=self.groups,
                 scaled_by=('layer', 'patch', 'channel_pair')),
            *self._excitation_specs(out),
            conv('conv3', self.width, self.out_channels, out, out,
                 scaled_by=('layer', 'patch', 'channel')),
            OpSpec(f'{self.name}.add', 'add', self.out_channels, self.out_channels, out, out,
                   scaled_by=('layer', 'patch')),
        ]
        if self.pooled_shortcut:
            ops.append(OpSpec(f'{self.name}.downsample_pool', 'pool', self.in_channels,
                              self.in_channels, in_size, out, self.stride, self.stride))
        if self.downsample:
            pooled = self.pooled_shortcut
            ops.append(conv('downsample', self.in_channels, self.out_channels,
                            out if pooled else in_size, out, stride=1 if pooled else self.stride))
        return (*ops, *self._masker_specs(in_size))

    def _excitation_specs(self, size):
        if not self.se_channels:
            return ()
        one, width, hidden = (1, 1), self.width, self.se_channels

        def op(name, kind, cin, cout, read, written, *scaled_by):
            return OpSpec(f'{self.name}.se.{name}', kind, cin, cout, read, written,
                          scaled_by=('layer', *scaled_by, 'channel'))

        return (op('pool', 'pool', width, width, size, one, 'patch'),
                op('fc1', 'linear', width, hidden, one, one),
                op('fc2', 'linear', hidden, width, one, one),
                op('scale', 'scale', width, width, size, size, 'patch'))

    def _masker_specs(self, in_size):
        def op(name, kind, cin, cout, read, written):
            return OpSpec(f'{self.name}.{name}', kind, cin, cout, read, written, dynamic=True)

        ops = []
        grids = dict(layer=(1, 1), spatial=self.grid_size(in_size))
        for paradigm, grid in grids.items():
            if paradigm in self.paradigms:
                ops += [op(f'{paradigm}_masker.pool', 'pool', self.in_channels,
                           self.in_channels, in_size, grid),
                        op(f'{paradigm}_masker.conv', 'conv', self.in_channels, 2, grid, grid)]
        if self.channel_skipping:
            one, logits = (1, 1), 2 * self.channel_groups
            hidden = {'mlp': self.masker_hidden, 'linear': None,
                      'conv_linear': self.masker_hidden}[self.channel_masker]
            if self.channel_masker == 'conv_linear':
                ops += [op('channel_masker.conv', 'conv', self.in_channels, hidden, in_size,
                           in_size),
                        op('channel_masker.pool', 'pool', hidden, hidden, in_size, one)]
            else:
                ops.append(op('channel_masker.pool', 'pool', self.in_channels,
                              self.in_channels, in_size, one))
            if self.channel_masker == 'mlp':
                ops.append(op('channel_masker.fc1', 'linear', self.in_channels, hidden, one, one))
            ops.append(op('channel_masker.fc2', 'linear', hidden or self.in_channels, logits,
                          one, one))
        return tuple(ops)


Stages = tuple[tuple[BottleneckShape, ...], ...]  # the blocks of every stage
