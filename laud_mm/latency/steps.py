"""Steps: pieces of the skipping executor's work, as sizes that a calibration can put a time to.

A step is one call, or a few that always go together, in the executor's code. A
calibration measures steps of random sizes on a machine and fits every kind of
step by a sum of products of its sizes with weights that are not negative
(`StepModel`), so that the prediction never falls when a size rises.
"""
import itertools
import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

# Kind of step -> the sizes that describe it. Positions and rows are of the whole batch.
STEP_SIZES = dict(
    # The framework's convolutions, in stems and static nets.
    conv7x7=('rows', 'inputs', 'outputs'),          # rows: output positions
    conv1x1=('rows', 'inputs', 'outputs', 'reads'),  # reads: input positions
    conv3x3=('rows', 'inputs', 'outputs', 'reads'),
    conv3x3_grouped=('rows', 'width', 'group_width', 'reads'),
    maxpool=('rows', 'channels'),
    relu=('rows', 'channels'),
    add_relu=('rows', 'channels'),
    excite=('samples', 'positions', 'channels', 'hidden'),
    # Deciding, and listing what was decided.
    layer_masker=('samples', 'positions', 'channels'),
    channel_masker=('samples', 'positions', 'channels', 'groups'),
    spatial_masker=('samples', 'positions', 'channels', 'units'),
    list_patches=('units', ),
    list_channels=('samples', 'groups'),
    halo_positions=('rows', 'map_rows', 'lines'),  # lines: of the windows of all patches
    # The operations on what is listed.
    rows1x1=('rows', 'inputs', 'outputs'),
    rows3x3=('rows', 'inputs', 'outputs'),
    rows3x3_winograd=('rows', 'inputs', 'outputs'),  # rows: of whole tiles
    rows3x3_grouped=('rows', 'width', 'group_width'),
    rows1x1_add=('rows', 'inputs', 'outputs'),
    excite_rows=('positions', 'channels', 'hidden', 'samples'),  # of samples that have patches
    # The same with channels picked per sample.
    picked1x1=('rows', 'inputs', 'outputs', 'samples'),
    picked3x3=('rows', 'inputs', 'outputs', 'samples'),
    picked1x1_add=('rows', 'inputs', 'outputs', 'samples'),
    # Weights sliced for every mask, where convolutions have groups.
    split_masks=('samples', 'groups'),
    slice_grouped=('width', 'active', 'outer'),     # outer: channels outside the bottleneck
    pick_channels=('rows', 'channels'),
    # What a block costs besides.
    block=(),
)
_MATRIX = tuple(kind for kind in STEP_SIZES
                if kind.startswith(('conv', 'rows', 'picked')) and not kind.endswith('grouped'))
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
        far_weights (float | None): Weights that it reads from far away in a net; None: those
            that its sizes say.
    """
    kind: str
    sizes: Tuple[float, ...]
    variant: Tuple[int, ...] = ()
    times: float = 1.0
    name: str = ''
    args: Tuple = ()
    far_weights: Optional[float] = None

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
    if 'samples' in sizes:
        products += [' '.join(f'{sizes[i]} in waves' for i in subset)
                     for subset in _subsets(len(sizes)) if sizes.index('samples') in subset]
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
    if 'samples' in names:
        waves = np.where([n == 'samples' for n in names], _ceil_to(sizes, units), sizes)
        products += [np.prod(waves[:, subset], axis=1) for subset in _subsets(len(names))
                     if names.index('samples') in subset]
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


# What stays near between two runs of a net: so many millions of weights; and where maps stop
# staying near between two steps.
NEAR_WEIGHTS_M, MAP_EDGES_M = 4.0, (0.125, 0.5)


def weights_m(step):
    """Millions of weights that a step reads from far away in a net."""
    if step.far_weights is not None:
        return 1e-6 * step.far_weights
    sizes = dict(zip(STEP_SIZES[step.kind], step.sizes))
    if step.kind.endswith('_grouped') and 'group_width' in sizes:
        return 9e-6 * sizes['width'] * sizes['group_width']
    if step.kind in _MATRIX:
        taps = 49 if '7x7' in step.kind else 9 if '3x3' in step.kind else 1
        return 1e-6 * taps * sizes['inputs'] * sizes['outputs']
    return 2e-6 * sizes['channels'] * sizes['hidden'] if 'hidden' in sizes else 0.0


def written_m(step):
    """Millions of values that a step writes, in classes: of small, larger and large maps."""
    sizes = dict(zip(STEP_SIZES[step.kind], step.sizes))
    rows = sizes.get('rows', sizes.get('samples', 0.0) * sizes.get('positions', 0.0))
    channels = next((sizes[name] for name in ('outputs', 'width', 'channels') if name in sizes), 0)
    if 'masker' in step.kind or step.kind in ('slice_grouped', 'excite_rows'):
        channels = 0  # reads only, or works in place
    return tuple(_between(1e-6 * rows * channels, low, high)
                 for low, high in zip((0.0, *MAP_EDGES_M), (*MAP_EDGES_M, math.inf)))


def _between(value, low, high):
    return min(max(value - low, 0.0), high - low)


def far_share(steps):
    """Share of a net's weights that do not stay near until the net runs again.

    Args:
        steps (Sequence[Step]): Of the whole net.
    """
    total = sum(step.times * weights_m(step) for step in steps)
    return max(1 - NEAR_WEIGHTS_M / total, 0.0) if total else 0.0


@dataclass(frozen=True)
class NetCorrection:
    """What steps cost more in a net than by themselves, over and over.

    There the code and the memory of other steps have been through the caches.

    Attributes:
        factors (dict[str, float]): By kind of step.
        call_ms (float): Added for every call to torch.
        weight_ms (float): Added for every million weights that come from far.
        map_ms (tuple[float, ...]): Added for every million values written, see `written_m`.
        calls (dict[str, float]): `Step.key` -> calls to torch that it makes.
    """
    factors: Dict[str, float]
    call_ms: float
    weight_ms: float
    map_ms: Tuple[float, ...]
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

    def latency_ms(self, step, far=0.0):
        """Predicted latency of one run of a step in a net.

        Args:
            step (Step): The step.
            far (float): `far_share` of its net.

        Raises:
            ValueError: If the calibration does not know the kind of step.
        """
        alone = self.alone_ms(step)
        if self.correction is None:
            return alone
        c = self.correction
        return (c.factors.get(step.kind, 1.0) * alone + c.call_ms * self.calls(step)
                + c.weight_ms * far * weights_m(step)
                + sum(ms * m for ms, m in zip(c.map_ms, written_m(step))))

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
