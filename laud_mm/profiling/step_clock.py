"""StepClock: times every step of a net where it runs, among the others."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from laud_mm import ops
from laud_mm.latency.cuda_graphs import record_pass
from laud_mm.latency.measure import Timer
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.models.dynamic.run_table import RUN_TABLE
from laud_mm.specs import Case, Step, StepCall

MOST_RUNS = 60


class StepClock:
    """Notes when each step of a forward pass ended.

    What runs between steps, such as the choice of a program, counts to the step after it.

    Args:
        device (str | torch.device): Where the net runs.
    """

    def __init__(self, device: Any):
        self._timer = Timer(device)
        self.kinds: list[str] = []
        self._marks: list = []

    def start(self) -> None:
        """Begin a forward pass."""
        self.kinds, self._marks = [], [self._timer.mark()]

    def run(self, step: Step, run: Any) -> None:
        """Run a step, and note when it ended."""
        RUN_TABLE[step.kind](run, step)
        self.kinds.append(step.kind)
        self._marks.append(self._timer.mark())

    def latencies_ms(self) -> list[float]:
        """Latency of each step of the pass, in order."""
        return [self._timer.between_ms(a, b) for a, b in zip(self._marks, self._marks[1:])]


@dataclass(frozen=True)
class TimedSteps:
    """The steps of one net, timed where they run.

    Attributes:
        calls (list[StepCall]): In order, stem first.
        latency_ms (list[float]): Of each, the lower quartile over the runs: what disturbs a short
            step only ever slows it.
        total_ms (float): Of the forward pass, the median.
    """
    calls: list[StepCall]
    latency_ms: list[float]
    total_ms: float


def net_calls(net: Any, x: torch.Tensor, decisions: dict | None) -> list[StepCall]:
    """The steps that a net runs on decisions by block name; None: of the static net.

    Raises:
        KeyError: If a block's decision is missing.
    """
    spec = net.op_specs(tuple(x.shape[-2:]))
    tail = len(spec.tail)  # what follows the last block is not timed
    calls = spec.outside_calls(len(x), net.fuses_stem(x, decisions is None))[:-tail or None]
    for block, own in zip(net.blocks(), spec.blocks):
        case = Case(own.shape, own.in_size, len(x), x.device.type,
                    ops.has_kernel(x.device, x.dtype),
                    owns_input=block.owns_input, dot_products=ops.has_dot_products(x))
        static = decisions is None or block.masker is None
        program = own.shape.program(case, own.shape.static_route if static else None)
        decision = block.static_decision() if decisions is None else decisions[own.name]
        if not static:  # what decides has run by then
            chosen = net.plan.after_decision(case, program, decision, x)
            program = replace(chosen, deciding=program.deciding)
        calls += program.calls(block.exact_work(case, program.route, decision), own.name)
    return calls


def time_steps(net: Any, x: torch.Tensor, rate: float | dict[str, float], warmup: int = 2,
               repeats: int = 7, seconds: float = 0.0) -> tuple[TimedSteps, TimedSteps]:
    """Time the steps of a net at exact forced rates and of its static net, in turn.

    Args:
        net (LAUDBackbone): In evaluation.
        x (Tensor): (N, C, H, W) images.
        rate (float | dict[str, float]): See `force_rate`.
        warmup (int): Untimed runs of each.
        repeats (int): Timed runs of each, at least.
        seconds (float): Further runs, `MOST_RUNS` at most, follow within this time.

    Returns:
        tuple[TimedSteps, TimedSteps]: Dynamic and static.

    Raises:
        RuntimeError: If the net ran other steps than its programs say.
    """
    with force_rate(net, rate), net.executing(mode='skipping'):
        net(x)
    decisions = net.record.decisions
    nets, clocks = (decisions, None), [StepClock(x.device) for _ in range(2)]
    calls = [net_calls(net, x, own) for own in nets]

    def timed_pass(index, x):
        with net.executing(mode='auto', static=index == 1, clock=clocks[index]), \
                replay(net, decisions):
            clocks[index].start()
            return net(x)
    # In a CUDA graph the device notes the times: launched one by one, steps wait for the host.
    passes = [record_pass(partial(timed_pass, index), x) for index in range(2)]
    samples: list[list] = [[], []]
    start = time.perf_counter()
    for run in range(warmup + max(repeats, MOST_RUNS)):
        if run >= warmup + repeats and time.perf_counter() - start > seconds:
            break
        for index in (0, 1) if run % 2 else (1, 0):
            passes[index].replay()
            clock = clocks[index]
            if clock.kinds != [call.kind for call in calls[index]]:
                raise RuntimeError('the net must run the steps of its programs, ran '
                                   f'{_first_difference(clock.kinds, calls[index])}')
            if run >= warmup:
                samples[index].append(clock.latencies_ms())
    dynamic, static = (summary(*own) for own in zip(calls, samples))
    return dynamic, static


def summary(calls: list[StepCall], samples_ms: list[list[float]]) -> TimedSteps:
    """What runs of a net took, as `TimedSteps`; `samples_ms`: (runs, steps)."""
    return TimedSteps(calls, np.quantile(samples_ms, 0.25, axis=0).tolist(),
                      float(np.median(np.sum(samples_ms, axis=1))))


def _first_difference(kinds, calls):
    for index, (ran, call) in enumerate(zip(kinds, calls)):
        if ran != call.kind:
            return f'{ran!r} where step {index} is {call.kind!r} ({call.name})'
    return f'{len(kinds)} steps where there are {len(calls)}'
