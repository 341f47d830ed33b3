"""A network that skips, at several rates, beside the fastest static net: compiled once."""
from contextlib import contextmanager
from functools import partial

import torch

from laud_mm.latency.measure import keep_freed_memory

from .bench import BenchSetting, compiled_static, run_precision, time_backbone
from .calibrate import DTYPES


class RateBench:
    """Times a network at rates, in turn with its static net, compiled and as it is.

    On a GPU nets that skip are CUDA graphs, and the compiled one is tuned ('max-autotune').

    Args:
        network (str): One of `NETWORKS`.
        batch (int): Images.
        device (str): Where.
        precision (str): 'fp32', 'fp16' or 'bf16'.
        image_size (tuple[int, int]): Height and width.
        repeats (int): Timed runs of each.
    """

    def __init__(self, network, batch, device='cuda', precision='fp16', image_size=(224, 224),
                 repeats=30):
        torch.manual_seed(0)
        keep_freed_memory()
        self.network, self.batch, self.device = network, batch, device
        self.dtype, self.image_size, self.repeats = DTYPES[precision], tuple(image_size), repeats
        with self._ready():
            setting, net = self._build(None)
            x = torch.randn(batch, net.in_channels, *image_size, device=device, dtype=self.dtype)
            self.x = x.contiguous(memory_format=torch.channels_last)
            self.compiled = partial(compiled_static(setting, net, self.x), self.x)

    def __str__(self):
        return f'{self.network}, batch {self.batch}, {self.dtype} on {self.device}'

    @contextmanager
    def _ready(self):
        with torch.no_grad(), run_precision('fp32', self.device):
            yield

    def _build(self, paradigm):
        setting = BenchSetting(self.network, paradigm, 1.0, self.batch,
                               image_size=self.image_size)
        return setting, setting.build().to(self.device, self.dtype,
                                           memory_format=torch.channels_last)

    def time(self, paradigm, rate):
        """Time what is skipped at a share of units on.

        Returns:
            dict: `paradigm`, `rate`, `realised_rate`, `flops_fraction`, `p50_ms` of the batch,
            `static_p50_ms`, `compiled_p50_ms`, and `ratio` to the compiled net, the median of
            runs that were timed together.
        """
        with self._ready():
            _, net = self._build(paradigm)
            timed = time_backbone(net, self.x, rate, 3, self.repeats,
                                  dict(compiled=self.compiled))
        return dict(paradigm=paradigm, rate=rate, realised_rate=timed.cost.mean_rate.item(),
                    flops_fraction=timed.cost.fraction.mean().item(),
                    p50_ms=timed.stats['dynamic'].p50_ms,
                    static_p50_ms=timed.stats['static'].p50_ms,
                    compiled_p50_ms=timed.stats['compiled'].p50_ms,
                    ratio=timed.ratios['compiled'])
