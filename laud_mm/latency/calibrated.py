"""CalibratedPredictor: latency from steps that were measured on the machine at hand."""
import importlib.metadata
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

from laud_mm.specs import BlockSpec, NetworkSpec, Rates
from laud_mm.utils.files import write_json

from .analytic import AnalyticPredictor, block_rates, check_batch
from .hardware import load_hardware
from .machine import cpu_name
from .prediction import BlockLatency, LatencyReport, OpLatency
from .published import FUSIONS
from .step_model import StepModel, step_contexts

FORMAT, VERSION = 'laud_mm calibration', 3


class CalibratedPredictor:
    """Predicts what the skipping executor takes on a machine that was calibrated.

    Args:
        path (str): A file of `tools/latency.py calibrate`.
        any_machine (bool): Predict also where torch's version or the device
            are not those of the calibration.

    Attributes:
        stamp (dict): What it was calibrated on.

    Raises:
        ValueError: If the file is no calibration, or one of another version of
            the format or of torch, or of another device.
    """
    mode = 'calibrated'

    def __init__(self, path, any_machine=False):
        self.path = Path(path)
        content = read_calibration(path)
        self.stamp, self.precision = content['stamp'], content['precision']
        self.validation = content.get('validation', {})
        if not any_machine:
            check_stamp(self.path, self.stamp)
        self.name = self.path.stem
        self.model = StepModel(content['weights'], content['units'], content['factors'])
        # Where bf16 has dot products, no net of the calibration ran Winograd's steps.
        direct = self.precision == 'bf16' and 'rows3x3_winograd' not in content['weights']
        self._fused = any(key.startswith('stem_conv') for key in content['weights'])
        self._case = dict(device=self.stamp['device'], dot_products=direct)

    def predict(self, network, rates=1.0, batch=None, about=None):
        """Predict a backbone; arguments and result as of `AnalyticPredictor.predict`."""
        batch = check_batch(1 if batch is None else batch)
        rates = block_rates(network, rates)
        outside, static_outside = (network.outside_calls(batch, fused)
                                   for fused in (self._fused, False))
        dynamic = [block.calls(rate, batch, **self._case)
                   for block, rate in zip(network.blocks, rates)]
        static = [block.static_calls(batch, **self._case) for block in network.blocks]
        blocks, static_blocks = self._run([outside, *dynamic]), self._run([static_outside, *static])
        return LatencyReport(
            self.name, self.mode, self.precision, batch,
            tuple(BlockLatency(block.name, block.shape.stage, float((rate or Rates()).unit),
                               own, dense)
                  for block, rate, own, dense in zip(network.blocks, rates, blocks[1:],
                                                     static_blocks[1:])),
            blocks[0], about or {}, static_blocks[0])

    def knows(self, network: NetworkSpec, batch: int = 1) -> bool:
        """Whether the calibration has every kind of step of a backbone, skipping and static."""
        calls = [*network.outside_calls(batch, self._fused), *network.outside_calls(batch)]
        for block in network.blocks:
            calls += block.calls(block.expected_rates(0.5), batch, **self._case)
            calls += block.static_calls(batch, **self._case)
        return {call.kind for call in calls} <= {key.split('/')[0] for key in self.model.weights}

    def route_ms(self, block: BlockSpec, batch: int, route: Any, rates: Rates | None) -> float:
        """Latency of one block on one of its routes, weights from far away."""
        ops, = self._run([block.calls(rates, batch, route, **self._case)], math.inf)
        return sum(op.latency_ms for op in ops)

    def _run(self, parts, weights_m=None):
        """The ops of the parts of a net, each with its latency among the others."""
        contexts = iter(step_contexts([*itertools.chain(*parts)], weights_m))
        return [tuple(OpLatency(call.name, call.kind,
                                self.model.latency_ms(call, next(contexts)) * call.times)
                      for call in calls) for calls in parts]


def read_calibration(path):
    """Read a calibration file.

    Raises:
        ValueError: If it is not one, or of another version of the format.
    """
    try:
        content = json.loads(Path(path).read_text())
        found = content['format'], content['version']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} must be a calibration file: {error!r}') from error
    if found != (FORMAT, VERSION):
        raise ValueError(f'{path} must have format {FORMAT!r} version {VERSION}, got {found[0]!r} '
                         f'version {found[1]!r}: calibrate again')
    missing = {'stamp', 'precision', 'units', 'weights', 'factors'} - set(content)
    if missing:
        raise ValueError(f'{path} lacks {", ".join(sorted(missing))}: calibrate again')
    return content


def check_stamp(path, stamp, made='calibrated', again='calibrate again'):
    """Check that a file was made with the torch and on the device at hand.

    Raises:
        ValueError: If not, with both.
    """
    installed = importlib.metadata.version('torch')
    if stamp['torch'].split('+')[0] != installed.split('+')[0]:
        raise ValueError(f'{path} was {made} with torch {stamp["torch"]}, here is {installed}: '
                         f'{again}, or allow any machine')
    here = _device_name(stamp['device'])
    if stamp['name'] != here:
        raise ValueError(f'{path} was {made} on {stamp["name"]!r}, here is {here!r}: '
                         f'{again}, or allow any machine')


def _device_name(device):
    if device == 'cpu':
        return cpu_name()
    import torch  # only to name a GPU
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'


def save_calibration(path, model, stamp, precision, validation):
    """Write a calibration file, complete or not at all."""
    write_json(dict(format=FORMAT, version=VERSION, stamp=stamp, precision=precision,
                    units=model.units, validation=validation, weights=model.weights,
                    factors=model.factors), path)


def is_calibration(device):
    """Whether a device argument names a calibration file."""
    if not os.path.isfile(device):
        return False
    try:
        return 'format' in json.loads(Path(device).read_text())
    except (OSError, ValueError):
        return False


def load_predictor(device, precision='fp32', published=False, fusions=FUSIONS,
                   any_machine=False):
    """The predictor for a device: analytic for the hardware table, calibrated for a calibration.

    Args:
        device (str): A name of `known_devices`, a device file or a calibration file.
        precision (str): See `AnalyticPredictor`; a calibration has its own.
        published (bool): See `AnalyticPredictor`.
        fusions (Sequence[str]): See `AnalyticPredictor`.
        any_machine (bool): See `CalibratedPredictor`.
    """
    if not is_calibration(device):
        return AnalyticPredictor(load_hardware(device), precision, published, fusions)
    predictor = CalibratedPredictor(device, any_machine)
    if published:
        raise ValueError(f'published must be False for a calibrated device, got {device}')
    if precision not in ('fp32', predictor.precision):
        raise ValueError(f'precision of {device} is {predictor.precision!r}, got {precision!r}')
    return predictor
