"""Steps: what the skipping executor runs, as sizes that a calibration can put a time to.

A step is one call, or a few that always go together, in the executor's code. A
calibration measures steps of random sizes on a machine and fits every kind of
step by a sum of products of its sizes with weights that are not negative
(`StepModel`), so that the prediction never falls when a size rises.
"""
import itertools
import math
from dataclasses import dataclass, replace
from typing import Dict, Tuple

import numpy as np

# Kind of step -> the sizes that describe it. Positions and rows are of the whole batch.
STEP_SIZES = dict(
    # Convolutions and linear layers, weights included.
    conv7x7=('rows', 'inputs', 'outputs'),          # rows: output positions
    conv1x1=('rows', 'inputs', 'outputs', 'reads'),  # reads: input positions
    conv3x3=('rows', 'inputs', 'outputs', 'reads'),
    conv3x3_grouped=('rows', 'width', 'group_width', 'reads'),
    conv3x3_windows=('rows', 'inputs', 'outputs', 'reads'),
    conv3x3_windows_grouped=('rows', 'width', 'group_width', 'reads'),
    linear=('rows', 'inputs', 'outputs'),
    maxpool=('rows', 'channels'),
    relu=('rows', 'channels'),
    add_relu=('rows', 'channels'),
    excite=('samples', 'positions', 'channels', 'hidden'),
    # Deciding.
    layer_masker=('samples', 'positions', 'channels'),
    channel_masker=('samples', 'positions', 'channels', 'groups'),
    spatial_masker=('samples', 'positions', 'channels', 'units'),
    # Layer skipping.
    gather_samples=('samples', 'sample_rows', 'channels', 'batch'),
    add_samples=('samples', 'sample_rows', 'channels', 'batch'),
    # Channel skipping.
    split_masks=('samples', 'groups'),
    slice_channels=('width', 'active', 'outer'),     # outer: channels outside the bottleneck
    slice_grouped=('width', 'active', 'outer'),
    pick_channels=('rows', 'channels'),
    # Spatial skipping.
    plan_patches=('map_rows', 'patch_rows', 'units', 'samples'),
    gather_rows=('rows', 'channels', 'map_rows'),
    gather_windows=('rows', 'window_rows', 'map_rows', 'channels'),
    scatter_add_rows=('rows', 'channels', 'map_rows'),
    excite_rows=('rows', 'channels', 'hidden'),
    # What a block costs besides.
    block=(),
)
# Groups of kinds that slow down alike in a net.
STEP_GROUPS = {kind: 'matrix' if kind.startswith(('conv', 'linear')) else
               'decide' if 'mask' in kind or 'slice' in kind or kind in ('plan_patches', 'block')
               else 'move' for kind in STEP_SIZES}
_MATRIX = ('conv1x1', 'conv3x3', 'conv3x3_windows', 'linear', 'conv7x7')
_EXPONENTS = (0.0, 0.5, 1.0)
_OCTAVES = range(0, 28)
_VECTOR, _TILE = 16, 64  # channels that a vector register, and a tile of a matrix product, take
_CHANNELS = ('inputs', 'outputs', 'channels', 'width', 'active', 'hidden')


@dataclass(frozen=True)
class Step:
    """One step of the executor.

    Attributes:
        kind (str): A key of `STEP_SIZES`.
        sizes (tuple[float, ...]): In the order of `STEP_SIZES`; expected sizes
            may be fractions.
        variant (tuple[int, ...]): Sizes that pick another program rather than
            more work, such as the side of a window. Each has its own fit.
        times (float): How often it runs, on average.
        name (str): The op it serves.
        args (tuple): What else a measurement needs to run it; costs do not read it.
    """
    kind: str
    sizes: Tuple[float, ...]
    variant: Tuple[int, ...] = ()
    times: float = 1.0
    name: str = ''
    args: Tuple = ()

    @property
    def key(self):
        """Kind and variant as one word."""
        return '/'.join([self.kind, *map(str, self.variant)])


def step_terms(kind):
    """Names of the terms that a kind of step is fitted by, see `step_features`."""
    sizes = STEP_SIZES[kind]
    names = [' '.join(f'{name}^{power:g}' for name, power in zip(sizes, powers) if power) or '1'
             for powers in itertools.product(_EXPONENTS, repeat=len(sizes))]
    products = [' '.join(sizes[i] for i in subset) for subset in _subsets(len(sizes))]
    products += ['all rounded up'] * bool(sizes)
    if kind in _MATRIX:
        products += ['inputs outputs in vectors', 'inputs in vectors outputs in tiles',
                     'all in tiles']
    names += [f'{product} {octave}' for product in products for octave in _octave_names()]
    if kind in _MATRIX:
        names += [f'rows of weights {octave}' for octave in _octave_names()]
    return names


def _subsets(count):
    return [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]


def _octave_names():
    return ['to 1', *(f'from 2^{octave}' for octave in _OCTAVES)]


def _octaves(values):
    """How much of each octave lies below a value: (N,) to (N, octaves)."""
    edges = np.array([0.0, *(2.0**octave for octave in _OCTAVES), np.inf])
    return np.clip(values[:, None] - edges[:-1], 0, None).clip(max=np.diff(edges)[None])


def _ceil_to(values, multiple):
    return np.ceil(values / multiple) * multiple


