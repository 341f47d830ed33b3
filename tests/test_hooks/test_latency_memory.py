"""LatencyHook on image after image of other sizes: memory stays flat, sums stay right."""
import gc
import math

import numpy as np
import psutil
import pytest
import torch
from mmengine.model import BaseModel
from torch.utils.data import DataLoader

from laud_mm.hooks import LatencyHook
from laud_mm.latency.histogram import LatencyHistogram
from laud_mm.models.backbones import LAUDRegNet

from ..toy import ToyImages, make_runner

IMAGES, SETTLED = 2000, 200


class BareBackbone(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = LAUDRegNet(dict(widths=8, depths=1, group_widths=8), paradigm='spatial')

    def forward(self, inputs, labels=None, mode='tensor'):
        return self.backbone(inputs)[-1].mean((2, 3))


class Memory:
    """An evaluator that notes how much memory the process holds."""

    def __init__(self):
        self.resident_mb = []

    def process(self, data_samples, data_batch=None):
        self.resident_mb.append(psutil.Process().memory_info().rss / 2**20)

    def evaluate(self, size):
        return {}


def random_sizes(count):
    """Sizes as detectors pad them; oneDNN's own cache grows with every size that is new to it."""
    generator = np.random.default_rng(0)
    return [tuple(32 * int(n) for n in generator.integers(1, 9, 2)) for _ in range(count)]


class Images(ToyImages):
    """Random images of random sizes, made when they are asked for."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, *self.sizes[index]), labels=0)


@pytest.mark.slow
def test_memory_stays_flat_over_2000_images_of_any_size(tmp_path):
    memory, sizes = Memory(), random_sizes(IMAGES)
    runner = make_runner(tmp_path, [LatencyHook(warmup=1, devices='V100')], val_images=1,
                         model=BareBackbone())
    runner.val_loop.dataloader = DataLoader(Images(sizes), batch_size=1)
    runner.val_loop.evaluator = memory
    gc.collect()
    metrics = runner.val()
    assert len(memory.resident_mb) == IMAGES
    assert max(memory.resident_mb[SETTLED:]) - memory.resident_mb[SETTLED] < 50
    backbone = runner.model.backbone
    static = sum(backbone.op_specs(size).static_flops for size in sizes) / IMAGES
    assert metrics['backbone_flops_static_g'] == pytest.approx(static / 1e9, rel=1e-6)


def test_each_size_is_warmed_up_once(tmp_path):
    runner = make_runner(tmp_path, [LatencyHook(warmup=2)], val_images=1, model=BareBackbone())
    sizes = [(64, 64), (50, 60), (64, 65), (33, 64)]  # two buckets: 64x64 and 64x96
    runner.val_loop.dataloader = DataLoader(Images(sizes), batch_size=1)
    runs = []
    runner.model.backbone.register_forward_hook(
        lambda m, args, out: runs.append(m.current_execution().static))
    runner.val()
    # Of each image: the evaluation itself and a timed run; of each bucket: two more.
    assert (runs.count(False), runs.count(True)) == (4 + 4 + 2 * 2, 4 + 2 * 2)


def test_a_histogram_is_exact_in_its_mean_and_close_in_its_percentiles():
    latencies = np.random.default_rng(0).lognormal(2, 1, 5000)
    parts = [LatencyHistogram(), LatencyHistogram()]
    for index, latency in enumerate(latencies):
        parts[index % 2].add(latency)
    parts[0].update(parts[1])
    stats = parts[0].stats()
    assert stats.repeats == 5000
    assert stats.mean_ms == pytest.approx(latencies.mean())
    for percent, value in ((50, stats.p50_ms), (90, stats.p90_ms), (99, stats.p99_ms)):
        assert value == pytest.approx(np.percentile(latencies, percent), rel=0.01)
    span = math.log(latencies.max() / latencies.min()) / math.log(1.01)
    assert len(parts[0].bins) <= span + 2


def test_an_empty_histogram_has_no_statistics():
    with pytest.raises(ValueError, match='at least one latency'):
        LatencyHistogram().stats()
