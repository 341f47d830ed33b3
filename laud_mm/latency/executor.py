"""What the skipping executor runs on a block, as steps that a calibration has measured."""
import math
from dataclasses import replace

from .steps import Step


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
    steps = [*b.maskers(), Step('block', ()), *b.shortcut()]
    if block.shape.layer_skipping:
        steps += b.layer(float(rates.layer))
    elif block.shape.spatial_skipping:
        steps += b.spatial(rates)
    else:
        steps += b.channel(float(rates.channel))
    if block.shape.downsample and (batch > 1 or block.shape.spatial_skipping):
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
            steps += [Step(kind, sizes if stem else (*sizes, reads), () if stem else (op.stride, 0),
                           name=op.name, args=(batch, *op.out_size, op.stride)),
                      Step('relu', (rows, op.out_channels), name=op.name)]
    return steps


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
        return [Step('block', ()), *self.shortcut(), *self.branch(self.batch),
                self.step('add_relu', (self.out_rows * self.batch, self.shape.out_channels))]

    def shortcut(self):
        if not self.shape.downsample:
            return []
        return [self.conv('conv1x1', self.batch, self.shape.in_channels, self.shape.out_channels,
                          self.in_rows, self.out, self.shape.stride, 'downsample', (0,))]

    def conv(self, kind, n, inputs, outputs, read_rows, out, stride=1, name='', variant=()):
        return self.step(kind, (n * math.prod(out), inputs, outputs, n * read_rows),
                         (stride, *variant), args=(n, *out, stride), name=name)

    def branch(self, n, active=None):
        """conv1 to conv3 on n whole samples, with some of the channels active."""
        s, width = self.shape, self.shape.width
        sliced = (int(active is not None),)  # to any number of channels, handy or not
        active = width if active is None else active
        steps = [self.conv('conv1x1', n, s.in_channels, active, self.in_rows, self.mid,
                           s.stride1, 'conv1', sliced),
                 self.step('relu', (n * self.mid_rows, active))]
        if s.groups == 1:
            steps.append(self.conv('conv3x3', n, active, active, self.mid_rows, self.out,
                                   s.stride2, 'conv2', sliced))
        else:
            read = self.grouped_width(active)
            if active < width:
                steps += [self.step('pick_channels', (n * self.mid_rows, read)),
                          self.step('pick_channels', (n * self.out_rows, active))]
            steps.append(self.conv('conv3x3_grouped', n, read, width // s.groups, self.mid_rows,
                                   self.out, s.stride2, 'conv2', (width // s.groups,)))
        steps.append(self.step('relu', (n * self.out_rows, active)))
        if s.se_channels:
            steps.append(self.step('excite', (n, self.out_rows, active, s.se_channels),
                                   args=self.out))
        return [*steps, self.conv('conv1x1', n, active, s.out_channels, self.out_rows, self.out,
                                  1, 'conv3', sliced)]

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
                      self.step('split_masks', (n, s.channel_groups))]
        return steps

    def samples(self, n, branch):
        """Gather n of the samples, run the branch, add back."""
        if self.batch == 1:
            return [*branch, self.step('add_relu', (self.out_rows, self.shape.out_channels))]
        return [self.step('gather_samples', (n, self.in_rows, self.shape.in_channels, self.batch),
                          args=self.in_size),
                *branch,
                self.step('add_samples', (n, self.out_rows, self.shape.out_channels, self.batch),
                          args=self.out)]

    def layer(self, rate):
        count, steps = rate * self.batch, []
        low = math.floor(count)
        for n, share in ((low, 1 - (count - low)), (low + 1, count - low)):
            if n and share > 1e-9:
                steps += scale_steps(self.samples(n, self.branch(n)), share)
        return steps

    def channel(self, rate):
        """Every sample has its own mask, so its own weights."""
        s, active = self.shape, max(rate * self.shape.width, 1.0)
        return scale_steps([self.slice(active), *self.samples(1, self.branch(1, active))],
                           self.batch)

    def spatial(self, rates):
        s, side = self.shape, self.shape.spatial_granularity
        share, n = float(rates.patch), self.batch
        # Every sample has its own channels; without channel skipping they run together.
        parts = n if s.channel_skipping else 1
        active = max(s.width * float(rates.channel), 1.0)
        patches = share * self.grid * n / parts
        patch_rows, halo_rows = patches * side**2, float(rates.halo) * self.mid_rows * n / parts
        plan = self.step('plan_patches', (n * self.mid_rows, patch_rows, n * self.grid, n),
                         (s.stride2, _size_class(side)), args=(*self.out, side, share))
        if share == 0:
            return [plan]
        window = (side - 1) * s.stride2 + 2 * s.dilation + 1
        inside = min(patch_rows, share * self.out_rows * n / parts)
        grouped = s.groups > 1
        read = self.grouped_width(active) if grouped else active
        sizes = (read, s.width // s.groups) if grouped else (active, active)
        steps = [
            plan,
            self.step('gather_rows', (halo_rows, s.in_channels, n * self.in_rows)),
            self.step('linear', (halo_rows, s.in_channels, active), name='conv1'),
            self.step('relu', (halo_rows, active)),
            self.step('gather_windows',
                      (halo_rows, patches * window**2, n * self.mid_rows, read), args=(
                          n, *self.out, side, share, s.stride2, s.dilation)),
            self.step('conv3x3_windows' + '_grouped' * grouped,
                      (patch_rows, *sizes, patches * window**2),
                      (_size_class(side), *sizes[1:] * grouped),
                      args=(patches, window, side, s.stride2, s.dilation), name='conv2'),
            self.step('relu', (patch_rows, active))]
        if grouped and active < s.width:
            steps += [self.step('pick_channels', (halo_rows, read)),
                      self.step('pick_channels', (patch_rows, active))]
        if s.se_channels:
            steps.append(self.step('excite_rows', (inside, active, s.se_channels), args=(n,)))
        steps += [self.step('linear', (inside, active, s.out_channels), name='conv3'),
                  self.step('scatter_add_rows', (inside, s.out_channels, n * self.out_rows))]
        if s.channel_skipping:
            steps.append(self.slice(active))
        return scale_steps(steps, parts)

    def slice(self, active):
        """Cut out the weights of the active channels, for one mask."""
        s = self.shape
        return self.step('slice_channels' if s.groups == 1 else 'slice_grouped',
                         (s.width, active, s.in_channels + s.out_channels),
                         args=(s.in_channels, s.out_channels, s.groups, s.channel_granularity))


def scale_steps(steps, times):
    """The steps, run `times` as often."""
    return [replace(step, times=step.times * times) for step in steps]
