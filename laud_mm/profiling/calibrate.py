"""Calibrate the predictor: measure random steps, fit their model, check it on others."""
import math
import random
import time
from dataclasses import replace

import numpy as np
import torch

from laud_mm.latency.calibrated import save_calibration
from laud_mm.latency.executor import executor_steps, outside_steps, static_steps
from laud_mm.latency.measure import Timer, device_stamp, keep_freed_memory
from laud_mm.latency.steps import (STEP_SIZES, NetCorrection, Step, StepModel, far_share,
                                   step_features, step_terms, weights_m, written_m)
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.specs import (BlockSpec, BottleneckShape, Rates, regnet_stem_specs,
                           resnet_stem_specs)
from laud_mm.specs.arguments import check_choice, check_fraction

from .backbones import mean_rates, time_backbone
from .probe import DriftProbe
from .steps import StepProgram

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
GOOD = 0.15  # a prediction within this share of the measurement is a good one
MAX_MACS, MAX_VALUES = 1.2e9, 8e6  # of one measured step
PRIOR = 0.5  # how strongly a kind of step is held to cost in nets what it costs alone
CHECK_ROUNDS = 3  # a held-out step is measured so often; what is fitted, once or more
MIN_REPEATS, MAX_REPEATS, ROUND_MS = 5, 30, 15  # timed runs of a step per round
PROGRAM_S = 0.035  # everything included, from `MIN_REPEATS` on


