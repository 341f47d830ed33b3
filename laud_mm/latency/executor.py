"""What the skipping executor runs on a block, as steps that a calibration has measured."""
import math
from dataclasses import dataclass, replace

from .steps import Step

_LINE = 16  # channels that memory brings at once


def executor_steps(block, rates, batch):
    """The steps of the skipping executor on one block.

    A rate of 1 is costed like one just below it. A block that is known to be
    always on takes the dense path: pass None.

    Args:
        block (BlockSpec): A bottleneck block.
        rates (Rates | None): Scalars; None: everything on, decided all the same.
        batch (int): Images.

    Returns:
        list[Step]: In order.
    """
    b = _BottleneckSteps(block, batch)
    if block.shape.paradigm is None:
        return b.static()
    if rates is None:
        return [*b.maskers(), *b.static()]
    steps = [*b.maskers(), Step('block', ()), *b.dynamic_shortcut()]
    if block.shape.layer_skipping:
        steps += b.layer(float(rates.layer))
    elif block.shape.groups > 1 and block.shape.channel_skipping:
        steps += b.sliced(rates)
    else:
        steps += b.listed(rates)
    if block.shape.downsample:
        steps.append(b.step('relu', (b.out_rows * batch, b.shape.out_channels)))
    return steps


def static_steps(block, batch):
    """The steps of the skipping executor on the static block."""
    return _BottleneckSteps(block, batch).static()


def outside_steps(ops, batch):
    """The steps of the stem: its convolutions with their ReLU, and its pool."""
    steps = []
    for op in ops:
        rows = op.out_size[0] * op.out_size[1] * batch
        if op.kind == 'pool':
            steps.append(Step('maxpool', (rows, op.out_channels), name=op.name))
        else:
            reads = op.in_size[0] * op.in_size[1] * batch
            sizes = (rows, op.in_channels, op.out_channels)
            kind = f'conv{op.kernel_size}x{op.kernel_size}'
            stem = kind == 'conv7x7'
            variant = () if stem else (op.stride, _plain(batch, reads * op.in_channels))
            steps += [Step(kind, sizes if stem else (*sizes, reads), variant,
                           name=op.name, args=(batch, *op.out_size, op.stride)),
                      Step('relu', (rows, op.out_channels), name=op.name)]
    return steps


def _plain(batch, values):
    """1 where torch convolves so small an input itself on a CPU, without oneDNN, else 0."""
    return int(batch == 1 and values <= 20480)


def _size_class(side):
    """Sides of windows that behave alike: 1, 2, 3 to 5, 6 to 11, more."""
    return next((low for low, high in ((1, 1), (2, 2), (4, 5), (8, 11)) if side <= high), 16)


