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
_OCTAVES = range(0, 28, 3)
_VECTOR, _TILE = 16, 64  # channels that a vector register, and a tile of a matrix product, take
_CHANNELS = ('inputs', 'outputs', 'channels', 'width', 'active', 'hidden')
# Millions of weights beyond which a net's weights come from further away each time.
NEAR_WEIGHTS_M = (1.5, 6.0)
# Millions of values that went through the caches since a step's kind ran last, in the step that
# made its input, and in the one just before: up to each of these, more of what the step needs has
# left a cache. Some of it once per step, such as code, some for every value of its own.
_CACHES_M = (0.06, 0.12, 0.25, 0.5, 1, 2, 4, 8, 16)
_BEFORE = ('since its kind', 'by its source', 'just before', 'since its kind, per value',
           'by its source, per value')
CONTEXT_TERMS = (*(f'weights beyond {near:g} M' for near in NEAR_WEIGHTS_M),
                 *(f'{what} up to {size:g} M' for what in _BEFORE for size in _CACHES_M))
NO_CONTEXT = (0.0,) * len(CONTEXT_TERMS)  # of a step that runs again and again, alone


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
    return [*names, *CONTEXT_TERMS]


def _subsets(count):
    return [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]


def _octave_names():
    return ['to 1', *(f'from 2^{octave}' for octave in _OCTAVES)]


def _octaves(values):
    """How much of each range of octaves lies below a value: (N,) to (N, ranges)."""
    edges = np.array([0.0, *(2.0**octave for octave in _OCTAVES), np.inf])
    return np.clip(values[:, None] - edges[:-1], 0, None).clip(max=np.diff(edges)[None])


def _ceil_to(values, multiple):
    return np.ceil(values / multiple) * multiple


def step_features(kind, sizes, contexts, units):
    """Values of the terms of a step.

    Products of powers of the sizes; products of sizes octave by octave, which
    make up any rising curve, such as one with a cache's edge in it; and the
    same with samples rounded up to a wave of the machine's engines, channels
    to vectors and tiles. A step without work has none of these but the constant.

    Args:
        kind (str): A key of `STEP_KINDS`.
        sizes (np.ndarray): (N, number of sizes).
        contexts (np.ndarray): (N, len(CONTEXT_TERMS)), see `step_contexts`.
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
    working = np.concatenate(features, 1)
    working[:, 1:] *= (sizes > 0).all(1)[:, None]
    return np.concatenate([working, np.asarray(contexts, float).reshape(len(sizes), -1)], 1)


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


def values_m(call):
    """Millions of values that a step reads and writes, weights among them; roughly."""
    sizes = dict(zip(STEP_KINDS[call.kind].sizes, call.sizes))
    rows = sizes.get('rows', sizes.get('samples', 0) * sizes.get('positions',
                                                                 sizes.get('longest', 0)))
    channels = next((sizes[name] for name in ('inputs', 'width', 'channels', 'head_dims')
                     if name in sizes), 0) * sizes.get('heads', 1)
    reads = sizes.get('reads', rows) * channels
    return 1e-6 * (reads + rows * sizes.get('outputs', channels)) + weights_m(call)


def step_contexts(calls, net_weights_m=None):
    """What surrounds each step of a net that runs again and again.

    Args:
        calls (Sequence[StepCall]): Of the whole net, in order.
        net_weights_m (float, optional): Millions of weights of the net; default: what the calls
            read.

    Returns:
        np.ndarray: (len(calls), len(CONTEXT_TERMS)).
    """
    weights = np.array([weights_m(call) for call in calls])
    moved = np.array([values_m(call) for call in calls])
    times = np.array([call.times for call in calls])
    if net_weights_m is None:
        net_weights_m = float(times @ weights)
    far = [max(1 - near / net_weights_m, 0.0) if net_weights_m else 0.0 for near in NEAR_WEIGHTS_M]
    ends = np.cumsum(times * moved)
    starts = ends - times * moved
    # Before its first run in a pass a kind ran last in the pass before.
    last = {call.kind: end - ends[-1] for call, end in zip(calls, ends)}
    around, source, step = [], (0.0, 0.0), None  # source: the last step that moved values, the last
    for call, own, start, end in zip(calls, moved, starts, ends):
        if step == (call.kind, call.name):  # an alternative to the call before
            around.append(around[-1])
        else:
            around.append((start - last[call.kind], *source))
        last[call.kind], step = end, (call.kind, call.name)
        source = own or source[0], own
    filled = [np.clip(values[:, None] / np.array(_CACHES_M), 0, 1)
              for values in np.array(around).reshape(-1, 3).T]
    return np.concatenate([weights[:, None] * far, *filled,
                           *(moved[:, None] * own for own in filled[:2])], 1)


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
        self._terms: dict[str, np.ndarray] = {}
        self._around: dict[str, np.ndarray] = {}
        for key, own in weights.items():
            values = np.array([own.get(term, 0.0) for term in step_terms(key.split('/')[0])])
            self._terms[key], self._around[key] = np.split(values, [-len(CONTEXT_TERMS)])

    def latency_ms(self, call: StepCall, context: Sequence[float]) -> float:
        """What one run of a step adds to the latency of a net, see `step_ms`."""
        return self.factors.get(call.kind, 1.0) * self.step_ms(call, context)

    def step_ms(self, call: StepCall, context: Sequence[float]) -> float:
        """Predicted latency of one run of a step.

        Args:
            call (StepCall): The step with its sizes.
            context (Sequence[float]): Its row of `step_contexts`.

        Raises:
            ValueError: If the calibration does not know the kind of step.
        """
        case, key = (call.key, call.sizes), self._nearest(call)
        if case not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[case] = float(self._values(call) @ self._terms[key])
        return self._known[case] + float(np.dot(context, self._around[key]))

    def _values(self, call):
        return step_features(call.kind, [call.sizes], [()], self.units)[0]

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
