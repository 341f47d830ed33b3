"""Drift probe: how fast the machine is right now."""
import math

import numpy as np
import torch
import torch.nn.functional as F

from laud_mm.latency.measure import Timer


class DriftProbe:
    """Times the same small work again and again: one convolution, and one copy through memory.

    Other users of a shared machine slow it down for minutes at a time, by more
    than a prediction may be wrong. What is measured beside a probe can be
    compared with what was measured beside another.

    Args:
        device (str | torch.device): Where to run.
        repeats (int): Timed runs of each per probe, after two untimed ones, so that what ran
            before does not count; the median does.
    """

    def __init__(self, device, repeats=5):
        self._timer, self._repeats = Timer(device), repeats
        x = torch.full((1, 256, 28, 28), 0.1, device=device).contiguous(
            memory_format=torch.channels_last)
        weight = torch.full((256, 256, 1, 1), 0.1, device=device)
        source = torch.zeros(1 << 21, device=device)
        target = torch.empty_like(source)
        self._work = lambda: F.conv2d(x, weight), lambda: target.copy_(source)

    def __call__(self):
        """Latency in ms: the geometric mean of both."""
        times = [np.median([self._timer.time_ms(work) for _ in range(2 + self._repeats)][2:])
                 for work in self._work]
        return math.sqrt(times[0] * times[1])

    def steady(self, probes=9):
        """Latency in ms, the median of several probes: one alone may meet a hitch."""
        return float(np.median([self() for _ in range(probes)]))
