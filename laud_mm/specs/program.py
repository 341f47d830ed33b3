"""Program: how a block computes a case, as an ordered list of steps.

A case is a block's shape with all that the choice depends on: input size, batch, device,
whether compiled kernels serve it. A route is one way to compute it, a program the steps of a
route. Executors run the steps, predictors price them, profilers time them: nobody else lists
what a block runs.
"""
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .opspec import Size
from .steps import Step, StepCall, Work, step_call

WHOLE = ''  # the work of the whole batch; loops have names


@dataclass(frozen=True)
class Case:
    """What the program of a block depends on besides its decision; equal blocks are one case.

    Attributes:
        shape: Geometry and paradigms, without name and stage.
        in_size (tuple[int, int]): Height and width of the block's input.
        batch (int): Images.
        device (str): 'cpu' or 'cuda'.
        kernels (bool): Whether compiled operations serve the device, not references.
        gradients (bool): Whether gradients are recorded: then nothing is packed.
        owns_input (bool): Whether the block may write over its input.
        dot_products (bool): Whether the device multiplies the input's half type as it is; then
            direct convolutions beat Winograd's, which compute in float.
    """
    shape: Any
    in_size: Size
    batch: int
    device: str = 'cpu'
    kernels: bool = True
    gradients: bool = False
    owns_input: bool = True
    dot_products: bool = False

    def __post_init__(self):
        object.__setattr__(self, 'shape', replace(self.shape, name='', stage=0))

    @property
    def packs(self) -> bool:
        """Whether weights are laid out for CPU kernels beforehand."""
        return self.device == 'cpu' and self.kernels and not self.gradients


@dataclass(frozen=True)
class Loop:
    """Steps that run once per part of a batch.

    Attributes:
        name (str): Key of the parts' work, such as 'masks'.
        steps (tuple[Step, ...]): In order.
    """
    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Program:
    """The steps of one route.

    Attributes:
        route: How the block is computed; a frozen dataclass of its family.
        deciding (tuple[Step, ...]): Steps that run before the decision is known.
        computing (tuple[Step | Loop, ...]): The steps after it.
        break_even (float): Share of active units beyond which computing everything is known to
            be faster, whatever the network; 1 where nothing is known.
        full: The fastest known route that computes everything and multiplies by the masks; None:
            the dense one.
    """
    route: Any
    deciding: tuple[Step, ...]
    computing: tuple[Step | Loop, ...] = field(default=())
    break_even: float = 1.0
    full: Any = None

    def full_route(self, shape: Any, masks: tuple[str, ...]) -> Any:
        """The route beyond the break-even, for masks of which some unit is off."""
        return shape.dense_route(masks) if self.full is None else replace(self.full, masks=masks)

    def calls(self, work: Mapping[str, Sequence[Work]], block: str = '') -> list[StepCall]:
        """The steps at the work of a decision, or at expected work.

        Args:
            work (dict[str, Sequence[Work]]): By loop, its passes; `WHOLE`: the batch. What is
                expected may have several alternatives there, `Work.times` their shares.
            block (str): Name of the block.

        Returns:
            list[StepCall]: In order, a loop's pass by pass; those that never run are left out.
        """
        return _merged([step_call(step, one, times, block)
                        for step, one, times in self.at(work)])

    def at(self, work: Mapping[str, Sequence[Work]]) -> Iterator[tuple[Step, Work, float]]:
        """The steps that run, each with its work and how often it runs; see `calls`."""
        for item in (*self.deciding, *self.computing):
            steps, name = (item.steps, item.name) if isinstance(item, Loop) else ((item,), WHOLE)
            for one in work.get(name, ()):
                for step in steps:
                    times = one.times * (float(getattr(one, step.when)) if step.when else 1.0)
                    if times > 0:
                        yield step, one, times


def _merged(calls):
    """Alternatives with equal sizes, one after another, as one call."""
    merged: list[StepCall] = []
    for call in calls:
        if merged and replace(merged[-1], times=call.times) == call and call.times < 1:
            merged[-1] = replace(call, times=call.times + merged[-1].times)
        else:
            merged.append(call)
    return merged


def around(count: float) -> list[tuple[int, float]]:
    """The integers around an expected count, with the shares that make it their mean."""
    low = math.floor(count + 1e-9)
    share = max(count - low, 0.0)
    return [(n, s) for n, s in ((low, 1 - share), (low + 1, share)) if s > 1e-9]
