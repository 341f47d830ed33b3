"""Plan: up to which rate skipping a block pays, on the device at hand.

Wherever more than that is on, `execution='auto'` computes the block densely. A plan is
data: a file of `tools/latency.py plan`, or a calibration's predictions.
"""
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch

from laud_mm.latency.calibrated import FORMAT as CALIBRATION
from laud_mm.latency.calibrated import CalibratedPredictor, check_stamp
from laud_mm.latency.output import write_json
from laud_mm.specs import BlockSpec, BottleneckShape, NetworkSpec
from laud_mm.specs.arguments import check_fraction

FORMAT, VERSION = 'laud_mm plan', 1
DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)


@dataclass(frozen=True)
class BlockCase:
    """What the latency of a block depends on besides its decision; equal blocks are one case.

    Attributes:
        shape (BottleneckShape): Geometry and paradigm, without name and stage.
        in_size (tuple[int, int]): Height and width of the block's input.
        batch (int): Images.
        mask_before_norm (bool): As of the block.
    """
    shape: BottleneckShape
    in_size: Tuple[int, int]
    batch: int
    mask_before_norm: bool = False

    @classmethod
    def of(cls, block, x):
        """The case of a block (DynamicBottleneck) on an input (N, C, H, W)."""
        return cls(_nameless(block.shape), tuple(x.shape[-2:]), len(x), block.mask_before_norm)

    @classmethod
    def from_dict(cls, values):
        """The reverse of `dataclasses.asdict`."""
        return cls(**dict(values, shape=BottleneckShape(**values['shape']),
                          in_size=tuple(values['in_size'])))


@lru_cache(maxsize=4096)
def _nameless(shape):
    return replace(shape, name='', stage=0)


@dataclass(frozen=True)
class BlockTimes:
    """Latencies of one case, maskers left out: both executors decide alike.

    Attributes:
        dense_ms (float): Of the dense executor.
        rates (tuple[float, ...]): Shares of active units, ascending, see `active_share`.
        skipping_ms (tuple[float, ...]): Of the skipping executor at each of them.
    """
    dense_ms: float
    rates: Tuple[float, ...]
    skipping_ms: Tuple[float, ...]

    def __post_init__(self):
        if not self.rates or len(self.rates) != len(self.skipping_ms) \
                or list(self.rates) != sorted(self.rates):
            raise ValueError('rates must be ascending, one for each of skipping_ms, got '
                             f'{self.rates!r} and {self.skipping_ms!r}')

    @property
    def break_even(self):
        """The share up to which skipping is not slower; latencies between are interpolated.

        Beyond the first share at which it is slower it may be faster again: where everything is
        on, nothing needs slicing. That is not worth a case of its own.
        """
        gains = [self.dense_ms - ms for ms in self.skipping_ms]
        lost = next((i for i, gain in enumerate(gains) if gain < 0), None)
        if lost is None:
            return 1.0
        if lost == 0:
            return 0.0
        (low, high), (won, missed) = self.rates[lost - 1:lost + 1], gains[lost - 1:lost + 1]
        return low + (high - low) * won / (won - missed)


class ExecutionPlan:
    """Base: chooses between the skipping and the dense executor, block by block.

    Attributes:
        expected_rate (float): The share of units on that a GPU's choice rests on.
    """
    expected_rate: float = 0.5

    def break_even(self, case) -> Optional[float]:
        """The share of active units up to which skipping pays; None: not known."""
        raise NotImplementedError

    def skips(self, block, x, decision):
        """Whether skipping is the faster way to run a block. Does not synchronise.

        On a CPU the share that is really on decides, on a GPU the expected one. A block
        that the plan does not know skips.
        """
        limit = self.break_even(BlockCase.of(block, x)) if self.fits(x) else None
        if limit is None:
            return True
        if x.is_cuda:
            return self.expected_rate ** len(decision.masks()) <= limit
        return active_share(decision) <= limit

    def fits(self, x):
        """Whether the plan is about tensors like x."""
        raise NotImplementedError


