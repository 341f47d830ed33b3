"""Make a plan: time every block of a backbone densely and skipping, on the device at hand."""
from functools import partial

import torch

from laud_mm.latency.measure import LatencyStats, Timer, device_stamp, keep_freed_memory
from laud_mm.models.dynamic import active_share, run_dense, run_skipping
from laud_mm.models.dynamic.control import random_mask
from laud_mm.models.dynamic.plan import DTYPES, BlockCase, BlockTimes, MeasuredPlan
from laud_mm.specs.arguments import check_choice, check_fraction, check_positive_int

from .steps import sweep_bytes

RATES = (0.25, 0.5, 0.75, 0.9, 1.0)
DRAWS = 3  # random decisions of each rate, in turn


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
    check_choice('precision', precision, tuple(DTYPES))
    check_fraction('expected_rate', expected_rate)
    if not rates or min(rates) <= 0:
        raise ValueError(f'rates must be positive, got {rates!r}')
    for batch in batches:
        check_positive_int('batch', batch)
    rates = sorted(check_fraction('rates', rate) for rate in set(rates))
    keep_freed_memory()
    cases = {}
    with torch.no_grad():
        for net in backbones:
            net = net.to(device, DTYPES[precision], memory_format=torch.channels_last).eval()
            for batch in batches:
                x = torch.randn(batch, 3, *image_size, device=device, dtype=DTYPES[precision])
                for block, y in block_inputs(net, x):
                    cases.setdefault(BlockCase.of(block, y), (block, y))
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
    """Time a block's executors on an input, in turn: `BlockTimes`."""
    timer, decision = Timer(x.device), block.masker(x)
    on = decision.map(torch.ones_like)
    draws = [[decision.map(partial(random_mask, rate=rate)) for _ in range(DRAWS)]
             for rate in rates]
    scratch, dense, skipping = x.clone(), [], [[] for _ in rates]
    sweep = torch.zeros(sweep_bytes(x.device) // 4, device=x.device)
    for repeat in range(warmup + repeats):
        programs = [(dense, run_dense, on)]
        programs += [(samples, run_skipping, own[repeat % DRAWS])
                     for samples, own in zip(skipping, draws)]
        # Alternate who goes first: the second finds other caches.
        for samples, run, chosen in programs[::(-1)**repeat]:
            sweep.add_(1)  # in a net, weights come from beyond the near caches
            scratch.copy_(x)  # a block may write over its input
            samples.append(timer.time_ms(partial(run, block, scratch, chosen)))

    def median(samples):
        return LatencyStats.of(samples[warmup:]).p50_ms
    # What was really on: a block of few units cannot have any rate.
    measured = {}
    for own, samples in zip(draws, skipping):
        share = sum(map(active_share, own)) / DRAWS
        measured[share] = max(median(samples), measured.get(share, 0))
    shares = sorted(measured)
    return BlockTimes(median(dense), tuple(shares), tuple(measured[s] for s in shares))
