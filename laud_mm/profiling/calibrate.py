"""Calibrate the predictor: time the steps of random nets, fit their model, check it on others."""
import math
import random
from functools import partial

import numpy as np
import torch

from laud_mm.latency.calibrated import save_calibration
from laud_mm.latency.measure import device_stamp, keep_freed_memory
from laud_mm.latency.step_model import StepModel, step_contexts, step_features, step_terms
from laud_mm.models import backbones  # noqa: F401 registers what families name
from laud_mm.registry import MODELS
from laud_mm.specs import FAMILIES, StepCall
from laud_mm.specs.arguments import check_choice, check_fraction

from .probe import DriftProbe
from .step_clock import time_steps

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
GOOD = 0.15  # a prediction within this share of the measurement is a good one
MAX_ROWS = 1500  # measurements that the fit of one kind of step uses
PRIOR = 0.5  # how strongly a kind of step is held to cost in sums what it costs by steps
STEADY = 1.08  # how much the drift probe may change while a net is measured
MOST_DRIFT = 1.25  # nets measured at another speed than this share of the typical are left out
CAREFUL = 4  # times as long is a net timed that checks the fit
LARGE_SHARE = 0.12  # of the nets run on images as detectors have them
# Images per batch of random nets, and of those on large images.
BATCHES = dict(cpu=((1, 1, 2, 4, 8), (1,)), cuda=((1, 8, 32, 64, 128), (1, 2, 8)))


def random_net(rng, device='cpu'):
    """A random backbone with its images' size, a rate for every block and a batch."""
    batches, large = BATCHES['cuda' if torch.device(device).type == 'cuda' else 'cpu']
    drawn = [family for family in FAMILIES.values() if family.draw]
    family = rng.choices(drawn, [max(len(own.granularities), 0.3) for own in drawn])[0]
    batch, side = rng.choice(batches), 32 * rng.randint(4, 8)
    size = side, side
    if family.granularities and rng.random() < LARGE_SHARE:
        batch, size = rng.choice(large), (32 * rng.randint(14, 26), 32 * rng.randint(20, 39))
    net = MODELS.build(dict(family.draw(rng), type=f'laud_mm.{family.backbone}')).eval()
    mean = rng.uniform(0.2, 0.9)
    rates = {block.shape.name: min(max(rng.gauss(mean, 0.2), 0.0), 1.0)
             for block in net.blocks() if block.masker is not None}
    return net, size, rates, batch