class _BottleneckSteps:
    """The steps of one bottleneck block on a batch."""

    def __init__(self, block, batch):
        self.shape, self.batch, self.name = block.shape, batch, block.name
        self.in_size = block.in_size
        self.mid, self.out = (getattr(block.shape, size)(block.in_size)
                              for size in ('mid_size', 'out_size'))
        self.grid = math.prod(block.shape.grid_size(block.in_size))
        self.in_rows, self.mid_rows, self.out_rows = (
            math.prod(size) for size in (block.in_size, self.mid, self.out))

    def step(self, kind, sizes, variant=(), args=(), name=''):
        return Step(kind, tuple(map(float, sizes)), variant, 1.0, f'{self.name}.{name or kind}',
                    args)

    def static(self):
        s, n = self.shape, self.batch
        steps = [Step('block', ())]
        if s.downsample:
            steps.append(self.conv('conv1x1', s.in_channels, s.out_channels, self.in_rows,
                                   self.out, s.stride, 'downsample'))
        steps += [self.conv('conv1x1', s.in_channels, s.width, self.in_rows, self.mid, s.stride1,
                            'conv1'), self.step('relu', (n * self.mid_rows, s.width))]
        if s.groups == 1:
            steps.append(self.conv('conv3x3', s.width, s.width, self.mid_rows, self.out,
                                   s.stride2, 'conv2'))
        else:
            group = s.width // s.groups
            steps.append(self.conv('conv3x3_grouped', s.width, group, self.mid_rows, self.out,
                                   s.stride2, 'conv2', (group,)))
        steps.append(self.step('relu', (n * self.out_rows, s.width)))
        if s.se_channels:
            steps.append(self.step('excite', (n, self.out_rows, s.width, s.se_channels),
                                   args=self.out))
        return [*steps, self.conv('conv1x1', s.width, s.out_channels, self.out_rows, self.out, 1,
                                  'conv3'),
                self.step('add_relu', (self.out_rows * n, s.out_channels))]

    def conv(self, kind, inputs, outputs, read_rows, out, stride, name, variant=None):
        n = self.batch
        variant = variant or (_plain(n, read_rows * inputs), )
        return self.step(kind, (n * math.prod(out), inputs, outputs, n * read_rows),
                         (stride, *variant), args=(n, *out, stride), name=name)

    def grouped_width(self, active):
        """Channels of the convolution groups that have an active one."""
        width, groups = self.shape.width, self.shape.groups
        units = max(width // groups // self.shape.channel_granularity, 1)
        return width * (1 - (1 - active / width)**units)

    def maskers(self):
        s, n = self.shape, self.batch
        steps = []
        if s.layer_skipping:
            steps.append(self.step('layer_masker', (n, self.in_rows, s.in_channels),
                                   args=self.in_size))
        if s.spatial_skipping:
            window = s.spatial_granularity * s.stride
            steps.append(self.step('spatial_masker', (n, self.in_rows, s.in_channels, self.grid),
                                   (_size_class(window),), args=(*self.in_size, window)))
        if s.channel_skipping:
            steps += [self.step('channel_masker', (n, self.in_rows, s.in_channels,
                                                   s.channel_groups),
                                args=(*self.in_size, s.channel_masker, s.masker_hidden)),
                      self.step('list_channels' if s.groups == 1 else 'split_masks',
                                (n, s.channel_groups))]
        return steps

    def dynamic_shortcut(self):
        s, rows = self.shape, self.batch * self.out_rows
        return [self.step('rows1x1', (rows, s.in_channels, s.out_channels), (s.stride, 0),
                          args=(rows, s.stride, 0), name='downsample')] * s.downsample

    def layer(self, rate):
        """A kept sample is one patch as large as the map."""
        count, side = rate * self.batch, max(self.out)
        low = math.floor(count)
        steps = [self.step('list_patches', (self.batch,), args=(self.batch, 1, 1))]
        for kept, share in ((low, 1 - (count - low)), (low + 1, count - low)):
            if kept and share > 1e-9:
                part = _Part(self.batch, kept, side, kept * self.mid_rows, kept)
                steps += scale_steps(self.compute(part), share)
        return steps

    def listed(self, rates):
        """Patches of the whole batch in one go, each sample's channels picked by the kernels."""
        s, n = self.shape, self.batch
        active = max(s.width * float(rates.channel), 1.0) if s.channel_skipping else None
        steps, part = self.patches(rates, n)
        return steps if part.patches == 0 else [*steps, *self.compute(part, active)]

    def sliced(self, rates):
        """Every sample has its own mask, so its own weights."""
        s, active = self.shape, max(self.shape.width * float(rates.channel), 1.0)
        steps, part = self.patches(rates, 1)
        if part.patches:
            steps += [self.step('slice_grouped', (s.width, active, s.in_channels + s.out_channels),
                                args=(s.in_channels, s.out_channels, s.groups,
                                      s.channel_granularity)),
                      # What was sliced just now is near.
                      *(replace(step, far_weights=0.0) for step in self.compute(part, active))]
        return scale_steps(steps, self.batch)

    def patches(self, rates, samples):
        """What lists the patches of some samples, and the part that they make."""
        side, share = max(self.out), 1.0
        if self.shape.spatial_skipping:
            side, share = self.shape.spatial_granularity, float(rates.patch)
        grid = [math.ceil(n / side) for n in self.out]
        listing = self.step('list_patches', (samples * math.prod(grid),),
                            args=(samples, *grid))
        read = samples * self.mid_rows
        if self.shape.spatial_skipping:
            read *= float(rates.halo)
        patches = share * samples * math.prod(grid)
        return [listing], _Part(samples, patches, side, read,
                                min(patches, samples) if share else 0)

    def compute(self, part, active=None):
        """The three convolutions on listed patches, with some of the channels active."""
        s, n = self.shape, part.samples
        sides = [min(part.side, size) for size in self.out]
        grid = [math.ceil(size / part.side) for size in self.out]
        rows = part.patches * math.prod(sides)
        share = rows / (n * self.out_rows)
        where = (n, *self.out, part.side, min(share, 1.0))
        picks = active is not None and s.groups == 1
        active = s.width if active is None else active
        read = active if s.groups == 1 else self.grouped_width(active)
        kind, extra = ('picked', (part.computing,)) if picks else ('rows', ())
        args = (s.channel_granularity,) if picks else ()
        steps = []
        listed = s.paradigm != 'channel'
        if listed:
            lines = min((sides[0] - 1) * s.stride2 + 1 + 2 * s.dilation, self.mid[0])
            steps.append(self.step(
                'halo_positions', (part.read, n * self.mid_rows, part.patches * lines),
                args=(*where, s.stride2, s.dilation)))
        conv1 = self.step(
            f'{kind}1x1', (part.read, s.in_channels, active, *extra),
            (int(listed),) if picks else (s.stride1, int(listed)), name='conv1',
            args=(n * self.mid_rows, s.stride1, part.side * listed, *args))
        fetched = s.width
        if picks:
            # Picked channels lie between others, and memory comes in lines.
            groups_per_line = _LINE / s.channel_granularity
            fetched *= 1 - (1 - min(active / s.width, 1.0))**groups_per_line
            conv1 = replace(conv1, far_weights=s.in_channels * fetched)
        steps.append(conv1)
        window = (*where, s.stride2, s.dilation, *args)
        if s.groups > 1:
            group = s.width // s.groups
            steps.append(self.step('rows3x3_grouped', (rows, read, group), (s.stride2, group),
                                   window, 'conv2'))
            if active < s.width:
                steps += [self.step('pick_channels', (part.read, read)),
                          self.step('pick_channels', (rows, active))]
        elif picks:
            steps.append(replace(
                self.step('picked3x3', (rows, active, active, *extra), (s.stride2,), window,
                          'conv2'), far_weights=9 * active * fetched))
        elif s.tiles_pay(part.side):
            tiles = math.prod(math.ceil(side / 2) for side in sides)
            steps.append(self.step('rows3x3_winograd', (4 * part.patches * tiles, active, active),
                                   (), window, 'conv2'))
        else:
            steps.append(self.step('rows3x3', (rows, active, active), (s.stride2,), window,
                                   'conv2'))
        if s.se_channels:
            computing = max(part.computing, 1.0)
            inside = part.patches / (computing * math.prod(grid)) * self.out_rows
            steps.append(self.step('excite_rows', (inside, active, s.se_channels, computing),
                                   args=where))
        return [*steps, self.step(f'{kind}1x1_add', (rows, active, s.out_channels, *extra),
                                  args=(*where, *args), name='conv3')]


@dataclass(frozen=True)
class _Part:
    """Listed patches: of how many samples, how many, their side, positions that they read."""
    samples: int
    patches: float
    side: int
    read: float
    computing: float  # samples that have one


def scale_steps(steps, times):
    """The steps, run `times` as often."""
    return [replace(step, times=step.times * times) for step in steps]