@dataclass(frozen=True)
class MeasuredPlan(ExecutionPlan):
    """A plan made of measurements; a file of `tools/latency.py plan`.

    Attributes:
        stamp (dict): Where it was measured, see `device_stamp`.
        precision (str): A key of `DTYPES`.
        blocks (dict[BlockCase, BlockTimes]): What was measured.
        expected_rate (float): See `ExecutionPlan`.
    """
    stamp: dict
    precision: str
    blocks: Dict[BlockCase, BlockTimes]
    expected_rate: float = 0.5

    def break_even(self, case):
        times = self.blocks.get(case)
        return times and times.break_even

    def fits(self, x):
        return x.dtype == DTYPES[self.precision] and x.device.type == self.stamp['device']

    def save(self, path):
        """Write the plan, complete or not at all."""
        write_json(dict(
            format=FORMAT, version=VERSION, stamp=self.stamp, precision=self.precision,
            expected_rate=self.expected_rate,
            blocks=[dict(case=asdict(case), break_even=times.break_even, **asdict(times))
                    for case, times in self.blocks.items()]), path)

    @classmethod
    def load(cls, path, any_machine=False):
        """Read a plan.

        Args:
            path (str): A file of `save`.
            any_machine (bool): Take it also where torch's version, the device or the
                number of threads are not those of the plan.

        Raises:
            ValueError: If it is no plan, or one of another version or another machine.
        """
        content = _read(path)
        if (content.get('format'), content.get('version')) != (FORMAT, VERSION):
            raise ValueError(f'{path} must have format {FORMAT!r} version {VERSION}, got '
                             f'{content.get("format")!r} version {content.get("version")!r}: '
                             'plan again')
        try:
            blocks = {BlockCase.from_dict(block['case']): BlockTimes(
                block['dense_ms'], tuple(block['rates']), tuple(block['skipping_ms']))
                for block in content['blocks']}
            plan = cls(content['stamp'], content['precision'], blocks,
                       check_fraction('expected_rate', content['expected_rate']))
            machine = {key: plan.stamp[key] for key in ('torch', 'name', 'device', 'threads')}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} must be a complete plan, plan again: {error!r}') from error
        if plan.precision not in DTYPES:
            raise ValueError(f'{path} must have a precision among {", ".join(DTYPES)}, '
                             f'got {plan.precision!r}')
        if not any_machine:
            check_stamp(path, machine, made='planned', again='plan again')
            here = torch.get_num_threads()
            if machine['device'] == 'cpu' and machine['threads'] != here:
                raise ValueError(f'{path} was planned with {machine["threads"]} threads, here '
                                 f'are {here}: plan again, or allow any machine')
        return plan


class CalibratedPlan(ExecutionPlan):
    """A plan out of a calibration's predictions.

    Args:
        predictor (CalibratedPredictor): Made on the machine at hand.
        expected_rate (float): See `ExecutionPlan`.
    """
    RATES = tuple(i / 10 for i in range(1, 11))

    def __init__(self, predictor, expected_rate=0.5):
        self.predictor, self.expected_rate = predictor, expected_rate
        self._known = {}

    def break_even(self, case):
        if case not in self._known:
            network = NetworkSpec((), (BlockSpec.of(case.shape, case.in_size),))

            def latency_ms(rate):
                report = self.predictor.predict(network, [rate], case.batch)
                return report.blocks[0].latency_ms
            # A block that is always on is dense, and decides all the same.
            masks = 2 if case.shape.paradigm == 'both' else 1
            times = BlockTimes(latency_ms(None), tuple(rate**masks for rate in self.RATES),
                               tuple(map(latency_ms, self.RATES)))
            self._known[case] = times.break_even
        return self._known[case]

    def fits(self, x):
        return (x.dtype == DTYPES[self.predictor.precision]
                and x.device.type == self.predictor.stamp['device'])


def load_plan(path, any_machine=False):
    """Load a plan from a plan file or a calibration file.

    Raises:
        ValueError: If it is neither, or does not fit the machine at hand.
    """
    kind = _read(path).get('format')
    if kind == FORMAT:
        return MeasuredPlan.load(path, any_machine)
    if kind == CALIBRATION:
        return CalibratedPlan(CalibratedPredictor(path, any_machine))
    raise ValueError('plan must be a file of `tools/latency.py plan` or `calibrate`, got '
                     f'{str(path)!r} of format {kind!r}')


def _read(path):
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise ValueError('plan must be a file of `tools/latency.py plan` or `calibrate`, got '
                         f'{path!r}: {error!r}') from error
    return content if isinstance(content, dict) else {}


def active_share(decision):
    """Share of units that a decision turns on: the product of its masks' means."""
    share = 1.0
    for mask in decision.masks().values():
        share *= mask.float().mean().item()
    return share
