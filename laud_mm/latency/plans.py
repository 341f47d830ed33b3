"""Plan: which program of a block is the fastest, on the device at hand.

A plan knows on which route skipping a block is fastest, and up to which share of active units
that pays; wherever more is on, `execution='auto'` computes everything of the block. A plan is
data: a file of `tools/latency.py plan`, or a calibration's predictions.
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laud_mm.specs import BlockSpec, BottleneckShape, Case, Program
from laud_mm.specs.arguments import check_fraction
from laud_mm.specs.bottleneck_program import BottleneckRoute
from laud_mm.utils.files import write_json

from .calibrated import FORMAT as CALIBRATION
from .calibrated import CalibratedPredictor, check_stamp

FORMAT, VERSION = 'laud_mm plan', 3
PRECISIONS = dict(fp32='float32', fp16='float16', bf16='bfloat16')


@dataclass(frozen=True)
class BlockTimes:
    """Latencies of one case, maskers included.

    Attributes:
        full_ms (float): Of the program that computes everything, masks applied.
        rates (tuple[float, ...]): Shares of active units, ascending, see `active_share`.
        skipping_ms (tuple[float, ...]): On the fastest skipping route at each of them.
        route (BottleneckRoute | None): That route; None: the default one.
    """
    full_ms: float
    rates: tuple[float, ...]
    skipping_ms: tuple[float, ...]
    route: BottleneckRoute | None = None

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
        gains = [self.full_ms - ms for ms in self.skipping_ms]
        lost = next((i for i, gain in enumerate(gains) if gain < 0), None)
        if lost is None:
            return 1.0
        if lost == 0:
            return 0.0
        (low, high), (won, missed) = self.rates[lost - 1:lost + 1], gains[lost - 1:lost + 1]
        return low + (high - low) * won / (won - missed)


class ExecutionPlan:
    """Chooses between the programs of a block; the base by what is known of every network.

    That is where channel skipping stops to pay on a CPU, see `Program.break_even`.

    Attributes:
        expected_rate (float): The share of units on that a GPU's choice rests on.
    """
    expected_rate: float = 0.5

    def times(self, case: Case) -> BlockTimes | None:
        """What was measured or predicted of a case; None: nothing."""

    def fits(self, x: Any) -> bool:
        """Whether the plan is about tensors like x."""
        return True

    def route(self, case: Case) -> Any:
        """The fastest route that skips; None: the default one."""
        times = self.times(case)
        return times and times.route

    def skips(self, case: Case, program: Program, decision: Any, x: Any) -> bool:
        """Whether skipping is the faster way to run a block. Does not synchronise.

        On a CPU the share that is really on decides, on a GPU the expected one.
        """
        times = self.times(case) if self.fits(x) else None
        pays = times.break_even if times else program.break_even
        if pays in (0, 1):  # whatever is on
            return pays == 1
        if x.is_cuda:
            return self.expected_rate ** len(decision.masks()) <= pays
        return active_share(decision) <= pays

    def after_decision(self, case: Case, program: Program, decision: Any, x: Any) -> Program:
        """The program that goes on, now that it is known what is on."""
        if not case.shape.paradigms or self.skips(case, program, decision, x):
            return program
        masks = decision.masks()
        if not x.is_cuda:  # to look would synchronise there
            masks = {name: mask for name, mask in masks.items() if not mask.all()}
        return case.shape.program(case, program.full_route(case.shape, tuple(masks)))


@dataclass(frozen=True)
class MeasuredPlan(ExecutionPlan):
    """A plan made of measurements; a file of `tools/latency.py plan`.

    Attributes:
        stamp (dict): Where it was measured, see `device_stamp`.
        precision (str): A key of `PRECISIONS`.
        blocks (dict[Case, BlockTimes]): What was measured, by `plan_case`.
        expected_rate (float): See `ExecutionPlan`.
    """
    stamp: dict
    precision: str
    blocks: dict[Case, BlockTimes]
    expected_rate: float = 0.5

    def times(self, case):
        return self.blocks.get(plan_case(case))

    def fits(self, x):
        return _is_of(x, self.precision, self.stamp)

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
            blocks = {_read_case(block['case']): BlockTimes(
                block['full_ms'], tuple(block['rates']), tuple(block['skipping_ms']),
                block['route'] and BottleneckRoute(**dict(
                    block['route'], masks=tuple(block['route']['masks']))))
                for block in content['blocks']}
            plan = cls(content['stamp'], content['precision'], blocks,
                       check_fraction('expected_rate', content['expected_rate']))
            machine = {key: plan.stamp[key] for key in ('torch', 'name', 'device', 'threads')}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} must be a complete plan, plan again: {error!r}') from error
        if plan.precision not in PRECISIONS:
            raise ValueError(f'{path} must have a precision among {", ".join(PRECISIONS)}, '
                             f'got {plan.precision!r}')
        if not any_machine:
            check_stamp(path, machine, made='planned', again='plan again')
            import torch  # plans are read where nets run
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

    def times(self, case):
        case = plan_case(case)
        if case not in self._known:
            block = BlockSpec.of(case.shape, case.in_size)
            full, skipping = planned_routes(case)

            def latency_ms(route, rate):
                return self.predictor.route_ms(block, case.batch, route,
                                               block.expected_rates(rate))
            fastest = min(skipping, key=lambda route: latency_ms(route, self.expected_rate))
            self._known[case] = BlockTimes(
                latency_ms(full, 1.0), tuple(rate**len(case.shape.masks) for rate in self.RATES),
                tuple(latency_ms(fastest, rate) for rate in self.RATES), fastest)
        return self._known[case]

    def fits(self, x):
        return _is_of(x, self.predictor.precision, self.predictor.stamp)


def plan_case(case: Case) -> Case:
    """What a plan tells cases apart by: shape, size and batch."""
    return Case(case.shape, case.in_size, case.batch, case.device)


def planned_routes(case: Case) -> tuple[Any, list[Any]]:
    """The routes that a plan compares: the one that computes everything, and those that skip."""
    masks = case.shape.masks
    full = case.shape.program(case).full_route(case.shape, masks)
    return full, [route for route in case.shape.routes(case)
                  if route not in (full, case.shape.dense_route(masks))]


def _read_case(values):
    return Case(**dict(values, shape=BottleneckShape(**values['shape']),
                       in_size=tuple(values['in_size'])))


def _is_of(x, precision, stamp):
    return str(x.dtype) == f'torch.{PRECISIONS[precision]}' and x.device.type == stamp['device']


def load_plan(path: str | Path, any_machine: bool = False) -> ExecutionPlan:
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
