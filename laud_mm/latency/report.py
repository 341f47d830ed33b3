"""Backbone statistics of a validation set, and the report made of them."""
import json
import os
from pathlib import Path

import torch
from mmengine.dist import all_gather_object

from .measure import LatencyStats


class BackboneStatistics:
    """Sums over the images of a set; memory does not grow but for two floats per timed image."""

    def __init__(self):
        self.names, self.images = (), 0
        self._sums = {}
        self.latencies_ms = dict(dynamic=[], static=[])

    @property
    def timed(self):
        """Number of timed batches so far."""
        return len(self.latencies_ms['static'])

    def add_cost(self, cost):
        """Add the rates and FLOPs of one forward pass (an `ActivationCost` of N images)."""
        self.names = cost.names
        self.images += cost.flops.numel()
        n = cost.flops.numel()
        block_static = cost.block_flops.new_tensor(cost.static_block_flops, dtype=torch.float64)
        for key, value in dict(
                flops=cost.flops.double().sum(), static_flops=cost.static_flops * n,
                fraction=cost.fraction.double().sum(), rate=cost.mean_rate.double() * n,
                block_rates=cost.rates.double().sum(1),
                block_flops=cost.block_flops.double().sum(1),
                block_static_flops=block_static * n).items():
            value = torch.as_tensor(value, dtype=torch.float64).cpu()
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def add_latency(self, dynamic_ms, static_ms):
        """Add the per-image latency in ms of one timed image or batch, both ways."""
        self.latencies_ms['dynamic'].append(dynamic_ms)
        self.latencies_ms['static'].append(static_ms)

    def over_ranks(self):
        """The statistics of all processes together."""
        merged = BackboneStatistics()
        for part in all_gather_object(self):
            merged.names = part.names or merged.names
            merged.images += part.images
            for key, value in part._sums.items():
                merged._sums[key] = merged._sums.get(key, 0) + value
            for kind, values in part.latencies_ms.items():
                merged.latencies_ms[kind] += values
        return merged

    def report(self, stamp):
        """Average over the images.

        Args:
            stamp (dict): What was measured on, from `device_stamp`.

        Returns:
            dict: JSON-ready; FLOPs in G multiply-adds, latencies in ms per image.

        Raises:
            ValueError: If no image was seen.
        """
        if not self.images:
            raise ValueError('the backbone ran on no image, so there is nothing to report')
        mean = {k: (v / self.images).tolist() for k, v in self._sums.items()}
        report = dict(
            stamp=stamp, images=self.images,
            flops_g=mean['flops'] / 1e9, flops_static_g=mean['static_flops'] / 1e9,
            flops_fraction=mean['fraction'], rate=mean['rate'],
            blocks=[dict(name=name, rate=rate, flops_g=flops / 1e9,
                         flops_fraction=flops / static)
                    for name, rate, flops, static in zip(
                        self.names, mean['block_rates'], mean['block_flops'],
                        mean['block_static_flops'])])
        if self.latencies_ms['dynamic']:
            stats = {k: LatencyStats.of(v) for k, v in self.latencies_ms.items()}
            report['measured'] = dict(
                dynamic=stats['dynamic'].as_dict(), static=stats['static'].as_dict(),
                ratio=stats['dynamic'].mean_ms / stats['static'].mean_ms)
        return report


def report_metrics(report):
    """Flatten a report to metric names and values."""
    metrics = {f'backbone_{key}': report[key]
               for key in ('flops_g', 'flops_static_g', 'flops_fraction', 'rate')}
    if 'measured' in report:
        measured = report['measured']
        metrics['backbone_latency_measured_ms'] = measured['dynamic']['mean_ms']
        metrics['backbone_latency_static_ms'] = measured['static']['mean_ms']
        metrics['backbone_latency_ratio'] = measured['ratio']
    return metrics


def write_report(report, path):
    """Write a report as JSON, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    part.write_text(json.dumps(report, indent=2) + '\n')
    os.replace(part, path)
