"""Backbone statistics of a validation set, and the report made of them."""
from dataclasses import fields

import torch

from laud_mm.framework import all_gather_object
from laud_mm.specs import Rates

from .histogram import LatencyHistogram

SIZE_STEP = 32  # image sizes are told apart by steps of this many pixels
_RATES = tuple(f.name for f in fields(Rates))


def round_size(image_size):
    """Height and width rounded up to steps of `SIZE_STEP` pixels: the bucket of a size."""
    return tuple(-(-int(side) // SIZE_STEP) * SIZE_STEP for side in image_size)


class BackboneStatistics:
    """Sums over the images of a set.

    Memory grows by the rates of the blocks per image size (see `round_size`), not per image.

    Attributes:
        views (int): Images that the backbone saw, such as the views of test-time augmentation
            or the windows of a sliding one.
        images (int): Images of the set.
    """

    def __init__(self):
        self.names, self.views, self.images = (), 0, 0
        self._sums, self._sizes = {}, {}
        self.latencies = dict(dynamic=LatencyHistogram(), static=LatencyHistogram())

    @property
    def timed(self):
        """Number of timed batches so far."""
        return self.latencies['static'].count

    def add_cost(self, cost, image_size):
        """Add one forward pass.

        Args:
            cost (ActivationCost): Rates and FLOPs of N views.
            image_size (tuple[int, int]): Height and width of the images.
        """
        n = cost.flops.numel()
        self.names = cost.names
        self.views += n
        self._add_rates(cost.block_rates, n, image_size)
        block_static = cost.block_flops.new_tensor(cost.static_block_flops, dtype=torch.float64)
        for key, value in dict(
                flops=cost.flops.double().sum(), static_flops=cost.static_flops * n,
                fraction=cost.fraction.double().sum(), rate=cost.mean_rate.double() * n,
                block_rates=cost.rates.double().sum(1),
                block_flops=cost.block_flops.double().sum(1),
                block_static_flops=block_static * n).items():
            value = torch.as_tensor(value, dtype=torch.float64).cpu()
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _add_rates(self, block_rates, n, image_size):
        size = round_size(image_size)
        recorded = {(i, j): value for i, rates in enumerate(block_rates)
                    for j, value in enumerate(vars(rates).values()) if torch.is_tensor(value)}
        sums = torch.ones(len(block_rates), len(_RATES), dtype=torch.float64)  # nothing skipped
        if recorded:
            means = torch.stack([value.double().mean() for value in recorded.values()])
            sums[tuple(zip(*recorded))] = means.cpu()  # one wait for the device
        images, before = self._sizes.get(size, (0, 0.0))
        self._sizes[size] = images + n, before + sums * n

    def rates_by_size(self):
        """Mean rates of the blocks for every image size.

        Returns:
            dict[tuple[int, int], tuple[int, list[Rates | None]]]: Height and
            width, rounded up, to the number of views and their blocks'
            rates; None for a block that was on in every view.
        """
        always = (self._sums['block_rates'] / self.views >= 1 - 1e-9).tolist()
        return {size: (images, [None if on else Rates(*(min(v, 1.0) for v in row))
                                for on, row in zip(always, (sums / images).tolist())])
                for size, (images, sums) in self._sizes.items()}

    def add_latency(self, dynamic_ms, static_ms):
        """Add the per-image latency in ms of one timed image or batch, both ways."""
        self.latencies['dynamic'].add(dynamic_ms)
        self.latencies['static'].add(static_ms)

    def over_ranks(self):
        """The statistics of all processes together."""
        merged = BackboneStatistics()
        for part in all_gather_object(self):
            merged.names = part.names or merged.names
            merged.views += part.views
            merged.images += part.images
            for key, value in part._sums.items():
                merged._sums[key] = merged._sums.get(key, 0) + value
            for size, (images, sums) in part._sizes.items():
                before = merged._sizes.get(size, (0, 0.0))
                merged._sizes[size] = before[0] + images, before[1] + sums
            for kind, latencies in part.latencies.items():
                merged.latencies[kind].update(latencies)
        return merged

    def report(self, stamp):
        """Average over the images of the set; FLOPs and latency are of all views of an image.

        Args:
            stamp (dict): What was measured on, from `device_stamp`.

        Returns:
            dict: JSON-ready; FLOPs in G multiply-adds, latencies in ms per image.

        Raises:
            ValueError: If no image was seen.
        """
        if not self.views:
            raise ValueError('the backbone ran on no image, so there is nothing to report')
        images = self.images or self.views
        shares = 'fraction', 'rate', 'block_rates'  # of a view; sums are of an image
        mean = {k: (v / (self.views if k in shares else images)).tolist()
                for k, v in self._sums.items()}
        report = dict(
            stamp=stamp, images=images, views_per_image=self.views / images,
            flops_g=mean['flops'] / 1e9, flops_static_g=mean['static_flops'] / 1e9,
            flops_fraction=mean['fraction'], rate=mean['rate'],
            blocks=[dict(name=name, rate=rate, flops_g=flops / 1e9,
                         flops_fraction=flops / static)
                    for name, rate, flops, static in zip(
                        self.names, mean['block_rates'], mean['block_flops'],
                        mean['block_static_flops'])])
        if self.timed:
            stats = {kind: latencies.stats() for kind, latencies in self.latencies.items()}
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
    for device, predicted in report.get('predicted', {}).items():
        metrics[f'backbone_latency_predicted_ms/{device}'] = predicted['latency_ms']
        metrics[f'backbone_latency_predicted_static_ms/{device}'] = predicted['static_ms']
        metrics[f'backbone_latency_predicted_ratio/{device}'] = predicted['ratio']
    return metrics


def predict_report(statistics, predictor, op_specs, batch):
    """Predict the mean latency per image from the rates that a set showed.

    Args:
        statistics (BackboneStatistics): Rates of the set.
        predictor (AnalyticPredictor | CalibratedPredictor): For one device.
        op_specs (Callable): (height, width) to `NetworkSpec`.
        batch (int): Images per batch.

    Returns:
        dict: Latencies in ms per image, for JSON.
    """
    mean = dict(mode=predictor.mode, batch=batch, latency_ms=0.0, static_ms=0.0, blocks_ms=None)
    blocks = 0.0
    for size, (images, rates) in statistics.rates_by_size().items():
        report = predictor.predict(op_specs(size), rates, batch)
        share = images / (statistics.images or statistics.views)
        mean['latency_ms'] += share * report.latency_per_image_ms
        mean['static_ms'] += share * report.static_latency_per_image_ms
        blocks = blocks + share * torch.tensor([[b.latency_ms, b.static_latency_ms]
                                                for b in report.blocks]) / batch
    mean['ratio'] = mean['latency_ms'] / mean['static_ms']
    mean['blocks_ms'], mean['static_blocks_ms'] = blocks.T.tolist()
    return mean
