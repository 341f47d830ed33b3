"""Make a plan: time every block of a backbone on its routes, on the device at hand."""
from functools import partial

import torch

from laud_mm.latency.cuda_graphs import record_pass
from laud_mm.latency.measure import (
    LatencyStats,
    Timer,
    device_stamp,
    keep_freed_memory,
    sweep_bytes,
)
from laud_mm.latency.plans import (
    PRECISIONS,
    BlockTimes,
    ExecutionPlan,
    MeasuredPlan,
    active_share,
    plan_case,
    planned_routes,
)
from laud_mm.models.dynamic import Execution, run_program
from laud_mm.models.dynamic.control import random_mask
from laud_mm.specs.arguments import check_choice, check_fraction, check_positive_int

RATES = (0.25, 0.5, 0.75, 0.9, 1.0)
DRAWS = 3  # random decisions of each rate, in turn


class OneRoute(ExecutionPlan):
    """Runs every block on one route, whatever is on."""

    def __init__(self, route):
        self._route = route

    def route(self, case):
        return self._route

    def skips(self, case, program, decision, x):
        return True

    def fits(self, x):
        return True


def make_plan(backbones, image_size, batches, device='cpu', precision='fp32', rates=RATES,
              expected_rate=0.5, warmup=2, repeats=9, track=iter):
    """Measure the blocks of backbones.

    Args:
        backbones (Sequence[BottleneckBackbone]): What to plan for; their weights do not matter.
        image_size (tuple[int, int]): Height and width.
        batches (Sequence[int]): Images per batch.
        device (str): Where.
        precision (str): 'fp32', 'fp16' or 'bf16': the type of weights and maps.
        rates (Sequence[float]): Shares of units on to measure.
        expected_rate (float): See `ExecutionPlan`.
        warmup (int): Untimed runs of each block and rate.
        repeats (int): Timed runs of each; medians count.
        track (Callable): Wraps the list of cases, for a progress bar.

    Returns:
        MeasuredPlan: Blocks of equal shape are measured once.

    Raises:
        ValueError: For an argument out of its range.
    """
    check_choice('precision', precision, tuple(PRECISIONS))
    check_fraction('expected_rate', expected_rate)
    if not rates or min(rates) <= 0:
        raise ValueError(f'rates must be positive, got {rates!r}')
    for batch in batches:
        check_positive_int('batch', batch)
    rates = sorted(check_fraction('rates', rate) for rate in set(rates))
    keep_freed_memory()
    cases, dtype = {}, getattr(torch, PRECISIONS[precision])
    with torch.no_grad():
        for net in backbones:
            net = net.to(device, dtype, memory_format=torch.channels_last).eval()
            for batch in batches:
                x = torch.randn(batch, net.in_channels, *image_size, device=device, dtype=dtype)
                for block, y in block_inputs(net, x):
                    cases.setdefault(plan_case(block.case(y, block.owns_input)), (block, y))
        blocks = {case: time_block(*cases[case], rates, warmup, repeats)
                  for case in track(list(cases))}
    return MeasuredPlan(device_stamp(device), precision, blocks, expected_rate)


def block_inputs(net, x):
    """The blocks of a backbone that decide, each with its input: pairs."""
    found = []
    handles = [block.register_forward_pre_hook(lambda b, args: found.append((b, args[0].clone())))
               for block in net.blocks() if block.masker is not None]
    try:
        with net.as_static():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def time_block(block, x, rates, warmup, repeats):
    """Time a block's routes on an input, in turn, on a GPU as CUDA graphs: `BlockTimes`."""
    timer, decision = Timer(x.device), block.masker(x)
    case, (weights, _) = block.case(x, block.owns_input), block.weights()
    full, routes = planned_routes(case)
    draws = [[decision.map(partial(random_mask, rate=rate)) for _ in range(DRAWS)]
             for rate in rates]
    # A plan of its own for each, or programs would be chosen anew in every run.
    plans = {route: OneRoute(route) for route in (full, *routes)}

    # Decisions are read from here, so that one graph of a route serves all of them.
    slot = decision.map(torch.clone)

    def run(route, x):
        return run_program(block, x, Execution(plan=plans[route], override=lambda *_: slot),
                           weights, block.owns_input)
    passes = {route: record_pass(partial(run, route), x) for route in (full, *routes)}
    samples = {(route, i): [] for route in routes for i in range(len(rates))}
    samples[full, 0] = []
    sweep = torch.zeros(sweep_bytes(x.device) // 4, device=x.device)
    for repeat in range(warmup + repeats):
        # Alternate who goes first: the second finds other caches.
        for (route, index), own in list(samples.items())[::(-1)**repeat]:
            for kept, chosen in zip(slot.masks().values(),
                                    draws[index][repeat % DRAWS].masks().values()):
                kept.copy_(chosen)
            sweep.add_(1)  # in a net, weights come from beyond the near caches
            passes[route].load(x)  # a block may write over its input
            own.append(timer.time_ms(passes[route].replay))

    def median(samples):
        return LatencyStats.of(samples[warmup:]).p50_ms
    # What was really on: a block of few units cannot have any rate.
    shares = [sum(map(active_share, own)) / DRAWS for own in draws]
    found = {}
    for route in routes:
        measured = {}
        for index, share in enumerate(shares):
            measured[share] = max(median(samples[route, index]), measured.get(share, 0))
        found[route] = [measured[share] for share in sorted(measured)]
    fastest = min(routes, key=lambda route: sum(found[route]))
    return BlockTimes(median(samples[full, 0]), tuple(sorted(set(shares))),
                      tuple(found[fastest]), fastest)
