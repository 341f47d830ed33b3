"""NetworkSpec: a backbone as a stem and a chain of blocks with known sizes."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .opspec import OpSpec, Rates, Size, static_flops
from .program import Case, Program
from .steps import Step, StepCall, Work, dense_steps, step_call


@dataclass(frozen=True)
class BlockSpec:
    """One block at one input size.

    Attributes:
        shape: Geometry of the block, such as a `BottleneckShape`.
        in_size (tuple[int, int]): Height and width of the block's input.
        ops (tuple[OpSpec, ...]): The block's work on one image.
    """
    shape: Any
    in_size: Size
    ops: tuple[OpSpec, ...]

    @classmethod
    def of(cls, shape: Any, in_size: Size) -> 'BlockSpec':
        """Describe the block of the given shape at an input size."""
        return cls(shape, tuple(in_size), shape.op_specs(tuple(in_size)))

    @property
    def name(self) -> str:
        return self.shape.name

    def calls(self, rates: Rates | None, batch: int, route: Any = None,
              **case: Any) -> list[StepCall]:
        """The steps of the block's program at expected work.

        Args:
            rates (Rates | None): Scalars; None: always on.
            batch (int): Images.
            route: Of the block's routes; default: the case's own, or the full one beyond its
                `Program.break_even`.
            **case: More fields of `Case`.
        """
        own = Case(self.shape, self.in_size, batch, **case)
        program = self.program(own, route, rates)
        return program.calls(self.shape.expected_work(own, program.route, rates), self.name)

    def program(self, case: Case, route: Any, rates: Rates | None) -> Program:
        """The program that runs at rates; arguments as of `calls`."""
        program: Program = self.shape.program(case, route)
        active = 1.0 if rates is None else rates.unit
        if route is None and active > program.break_even:
            masks = () if active == 1 and case.device == 'cpu' else self.shape.masks
            program = self.shape.program(case, program.full_route(self.shape, masks))
        return program

    def static_calls(self, batch: int, **case: Any) -> list[StepCall]:
        """The steps of the static block."""
        return self.calls(None, batch, self.shape.static_route, **case)

    def expected_rates(self, rate: float) -> Rates:
        """`Rates` of the block for a share of units on."""
        return self.shape.expected_rates(rate, self.in_size)


@dataclass(frozen=True)
class NetworkSpec:
    """A backbone at one image size.

    Attributes:
        stem (tuple[OpSpec, ...]): Work before the first block, always done.
        blocks (tuple[BlockSpec, ...]): The residual blocks in order.
        tail (tuple[OpSpec, ...]): Work after the last block, always done.
        outside_steps (tuple[Step, ...]): The steps that run stem and tail in a static net.
        fused_steps (tuple[Step, ...]): In a net that skips, where kernels serve the CPU.
    """
    stem: tuple[OpSpec, ...]
    blocks: tuple[BlockSpec, ...]
    tail: tuple[OpSpec, ...] = ()
    outside_steps: tuple[Step, ...] = ()
    fused_steps: tuple[Step, ...] = ()

    @classmethod
    def chain(cls, stem: Sequence[OpSpec], shapes: Sequence[Any],
              in_size: Size | None = None, tail: Sequence[OpSpec] = (),
              outside_steps: Sequence[Step] | None = None) -> 'NetworkSpec':
        """Lay blocks one after another; each reads what the one before writes.

        Args:
            stem (Sequence[OpSpec]): Work before the first block.
            shapes (Sequence): Geometry of the blocks.
            in_size (tuple[int, int], optional): What the first block reads;
                default: what the stem writes.
            tail (Sequence[OpSpec]): Work after the last block.
            outside_steps (Sequence[Step], optional): Default: those of a convolutional stem.
        """
        size, blocks = in_size or stem[-1].out_size, []
        for shape in shapes:
            blocks.append(BlockSpec.of(shape, size))
            size = shape.out_size(size)
        steps = [dense_steps(stem, fused) if outside_steps is None else tuple(outside_steps)
                 for fused in (False, True)]
        return cls(tuple(stem), tuple(blocks), tuple(tail), *steps)

    def outside_calls(self, batch: int, fused: bool = False) -> list[StepCall]:
        """The steps of stem and tail on a batch.

        Args:
            batch (int): Images.
            fused (bool): Whether `fused_steps` run.
        """
        steps = self.fused_steps if fused else self.outside_steps
        return [step_call(step, Work(batch)) for step in steps]

    @property
    def static_flops(self) -> int:
        """Multiply-adds per image of the static counterpart."""
        return static_flops((*self.stem, *self.tail)) + sum(
            static_flops(b.ops) for b in self.blocks)