def step_features(kind, sizes, units):
    """Values of the terms of a step.

    Products of powers of the sizes; products of sizes octave by octave, which
    make up any rising curve, such as one with a cache's edge in it; and the
    same with samples rounded up to a wave of the machine's engines, channels
    to vectors and tiles.

    Args:
        kind (str): A key of `STEP_SIZES`.
        sizes (np.ndarray): (N, number of sizes).
        units (int): Processing engines of the machine: threads or SMs.

    Returns:
        np.ndarray: (N, number of terms), in the order of `step_terms`; none
        falls when a size rises.
    """
    names = STEP_SIZES[kind]
    sizes = np.asarray(sizes, float).reshape(len(sizes), len(names))
    features = [np.stack([
        np.prod(sizes**np.array(powers), axis=1) if powers else np.ones(len(sizes))
        for powers in itertools.product(_EXPONENTS, repeat=len(names))], 1)]
    products = [np.prod(sizes[:, subset], axis=1) for subset in _subsets(len(names))]
    if names:
        steps = [units if n == 'samples' else _VECTOR if n in _CHANNELS else 1 for n in names]
        products.append(np.prod(_ceil_to(sizes, np.array(steps)), axis=1))
    if kind in _MATRIX:
        rows, inputs, outputs = sizes[:, :3].T
        products += [rows * _ceil_to(inputs, _VECTOR) * _ceil_to(outputs, _VECTOR),
                     rows * _ceil_to(inputs, _VECTOR) * _ceil_to(outputs, _TILE),
                     _ceil_to(rows, _TILE) * _ceil_to(inputs, _TILE) * _ceil_to(outputs, _TILE)]
    features += [_octaves(product) for product in products]
    if kind in _MATRIX:
        # Weights beyond a cache slow every row down.
        features.append(rows[:, None] * _octaves(inputs * outputs))
    return np.concatenate(features, 1)


@dataclass(frozen=True)
class NetCorrection:
    """What steps cost more in a net than by themselves, over and over.

    There the code and the memory of other steps have been through the caches.

    Attributes:
        factors (dict[str, float]): By the groups of `STEP_GROUPS`.
        call_ms (float): Added for every call to torch.
        calls (dict[str, float]): `Step.key` -> calls to torch that it makes.
    """
    factors: Dict[str, float]
    call_ms: float
    calls: Dict[str, float]


class StepModel:
    """Latency of steps on one machine.

    Args:
        weights (dict[str, dict[str, float]]): `Step.key` -> term -> ms.
        units (int): See `step_features`.
        correction (NetCorrection, optional): Default: steps cost in a net what
            they cost by themselves.
    """

    def __init__(self, weights: Dict[str, Dict[str, float]], units: int, correction=None):
        self.weights, self.units, self.correction = weights, units, correction
        self._alone, self._keys, self._terms = {}, {}, {}
        for key, own in weights.items():
            terms = step_terms(key.split('/')[0])
            self._terms[key] = [(i, own[term]) for i, term in enumerate(terms) if term in own]

    def latency_ms(self, step):
        """Predicted latency of one run of a step in a net.

        Raises:
            ValueError: If the calibration does not know the kind of step.
        """
        alone = self.alone_ms(step)
        if self.correction is None:
            return alone
        factor = self.correction.factors.get(STEP_GROUPS[step.kind], 1.0)
        return factor * alone + self.correction.call_ms * self.calls(step)

    def calls(self, step):
        """Calls to torch that a step makes."""
        return 0.0 if self.correction is None else self.correction.calls.get(
            self._nearest(step), 0.0)

    def alone_ms(self, step):
        """Predicted latency of one run of a step that is run over and over."""
        case = step.key, step.sizes
        if case not in self._alone:
            values = step_features(step.kind, [step.sizes], self.units)[0]
            self._alone[case] = float(sum(
                values[i] * weight for i, weight in self._terms[self._nearest(step)]))
        return self._alone[case]

    def _nearest(self, step):
        """The key of the measured variant that is nearest to the step's."""
        if step.key not in self._keys:
            known = [key for key in self._terms if key.split('/')[0] == step.kind]
            if not known:
                raise ValueError(f'the calibration knows no step {step.kind!r}: calibrate again '
                                 'with this version')

            def distance(key):
                return [abs(math.log(max(int(a), 1) / max(b, 1)))
                        for a, b in zip(key.split('/')[1:], step.variant)]
            self._keys[step.key] = min(known, key=distance)
        return self._keys[step.key]


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
            grid = -(-self.out[0] // s.spatial_granularity) * -(
                -self.out[1] // s.spatial_granularity)
            window = s.spatial_granularity * s.stride
            steps.append(self.step('spatial_masker', (n, self.in_rows, s.in_channels, grid),
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
        grid = -(-self.out[0] // side) * -(-self.out[1] // side)
        share, n = float(rates.patch), self.batch
        # Every sample has its own channels; without channel skipping they run together.
        parts = n if s.channel_skipping else 1
        active = max(s.width * float(rates.channel), 1.0)
        patches = share * grid * n / parts
        patch_rows, halo_rows = patches * side**2, float(rates.halo) * self.mid_rows * n / parts
        plan = self.step('plan_patches', (n * self.mid_rows, patch_rows, n * grid, n),
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
