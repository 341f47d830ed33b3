"""AnalyticPredictor: latency from op specs, rates and a hardware entry alone."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laud_mm.specs import NetworkSpec, Rates
from laud_mm.specs.arguments import check_fraction

from .hardware import Hardware, load_hardware
from .kernel_table import ProgramSchedule
from .kernels import KernelModel
from .prediction import BlockLatency, LatencyReport, OpLatency
from .published import FUSIONS, Cheapest, PublishedSchedule, check_fusions


def check_batch(batch):
    """Return `batch`, or raise ValueError if it is not a positive int."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f'batch must be a positive int, got {batch!r}')
    return batch


def block_rates(network, rates):
    """Rates of every block, from one rate, one per block, or recorded ones.

    Args:
        network (NetworkSpec): The network.
        rates (float | Sequence | dict): A share of units on for all blocks, or
            per block (in order, or by block name) a share, a `Rates`, or None
            for a block that is known to be always on. Values with one entry
            per image count with their mean.

    Returns:
        list[Rates | None]: Scalars; None where everything is always on.

    Raises:
        ValueError: If a rate is not within [0, 1], or blocks and rates do not match.
    """
    names = [block.name for block in network.blocks]
    if isinstance(rates, dict):
        if set(rates) - set(names):
            raise ValueError(f'rates must name blocks of the network ({names[0]} to {names[-1]}), '
                             f'got {", ".join(sorted(set(rates) - set(names)))}')
        rates = [rates.get(name) for name in names]
    elif not isinstance(rates, (list, tuple)):
        rates = [rates] * len(names)
    if len(rates) != len(names):
        raise ValueError(f'rates must be one number or {len(names)}, one per block, '
                         f'got {len(rates)}')
    return [_scalar_rates(block, rate) for block, rate in zip(network.blocks, rates)]


def _scalar_rates(block, rate):
    if rate is None:
        return None
    if not isinstance(rate, Rates):
        return block.expected_rates(check_fraction('rate', rate))
    scalars = {}
    for name, value in vars(rate).items():
        value = float(value.mean() if hasattr(value, 'mean') else value)
        # Means of float32 values may stray from 1 by a rounding error.
        scalars[name] = check_fraction(f'rate ({name})', min(value, 1.0) if value < 1.001
                                       else value)
    return Rates(**scalars)


class AnalyticPredictor:
    """Predicts from the papers' model of a GPU (LAUDNet, the latency predictor).

    Args:
        device (str | Hardware): See `load_hardware`.
        precision (str): 'fp32', or another that the device has.
        published (bool): Count what the papers' predictor counts, in the way
            it does: residual blocks without the first projection, fp32.
        fusions (Sequence[str]): Published only: which of 'masker_conv1', 'gather_conv2' and
            'scatter_add' are on. Programs say themselves what is fused.

    Examples:
        >>> from laud_mm.latency import AnalyticPredictor
        >>> from laud_mm.specs import resnet_spec
        >>> predictor = AnalyticPredictor('V100', published=True)
        >>> report = predictor.predict(resnet_spec(101, paradigm='layer'), 0.4)
        >>> round(report.ratio, 2)
        0.47
    """

    def __init__(self, device: str | Path | Hardware, precision: str = 'fp32',
                 published: bool = False, fusions: Sequence[str] = FUSIONS):
        self.hardware = device if isinstance(device, Hardware) else load_hardware(device)
        if published and precision != 'fp32':
            raise ValueError(f"precision must be 'fp32' in published mode, got {precision!r}")
        self.model = KernelModel(self.hardware, precision, tile_at_mean=published)
        if not published and check_fusions(fusions) != FUSIONS:
            raise ValueError('fusions must be left out unless published: what programs fuse is '
                             f'their own, got {tuple(fusions)!r}')
        self.schedule: PublishedSchedule | ProgramSchedule = PublishedSchedule(fusions) \
            if published else ProgramSchedule('cpu' if self.hardware.name == 'CPU' else 'cuda')
        self.mode = 'published' if published else 'analytic'
        self.name = self.hardware.name

    def predict(self, network: NetworkSpec, rates: Any = 1.0, batch: int | None = None,
                about: dict | None = None) -> LatencyReport:
        """Predict a backbone.

        Args:
            network (NetworkSpec): What runs, at one image size.
            rates: See `block_rates`.
            batch (int, optional): Images per batch; default: the device's.
            about (dict, optional): Noted in the report.

        Returns:
            LatencyReport: The dynamic net and the static one beside it.
        """
        batch = check_batch(self.hardware.batch if batch is None else batch)
        blocks = tuple(self._block(block, rate, batch)
                       for block, rate in zip(network.blocks, block_rates(network, rates)))
        outside = self._run(self.schedule.outside((*network.stem, *network.tail)), batch)
        return LatencyReport(self.hardware.name, self.mode, self.model.precision, batch, blocks,
                             outside, about or {})

    def _block(self, block, rates, batch):
        return BlockLatency(block.name, block.shape.stage, float((rates or Rates()).unit),
                            self._run(self.schedule.dynamic(block, rates, batch), batch),
                            self._run(self.schedule.static(block, batch), batch))

    def _run(self, launches, batch):
        ops = []
        for launch in launches:
            if isinstance(launch, Cheapest):
                routes = [self._run(route, batch) for route in launch.routes]
                ops += min(routes, key=lambda route: sum(op.latency_ms for op in route))
            else:
                cost = self.model.cost(launch.kernel, launch.samples * batch)
                cost = cost.scaled(launch.probability, launch.launches)
                ops.append(OpLatency(launch.name, type(launch.kernel).__name__, cost.latency_ms,
                                     cost.compute_ms, cost.memory_ms, cost.launch_ms, cost.tile))
        return tuple(ops)
