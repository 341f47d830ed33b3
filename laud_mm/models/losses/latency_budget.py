"""LatencyBudget: the predicted time of a backbone as a function of its rates, for a loss."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from laud_mm.latency.analytic import check_batch
from laud_mm.latency.calibrated import load_predictor
from laud_mm.latency.report import round_size
from laud_mm.models.dynamic import ActivationCost

POINTS = 21  # rates at which a block is predicted


class LatencyBudget:
    """Predicted time of a dynamic backbone over that of the static one.

    Every block is predicted once at `POINTS` rates; between them its time is linear in its mean
    rate over the images. The gradient is that of the lower convex hull of these points: a block
    that is faster dense at high rates has a plateau there, from which no gradient would lead.

    Args:
        device (str): A name of the hardware table, a device file or a calibration file.
        batch (int): Images per batch on that device.

    Raises:
        ValueError: If the device is not known or `batch` is not a positive int.
    """

    def __init__(self, device: str, batch: int = 1):
        self.predictor, self.batch = load_predictor(device), check_batch(batch)
        self.device = device
        self._curves: dict[Any, _Curves] = {}

    def fraction(self, cost: ActivationCost, mean: Any = lambda value: value) -> Tensor:
        """Predicted time over that of the static net, (), differentiable through the rates.

        Args:
            cost (ActivationCost): Of one pass or of several.
            mean (Callable): Averages (B,) rates over processes.
        """
        parts = cost.passes or (cost,)
        images = sum(part.rates.shape[1] for part in parts)
        return sum((self.curves(part).fraction(mean(part.mean_rates)) * part.rates.shape[1]
                    for part in parts), start=cost.rates.new_zeros(())) / images

    def least(self, cost: ActivationCost) -> float:
        """The fraction where no unit is on that may be off."""
        return min(self.curves(part).least for part in cost.passes or (cost,))

    def curves(self, cost: ActivationCost) -> '_Curves':
        """What was predicted for the images of one pass, whose sizes count in steps."""
        if cost.op_specs is None:
            raise ValueError('metric must be flops for a cost without op_specs, got latency')
        key = round_size(cost.image_size), cost.names
        if key not in self._curves:
            network = cost.op_specs(key[0])
            rates = [i / (POINTS - 1) for i in range(POINTS)]
            self._curves[key] = _Curves(
                [[float(block.expected_rates(rate).unit) for block in network.blocks]
                 for rate in rates],
                [self.predictor.predict(network, rate, self.batch) for rate in rates])
        return self._curves[key]


class _Curves:
    """Piecewise linear times of the blocks of a network.

    Args:
        units (Sequence[Sequence[float]]): By point and block: its mean rate.
        reports (Sequence[LatencyReport]): By point.
    """

    def __init__(self, units: Sequence[Sequence[float]], reports: Sequence[Any]):
        static = reports[0].static_latency_per_image_ms * reports[0].batch
        self.x = torch.tensor(units, dtype=torch.float64).T.contiguous()  # (B, points)
        times = torch.tensor([[block.latency_ms for block in report.blocks]
                              for report in reports], dtype=torch.float64).T
        self.y = (times / static).contiguous()
        outside = reports[0].latency_per_image_ms - reports[0].blocks_latency_per_image_ms
        self.outside = outside * reports[0].batch / static
        self.slopes = torch.stack([_hull_slopes(x, y) for x, y in zip(self.x, self.y)])
        self.least = self.outside + self.y.min(1).values.sum().item()

    def fraction(self, rates: Tensor) -> Tensor:
        """The time of (B,) mean rates over that of the static net, ()."""
        x, y, slopes = (own.to(rates.device) for own in (self.x, self.y, self.slopes))
        now = rates.detach().double()
        left = (x[:, 1:-1] <= now[:, None]).sum(1, keepdim=True)
        x0, x1, y0, y1 = (own.gather(1, at)[:, 0]
                          for own in (x, y) for at in (left, left + 1))
        share = ((now - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
        value = (y0 + share * (y1 - y0)).sum() + self.outside
        slope = slopes.gather(1, left)[:, 0].to(rates.dtype)
        return value.to(rates.dtype) + (slope * (rates - rates.detach())).sum()


def _hull_slopes(x, y):
    """(points - 1,) slopes of the lower convex hull of points with rising x."""
    slopes, start = torch.zeros(len(x) - 1, dtype=x.dtype), 0
    while start < len(x) - 1:
        rise = (y[start + 1:] - y[start]) / (x[start + 1:] - x[start]).clamp(min=1e-12)
        end = start + 1 + int(rise.argmin())
        slopes[start:end] = rise[end - start - 1]
        start = end
    return slopes