def measure_nets(count, device, dtype=torch.float32, seed=0, repeats=7, seconds=0.7, careful=0,
                 track=iter):
    """Time the steps of random backbones, dynamic and static, drift of the machine taken out.

    Args:
        count (int): Backbones.
        device (str): Where.
        dtype (torch.dtype): Type of maps and weights.
        seed (int): Of the backbones drawn.
        repeats (int): Timed runs of each, at least.
        seconds (float): Time for further runs of each.
        careful (int): So many nets at the end have `CAREFUL` times as long: they judge a fit,
            which averages over others.
        track (Callable): Wraps an iterable, for a progress bar.

    Returns:
        tuple[list[list[dict]], float]: For every net its steps, see `step_rows`; and the median
        latency of the drift probe, which all latencies are brought to.
    """
    keep_freed_memory()
    rng, nets, probes, probe = random.Random(seed), [], [], DriftProbe(device)
    with torch.no_grad():  # what is made in inference mode is folded anew in every pass
        for index in track(range(count)):
            torch.manual_seed(seed + index)
            net, size, rates, batch = random_net(rng, device)
            net = net.to(device, dtype, memory_format=torch.channels_last)
            x = torch.randn(batch, net.in_channels, *size, device=device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            own_seconds = seconds * (CAREFUL if index >= count - careful else 1)
            timed, probe_ms = _steady(partial(time_steps, net, x, rates, repeats=repeats,
                                              seconds=own_seconds), probe)
            probes.append(probe_ms)
            nets.append([step_rows(own) for own in timed])
    return _at_one_speed(nets, probes)


def _at_one_speed(nets, probes):
    """What would have been measured at the typical speed; nets at quite another are left out."""
    typical_ms, kept = float(np.median(probes)), []
    for rows, probe_ms in zip(nets, probes):
        if typical_ms / MOST_DRIFT < probe_ms < typical_ms * MOST_DRIFT:
            kept += rows
            for row in (row for own in rows for row in own):
                row['measured_ms'] *= typical_ms / probe_ms
                row['net_ms'] *= typical_ms / probe_ms
    return kept, typical_ms


def _steady(measure, probe, tries=2):
    """Measure again while the machine changes its speed meanwhile: the steadiest try.

    Returns:
        tuple: What `measure` returned, and the latency in ms of the drift probe around it.
    """
    found = []
    for _ in range(tries):
        before = probe.steady(5)
        measured = measure()
        after = probe.steady(5)
        found.append((max(before, after) / min(before, after), math.sqrt(before * after), measured))
        if found[-1][0] < STEADY:
            break
    _, probe_ms, measured = min(found, key=lambda one: one[0])
    return measured, probe_ms


def step_rows(timed):
    """The steps of a `TimedSteps` as rows; equal steps of a net once, with their mean.

    Returns:
        list[dict]: `kind`, `variant`, `sizes`, `near`, `times`, the mean of its `step_contexts`,
        `measured_ms` of one run, and `net_ms` of the whole net.
    """
    grouped = {}
    for call, context, latency_ms in zip(timed.calls, step_contexts(timed.calls),
                                         timed.latency_ms):
        grouped.setdefault((call.key, call.sizes, call.near), []).append(
            (call, context, latency_ms))
    return [dict(kind=own[0][0].kind, variant=list(own[0][0].variant),
                 sizes=list(own[0][0].sizes), near=own[0][0].near, times=len(own),
                 context=np.mean([context for _, context, _ in own], 0).tolist(),
                 measured_ms=float(np.mean([latency_ms for _, _, latency_ms in own])),
                 net_ms=timed.total_ms)
            for own in grouped.values()]


def fit_steps(rows, units):
    """Fit the terms of every kind of step to measurements, with weights of at least zero.

    Args:
        rows (Sequence[dict]): From `measure_nets`.
        units (int): See `step_features`.

    Returns:
        StepModel: It minimises relative errors, outliers weighing less.
    """
    by_key: dict[str, list] = {}
    for row in rows:
        by_key.setdefault(_call_of(row).key, []).append(row)
    weights = {}
    for key, own in by_key.items():
        own = random.Random(0).sample(own, min(len(own), MAX_ROWS))
        kind = own[0]['kind']
        measured = np.array([row['measured_ms'] for row in own])
        features = step_features(kind, [row['sizes'] for row in own],
                                 [row['context'] for row in own], units)
        solution = _fit_relative(features, measured)
        weights[key] = {term: float(w) for term, w in zip(step_terms(kind), solution) if w > 0}
    return StepModel(weights, units)


def balance_nets(model, nets):
    """Scale the kinds of step so that the sums over nets have small relative errors.

    What is fitted step by step has a bias in the sum: most steps are small, nets are large ones,
    and a net is predicted as it runs mostly, disturbed as that may be.

    Args:
        model (StepModel): From `fit_steps`.
        nets (Sequence[list[dict]]): The rows of each net.

    Returns:
        StepModel: With factors.
    """
    kinds = sorted({row['kind'] for rows in nets for row in rows})
    table, totals = np.zeros((len(nets), len(kinds))), np.zeros(len(nets))
    for index, rows in enumerate(nets):
        for row in rows:
            table[index, kinds.index(row['kind'])] += row['times'] * model.latency_ms(
                _call_of(row), row['context'])
            totals[index] = row['net_ms']
    factors = dict(zip(kinds, _fit_relative(table, totals, PRIOR).tolist()))
    return StepModel(model.weights, model.units, factors)


def _call_of(row):
    return StepCall(row['kind'], tuple(row['sizes']), tuple(row['variant']), near=row['near'])


def _fit_relative(features, measured, towards_one=0.0, rounds=8):
    """Weights of at least zero with small relative errors; outliers weigh less and less.

    Args:
        features (np.ndarray): (N, number of terms).
        measured (np.ndarray): (N,).
        towards_one (float): How strongly each weight is held to 1.
        rounds (int): Fits, each with the errors of the one before.
    """
    from scipy.optimize import nnls
    relative = features / measured[:, None]
    scale = np.maximum(np.abs(relative).max(0), 1e-300)
    # A row per weight that holds it to 1, where asked for.
    held = np.diag(towards_one / scale) if towards_one else np.empty((0, len(scale)))
    wanted = np.full(len(held), towards_one)
    trust = np.ones(len(measured))
    for _ in range(rounds):
        solution = nnls(np.concatenate([relative / scale * trust[:, None], held]),
                        np.concatenate([trust, wanted]), maxiter=50000)[0]
        error = np.abs(relative / scale @ solution - 1)
        trust = 1 / np.sqrt(np.maximum(error, 0.03))
    return solution / scale


def step_errors(rows, model):
    """Compare measured steps with a model: the rows with `predicted_ms` and `error`."""
    compared = []
    for row in rows:
        predicted = model.step_ms(_call_of(row), row['context'])
        compared.append(dict(row, predicted_ms=predicted,
                             error=predicted / row['measured_ms'] - 1))
    return compared


def summarise_errors(rows):
    """Per kind of step and in total: how many predictions are good.

    Args:
        rows (Sequence[dict]): From `step_errors`.

    Returns:
        list[dict]: `kind`, `steps`, `within_15_percent`, `median_error`, `mean_error`; errors
        are absolute shares of the measurement.
    """
    def line(kind, own):
        errors = np.abs([row['error'] for row in own])
        return dict(kind=kind, steps=len(own), within_15_percent=float((errors <= GOOD).mean()),
                    median_error=float(np.median(errors)), mean_error=float(errors.mean()))

    kinds = sorted({row['kind'] for row in rows})
    return [*(line(kind, [row for row in rows if row['kind'] == kind]) for kind in kinds),
            line('all', rows)]


def calibrate(path, device='cpu', precision='fp32', nets=360, held_out=0.08, repeats=7, seed=0,
              seconds=0.7, track=iter):
    """Time the steps of random nets here, fit them, check the fit on others, write the file.

    Args:
        path (str): Calibration file to write.
        device (str): Where to measure.
        precision (str): 'fp32', 'fp16' or 'bf16'.
        nets (int): Random backbones whose steps are measured.
        held_out (float): How many more, as a share, to check the fit on.
        repeats (int): Timed runs of every net, at least.
        seed (int): Of the nets drawn.
        seconds (float): Time for further runs of every net.
        track (Callable): Wraps an iterable, for a progress bar.

    Returns:
        list[dict]: Every measured step with `predicted_ms`, `error` and `held_out`.

    Raises:
        ValueError: For an argument out of its range.
    """
    dtype = DTYPES[check_choice('precision', precision, tuple(DTYPES))]
    check_fraction('held_out', held_out, 0.0, 0.9)
    check_fraction('seconds', seconds, 0.0, 60.0)
    for field, value in (('nets', nets), ('repeats', repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f'{field} must be an int >= 1, got {value!r}')
    device = torch.device(device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'device must be one that torch sees, got {device}: no CUDA device here')
    others = max(round(held_out * nets), 1)
    measured, probe_ms = measure_nets(nets + others, device, dtype, seed, repeats, seconds, others,
                                      track)
    fitted = measured[:len(measured) - 2 * others]
    rows = [dict(row, net=index, held_out=index >= len(fitted))
            for index, own in enumerate(measured) for row in own]
    units = torch.get_num_threads()
    if device.type == 'cuda':
        units = torch.cuda.get_device_properties(device).multi_processor_count
    model = balance_nets(fit_steps([row for own in fitted for row in own], units), fitted)
    known = {key.split('/')[0] for key in model.weights}
    rows = step_errors([row for row in rows if row['kind'] in known], model)
    save_calibration(path, model, dict(device_stamp(device), probe_ms=probe_ms), precision,
                     summarise_errors([row for row in rows if row['held_out']]))
    return rows
