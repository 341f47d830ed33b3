"""StepModel: what the steps of programs take on one machine.

A calibration measures steps of random nets and fits every kind of step by a sum of products
of its sizes with weights that are not negative, so that the prediction never falls when a
size rises.
"""
import itertools
import math
from collections.abc import Sequence

import numpy as np

from laud_mm.specs import STEP_KINDS, StepCall

_MATRIX = tuple(kind for kind, about in STEP_KINDS.items()
                if about.sizes[:3] == ('rows', 'inputs', 'outputs'))
_EXPONENTS = (0.0, 0.5, 1.0)
_OCTAVES = range(0, 28)
_VECTOR, _TILE = 16, 64  # channels that a vector register, and a tile of a matrix product, take
# Millions of weights beyond which a net's weights come from further away each time.
NEAR_WEIGHTS_M = (1.5, 6.0)
_CHANNELS = ('inputs', 'outputs', 'channels', 'width', 'active', 'hidden')


def step_terms(kind):
    """Names of the terms that a kind of step is fitted by, see `step_features`."""
    sizes = STEP_KINDS[kind].sizes
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
    return [*names, *(f'weights beyond {near:g} M' for near in NEAR_WEIGHTS_M)]


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


def step_features(kind, sizes, far, units):
    """Values of the terms of a step.

    Products of powers of the sizes; products of sizes octave by octave, which
    make up any rising curve, such as one with a cache's edge in it; and the
    same with samples rounded up to a wave of the machine's engines, channels
    to vectors and tiles.

    Args:
        kind (str): A key of `STEP_KINDS`.
        sizes (np.ndarray): (N, number of sizes).
        far (np.ndarray): (N, len(NEAR_WEIGHTS_M)), millions of weights from far away.
        units (int): Processing engines of the machine: threads or SMs.

    Returns:
        np.ndarray: (N, number of terms), in the order of `step_terms`; none
        falls when a size rises.
    """
    names = STEP_KINDS[kind].sizes
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
    features.append(np.asarray(far, float).reshape(len(sizes), -1))
    return np.concatenate(features, 1)




def weights_m(call):
    """Millions of weights that a step reads."""
    if call.near:
        return 0.0
    sizes = dict(zip(STEP_KINDS[call.kind].sizes, call.sizes))
    if call.kind.endswith('_grouped') and 'group_width' in sizes:
        return 9e-6 * sizes['width'] * sizes['group_width']
    if call.kind in _MATRIX:
        taps = 49 if '7x7' in call.kind else 9 if '3x3' in call.kind else 1
        return 1e-6 * taps * sizes['inputs'] * sizes['outputs']
    return 2e-6 * sizes['channels'] * sizes['hidden'] if 'hidden' in sizes else 0.0


def far_shares(calls):
    """Shares of a net's weights that do not stay near until the net runs again.

    Args:
        calls (Sequence[StepCall]): Of the whole net.

    Returns:
        tuple[float, ...]: For each of `NEAR_WEIGHTS_M`.
    """
    total = sum(call.times * weights_m(call) for call in calls)
    return tuple(max(1 - near / total, 0.0) if total else 0.0 for near in NEAR_WEIGHTS_M)


class StepModel:
    """Latency of steps in a net, on one machine.

    Args:
        weights (dict[str, dict[str, float]]): `StepCall.key` -> term -> ms.
        units (int): See `step_features`.
        factors (dict[str, float], optional): By kind, what its steps take in sums over nets,
            relative to what they take one by one; default: the same.
    """

    def __init__(self, weights: dict[str, dict[str, float]], units: int,
                 factors: dict[str, float] | None = None):
        self.weights, self.units, self.factors = weights, units, factors or {}
        self._known: dict[tuple, float] = {}
        self._keys: dict[str, str] = {}
        self._terms: dict[str, list[tuple[int, float]]] = {}
        for key, own in weights.items():
            terms = step_terms(key.split('/')[0])
            self._terms[key] = [(i, own[term]) for i, term in enumerate(terms) if term in own]

    def latency_ms(self, call: StepCall, far: Sequence[float]) -> float:
        """What one run of a step adds to the latency of a net, see `step_ms`."""
        return self.factors.get(call.kind, 1.0) * self.step_ms(call, far)

    def step_ms(self, call: StepCall, far: Sequence[float]) -> float:
        """Predicted latency of one run of a step.

        Args:
            call (StepCall): The step with its sizes.
            far (Sequence[float]): `far_shares` of its net.

        Raises:
            ValueError: If the calibration does not know the kind of step.
        """
        case = call.key, call.sizes, call.near, tuple(far)
        if case not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            values = step_features(call.kind, [call.sizes],
                                   [[share * weights_m(call) for share in far]], self.units)[0]
            self._known[case] = float(sum(
                values[i] * weight for i, weight in self._terms[self._nearest(call)]))
        return self._known[case]

    def _nearest(self, call):
        """The key of the measured variant that is nearest to the step's."""
        if call.key not in self._keys:
            known = [key for key in self._terms if key.split('/')[0] == call.kind]
            if not known:
                raise ValueError(f'the calibration knows no step {call.kind!r}: calibrate again '
                                 'with this version')

            def distance(key):
                return [abs(math.log((int(a) + 1) / (b + 1)))  # 0 and 1 are flags, and differ
                        for a, b in zip(key.split('/')[1:], call.variant)]
            self._keys[call.key] = min(known, key=distance)
        return self._keys[call.key]