def random_block(rng):
    """A random bottleneck block of the sizes that networks have.

    Returns:
        tuple[BlockSpec, float, int]: The block with its geometry, paradigm, S
        and G at an input size; a rate; a batch.
    """
    grouped = rng.random() < 0.35
    group_width = rng.choice((8, 16, 24))
    if grouped:
        width = group_width * round(rng.uniform(48, 900) / group_width)
    else:
        width = 8 * round(2**rng.uniform(2.4, 6))
    first = rng.random() < 0.35
    out_channels = width if grouped else 4 * width
    in_channels = out_channels
    if first:
        in_channels = 8 * max(round(out_channels * rng.uniform(0.25, 0.6) / 8), 4)
    shape = BottleneckShape(
        'block', 0, in_channels, width, out_channels, stride=2 if first else 1,
        groups=width // group_width if grouped else 1, downsample=first,
        paradigm=rng.choice(('layer', 'channel', 'spatial', 'spatial')),
        se_channels=max(in_channels // 4, 8) if grouped else 0,
        spatial_granularity=rng.choice((1, 2, 4, 4, 7, 8)),
        channel_granularity=rng.choice([g for g in (1, 2, 4, 8) if width % g == 0]))
    # Wide maps are thin: nets halve the size where they double the channels.
    sizes = [n for n in (7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56)
             if n * out_channels <= 56 * 600]
    height = rng.choice(sizes) * (2 if first else 1)
    width = round(height * rng.choice((1, 1, 1, 1.5)))
    return BlockSpec.of(shape, (height, width)), rng.uniform(0.1, 1.0), rng.choice(
        (1, 1, 2, 4, 8, 8))


def random_steps(rng):
    """The steps of one random block, and now and then of a stem."""
    block, rate, batch = random_block(rng)
    rates = block.expected_rates(rate)
    steps = [*executor_steps(block, rates, batch), *static_steps(block, batch)]
    if rng.random() < 0.15:
        size = 8 * rng.randint(8, 40), 8 * rng.randint(8, 40)
        specs = rng.choice((resnet_stem_specs, regnet_stem_specs))
        steps += outside_steps(specs(size), rng.choice((1, 2, 4, 8)))
    return [replace(step, times=1.0) for step in steps if _is_affordable(step)]


def _is_affordable(step):
    """Whether a step's maps and arithmetic fit into the time that a calibration has."""
    sizes = dict(zip(STEP_SIZES[step.kind], step.sizes))
    rows = max((size for name, size in sizes.items() if name.endswith('rows')), default=1)
    channels = max(sizes.get(name, 1) for name in ('channels', 'inputs', 'outputs', 'width'))
    macs = sizes.get('rows', 1) * sizes.get('inputs', 1) * sizes.get('outputs', 1)
    return rows * channels <= MAX_VALUES and macs * (9 if '3x3' in step.kind else 1) <= MAX_MACS


def draw_steps(blocks, seed=0):
    """Draw the steps of random blocks, as often as nets use them.

    Steps that few blocks have are drawn further, from other blocks, until
    there is one of their kind and variant for every eight blocks.

    Args:
        blocks (int): Random blocks drawn.
        seed (int): Of the draw.

    Returns:
        list[Step]: In random order, no two with the same sizes; the one step
        that has no sizes stands three times.
    """
    rng, drawn, wanted = random.Random(seed), {}, max(blocks // 8, 2)
    for count in range(20 * blocks + 200):
        for step in random_steps(rng):
            own = drawn.setdefault(step.key, {})
            if step.kind != 'block' and (count < blocks or len(own) < wanted):
                own.setdefault(step.sizes, step)
        if count >= blocks and {key.split('/')[0] for key in drawn} == set(STEP_SIZES) and all(
                len(own) >= wanted for key, own in drawn.items() if key != 'block'):
            break
    steps = [step for own in drawn.values() for step in own.values()]
    steps += [Step('block', ())] * 3
    rng.shuffle(steps)
    return steps


def held_out_steps(blocks, seed, known):
    """Draw the steps of other random blocks, as often as nets use them.

    Args:
        blocks (int): Random blocks drawn.
        seed (int): Of the draw, another than that of `known`.
        known (Sequence[Step]): Steps that are fitted; none of theirs is drawn.

    Returns:
        list[Step]: No two with the same sizes.
    """
    rng, fitted, drawn = random.Random(seed), {(s.key, s.sizes) for s in known}, {}
    for _ in range(blocks):
        for step in random_steps(rng):
            if step.kind != 'block' and (step.key, step.sizes) not in fitted:
                drawn.setdefault((step.key, step.sizes), step)
    return list(drawn.values())


def measure_steps(steps, device, dtype=torch.float32, rounds=2, seed=0, track=iter, probes=None):
    """Measure steps in several rounds over all of them, drift of the machine taken out.

    Args:
        steps (Sequence[Step]): What to measure.
        device (str): Where.
        dtype (torch.dtype): Type of maps and weights.
        rounds (int | Sequence[int]): How often each is measured, in rounds of other orders; of
            all steps or of every one.
        seed (int): Of the orders.
        track (Callable): Wraps an iterable, for a progress bar.
        probes (list[float], optional): Receives the latency of every drift probe.

    Returns:
        list[dict]: Per step its `kind`, `variant`, real `sizes`, median
        `measured_ms`, and the `calls` to torch that it makes.
    """
    timer, done = Timer(device), [None] * len(steps)
    samples, drift, probe = [[] for _ in steps], [[] for _ in steps], DriftProbe(device)
    rng, order = random.Random(seed), []
    wanted = [rounds] * len(steps) if isinstance(rounds, int) else rounds
    for done_rounds in range(max(wanted)):
        round_ = [index for index, count in enumerate(wanted) if count > done_rounds]
        order += rng.sample(round_, len(round_))
    keep_freed_memory()
    with torch.inference_mode():
        for index in track(order):
            torch.manual_seed(index)
            program = StepProgram(steps[index], device, dtype)
            drift[index].append(probe())
            samples[index].append(float(np.median(_time_program(program, timer))))
            drift[index][-1] = math.sqrt(drift[index][-1] * probe())
            done[index] = dict(sizes=list(map(float, program.sizes)), calls=program.calls())
    usual = float(np.median(np.concatenate(drift)))
    if probes is not None:
        probes += np.concatenate(drift).tolist()
    return [dict(kind=step.kind, variant=list(step.variant),
                 measured_ms=float(np.median(np.divide(own, slow) * usual)), **about)
            for step, own, slow, about in zip(steps, samples, drift, done)]


def _time_program(program, timer):
    """Latencies in ms of a warm program; short ones, which vary more, are run more often."""
    samples, wanted, begin = [], MIN_REPEATS, time.perf_counter()
    while len(samples) < wanted + 2:
        if len(samples) > MIN_REPEATS and time.perf_counter() - begin > PROGRAM_S:
            break  # writing large inputs anew takes longer than short steps
        program.prepare()
        spent = timer.time_ms(program.run)
        if program.without is not None:
            spent -= timer.time_ms(program.without)
        samples.append(spent)
        if len(samples) == 2:  # the first two warm up
            wanted = min(max(round(ROUND_MS / max(spent, 1e-6)), MIN_REPEATS), MAX_REPEATS)
    return samples[2:]


def fit_steps(rows, units):
    """Fit the terms of every kind of step to measurements, with weights of at least zero.

    Args:
        rows (Sequence[dict]): From `measure_steps`.
        units (int): See `step_features`.

    Returns:
        StepModel: It minimises relative errors, outliers weighing less.
    """
    by_key = {}
    for row in rows:
        by_key.setdefault(_step_of(row).key, []).append(row)
    weights = {}
    for key, own in by_key.items():
        kind = own[0]['kind']
        measured = np.array([row['measured_ms'] for row in own])
        solution = _fit_relative(step_features(kind, [row['sizes'] for row in own], units),
                                 measured)
        weights[key] = {term: float(w) for term, w in zip(step_terms(kind), solution) if w > 0}
    return StepModel(weights, units)


def _step_of(row):
    return Step(row['kind'], tuple(row['sizes']), tuple(row['variant']))


def _fit_relative(features, measured, towards_one=0.0, rounds=8):
    """Weights of at least zero with small relative errors; outliers weigh less and less.

    Args:
        features (np.ndarray): (N, number of terms).
        measured (np.ndarray): (N,).
        towards_one (np.ndarray | float): (number of terms,) how strongly a weight is held to 1.
        rounds (int): Fits, each with the errors of the one before.
    """
    from scipy.optimize import nnls
    relative = features / measured[:, None]
    scale = np.maximum(np.abs(relative).max(0), 1e-300)
    strength = np.broadcast_to(towards_one, scale.shape)
    held = np.diag(strength / scale)[strength > 0]
    trust = np.ones(len(measured))
    for _ in range(rounds):
        solution = nnls(np.concatenate([relative / scale * trust[:, None], held]),
                        np.concatenate([trust, strength[strength > 0]]), maxiter=50000)[0]
        error = np.abs(relative / scale @ solution - 1)
        trust = 1 / np.sqrt(np.maximum(error, 0.03))
    return solution / scale


def step_errors(rows, model):
    """Compare measured steps with a model: the rows with `predicted_ms` and `error`."""
    compared = []
    for row in rows:
        predicted = model.alone_ms(_step_of(row))
        compared.append(dict(row, predicted_ms=predicted,
                             error=predicted / row['measured_ms'] - 1))
    return compared


def random_net(rng):
    """A random backbone with its images' size, a rate and a batch."""
    paradigm = rng.choice(('layer', 'channel', 'spatial'))
    kwargs = dict(paradigm=paradigm, channel_granularity=rng.choice((1, 2, 4)),
                  spatial_granularity=rng.choice(((4, 4, 2, 1), (8, 4, 7, 1), (2, 2, 2, 2),
                                                  (7, 7, 7, 7))))
    batch, side = rng.choice((1, 1, 2, 4, 8)), 32 * rng.randint(4, 8)
    if rng.random() < 0.5:
        net = LAUDResNet(rng.choice((50, 50, 101)),
                         base_channels=rng.choice((32, 40, 48, 64, 72)), **kwargs)
    else:
        group = rng.choice((8, 16, 24))
        widths = [group * round(w * rng.uniform(0.8, 1.6) / group) or group
                  for w in (48, 104, 208, 440)]
        net = LAUDRegNet(dict(widths=widths, depths=(1, 3, rng.randint(4, 8), rng.randint(2, 6)),
                              group_widths=group), **kwargs)
    return net.eval(), (side, side), rng.uniform(0.2, 0.9), batch


def measure_nets(count, device, dtype=torch.float32, seed=0, repeats=9, track=iter, usual=None):
    """Time random backbones, dynamic and static.

    Args:
        count (int): Backbones.
        device (str): Where.
        dtype (torch.dtype): Type of maps and weights.
        seed (int): Of the backbones drawn.
        repeats (int): Timed runs of each.
        track (Callable): Wraps an iterable, for a progress bar.
        usual (float, optional): Latency of a drift probe that latencies are brought to.

    Returns:
        list[tuple[list[Step], float]]: The steps of a net, and its measured
        latency in ms; two entries per net.
    """
    keep_freed_memory()
    rng, rows, probe = random.Random(seed), [], DriftProbe(device)
    with torch.no_grad():
        for _ in track(range(count)):
            torch.manual_seed(seed)
            net, size, rate, batch = random_net(rng)
            net = net.to(device, dtype, memory_format=torch.channels_last)
            x = torch.randn(batch, 3, *size, device=device, dtype=dtype)
            before = probe.steady()
            timed = time_backbone(net, x.contiguous(memory_format=torch.channels_last), rate,
                                  warmup=2, repeats=repeats)
            scale = 1.0 if usual is None else usual / math.sqrt(before * probe.steady())
            spec = net.op_specs(size)
            rates = [Rates(**mean_rates(rates)) for rates in timed.cost.block_rates]
            stem = outside_steps(spec.stem, batch)
            rows += [([*stem, *(step for block, rate in zip(spec.blocks, rates)
                                for step in executor_steps(block, rate, batch))],
                      timed.stats['dynamic'].p50_ms * scale),
                     ([*stem, *(step for block in spec.blocks
                                for step in static_steps(block, batch))],
                      timed.stats['static'].p50_ms * scale)]
    return rows


def correct_for_nets(model, step_rows, nets):
    """Add to a model what steps cost more in nets.

    Args:
        model (StepModel): Fitted to steps by themselves.
        step_rows (Sequence[dict]): What it was fitted to.
        nets (Sequence[tuple[list[Step], float]]): From `measure_nets`.

    Returns:
        StepModel: With a `NetCorrection`.
    """
    calls = {}
    for row in step_rows:
        calls.setdefault(_step_of(row).key, []).append(row['calls'])
    calls = {key: float(np.mean(own)) for key, own in calls.items()}
    counting = StepModel(model.weights, model.units, NetCorrection({}, 0.0, 0.0, (), calls))
    kinds = sorted({step.kind for steps, _ in nets for step in steps})
    table = []
    for steps, _ in nets:
        sums, far, others = dict.fromkeys(kinds, 0.0), far_share(steps), np.zeros(5)
        for step in steps:
            sums[step.kind] += step.times * counting.alone_ms(step)
            others += step.times * np.array([counting.calls(step), far * weights_m(step),
                                             *written_m(step)])
        table.append([*sums.values(), *others])
    # Kinds that always come together cannot be told apart: each also tends to 1.
    solution = _fit_relative(np.array(table), np.array([latency_ms for _, latency_ms in nets]),
                             np.array([PRIOR] * len(kinds) + [0.0] * 5)).tolist()
    call_ms, weight_ms, *map_ms = solution[len(kinds):]
    return StepModel(model.weights, model.units, NetCorrection(
        dict(zip(kinds, solution)), call_ms, weight_ms, tuple(map_ms), calls))


def summarise_errors(rows):
    """Per kind of step and in total: how many predictions are good.

    Args:
        rows (Sequence[dict]): From `step_errors`.

    Returns:
        list[dict]: `kind`, `steps`, `within_15_percent`, `median_error`.
    """
    def line(kind, own):
        errors = np.abs([row['error'] for row in own])
        return dict(kind=kind, steps=len(own), within_15_percent=float((errors <= GOOD).mean()),
                    median_error=float(np.median(errors)))

    kinds = sorted({row['kind'] for row in rows})
    return [*(line(kind, [row for row in rows if row['kind'] == kind]) for kind in kinds),
            line('all', rows)]


def calibrate(path, device='cpu', precision='fp32', blocks=1600, held_out=0.04, rounds=1,
              nets=150, seed=0, track=iter):
    """Measure random steps and nets here, fit them, check the fit on others, write the file.

    Args:
        path (str): Calibration file to write.
        device (str): Where to measure.
        precision (str): 'fp32', 'fp16' or 'bf16'.
        blocks (int): Random blocks whose steps are measured.
        held_out (float): How many more blocks, as a share, to check the fit on.
        rounds (int): How often every step is measured that the fit uses. More steps teach it
            more than more rounds.
        nets (int): Random backbones measured.
        seed (int): Of the steps and nets drawn.
        track (Callable): Wraps an iterable, for a progress bar.

    Returns:
        list[dict]: Every measured step with `predicted_ms`, `error` and `held_out`.

    Raises:
        ValueError: For an argument out of its range.
    """
    dtype = DTYPES[check_choice('precision', precision, tuple(DTYPES))]
    check_fraction('held_out', held_out, 0.0, 0.9)
    for field, value, low in (('blocks', blocks, 1), ('rounds', rounds, 1),
                              ('nets', nets, 4)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f'{field} must be an int >= {low}, got {value!r}')
    device = torch.device(device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'device must be one that torch sees, got {device}: no CUDA device here')
    known = draw_steps(blocks, seed)
    others = held_out_steps(max(round(held_out * blocks), 1), seed + 1, known)
    probes = []
    rows = measure_steps(known + others, device, dtype,
                         [rounds] * len(known) + [max(rounds, CHECK_ROUNDS)] * len(others),
                         seed, track, probes)
    probe_ms = float(np.median(probes))
    for index, row in enumerate(rows):
        row['held_out'] = index >= len(known)
    units = torch.get_num_threads()
    if device.type == 'cuda':
        units = torch.cuda.get_device_properties(device).multi_processor_count
    fitted = [row for row in rows if not row['held_out']]
    model = correct_for_nets(fit_steps(fitted, units), fitted,
                             measure_nets(nets, device, dtype, seed, track=track,
                                          usual=probe_ms))
    rows = step_errors(rows, model)
    save_calibration(path, model, dict(device_stamp(device), probe_ms=probe_ms), precision,
                     summarise_errors([row for row in rows if row['held_out']]))
    return rows
