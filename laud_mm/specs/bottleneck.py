"""The geometry of a LAUD bottleneck block, and from it the block's op specs."""
from dataclasses import dataclass
from typing import Optional

from .opspec import OpSpec

PARADIGMS = ('layer', 'channel', 'spatial', 'both')
CHANNEL_MASKERS = ('mlp', 'linear', 'conv_linear')


def ceil_div(a, b):
    """Smallest integer not below a / b."""
    return -(-a // b)


@dataclass(frozen=True)
class BottleneckShape:
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
        downsample (bool): Whether the shortcut is a 1x1 convolution.
        paradigm (str | None): One of `PARADIGMS`; None for a static block.
        spatial_granularity (int): S, side of a patch in output positions.
        channel_granularity (int): G, channels per group.
        channel_masker (str): One of `CHANNEL_MASKERS`.
        masker_reduction (int): Groups per hidden unit of the 'mlp' masker.
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
    downsample: bool = False
    paradigm: Optional[str] = None
    spatial_granularity: int = 1
    channel_granularity: int = 1
    channel_masker: str = 'mlp'
    masker_reduction: int = 16

    def __post_init__(self):
        if self.channel_skipping and self.width % self.channel_granularity:
            raise ValueError(
                f'channel_granularity must divide the bottleneck width of every stage, got '
                f'{self.channel_granularity} for width {self.width} ({self.name})')

    @property
    def spatial_skipping(self):
        return self.paradigm in ('spatial', 'both')

    @property
    def channel_skipping(self):
        return self.paradigm in ('channel', 'both')

    @property
    def layer_skipping(self):
        return self.paradigm == 'layer'

    @property
    def stride1(self):
        """Stride of conv1."""
        return self.stride if self.stride_in_conv1 else 1

    @property
    def stride2(self):
        """Stride of conv2."""
        return 1 if self.stride_in_conv1 else self.stride

    @property
    def channel_groups(self):
        """Number of channel groups that the masker decides on."""
        return self.width // self.channel_granularity

    @property
    def masker_hidden(self):
        """Hidden units of the 'mlp' channel masker (method, section 2)."""
        return max(self.channel_groups // self.masker_reduction, 16)

    def mid_size(self, in_size):
        """Height and width of conv1's output, which conv2 reads."""
        return tuple(ceil_div(n, self.stride1) for n in in_size)

    def out_size(self, in_size):
        """Height and width of the block's output."""
        return tuple(ceil_div(n, self.stride) for n in in_size)

    def grid_size(self, in_size):
        """Height and width of the patch grid: ceil(output / S)."""
        return tuple(ceil_div(n, self.spatial_granularity) for n in self.out_size(in_size))

    def op_specs(self, in_size):
        """Describe the block's work on one image.

        Args:
            in_size (tuple[int, int]): Height and width of the block's input.

        Returns:
            tuple[OpSpec, ...]: Convolutions, shortcut, add and maskers.
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
            conv('conv3', self.width, self.out_channels, out, out,
                 scaled_by=('layer', 'patch', 'channel')),
            OpSpec(f'{self.name}.add', 'add', self.out_channels, self.out_channels, out, out,
                   scaled_by=('layer', 'patch')),
        ]
        if self.downsample:
            ops.append(conv('downsample', self.in_channels, self.out_channels, in_size, out,
                            stride=self.stride))
        return (*ops, *self._masker_specs(in_size))

    def _masker_specs(self, in_size):
        def op(name, kind, cin, cout, read, written):
            return OpSpec(f'{self.name}.{name}', kind, cin, cout, read, written, dynamic=True)

        ops = []
        if self.spatial_skipping or self.layer_skipping:
            grid = (1, 1) if self.layer_skipping else self.grid_size(in_size)
            ops += [op('spatial_masker.pool', 'pool', self.in_channels, self.in_channels,
                       in_size, grid),
                    op('spatial_masker.conv', 'conv', self.in_channels, 2, grid, grid)]
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
