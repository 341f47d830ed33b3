"""NetworkSpec: a backbone as a stem and a chain of blocks with known sizes."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Tuple

from .opspec import OpSpec, Rates, Size, static_flops


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
    ops: Tuple[OpSpec, ...]

    @classmethod
    def of(cls, shape: Any, in_size: Size) -> 'BlockSpec':
        """Describe the block of the given shape at an input size."""
        return cls(shape, tuple(in_size), shape.op_specs(tuple(in_size)))

    @property
    def name(self) -> str:
        return self.shape.name

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
    """
    stem: Tuple[OpSpec, ...]
    blocks: Tuple[BlockSpec, ...]
    tail: Tuple[OpSpec, ...] = ()

    @classmethod
    def chain(cls, stem: Sequence[OpSpec], shapes: Sequence[Any],
              in_size: Size | None = None, tail: Sequence[OpSpec] = ()) -> 'NetworkSpec':
        """Lay blocks one after another; each reads what the one before writes.

        Args:
            stem (Sequence[OpSpec]): Work before the first block.
            shapes (Sequence): Geometry of the blocks.
            in_size (tuple[int, int], optional): What the first block reads;
                default: what the stem writes.
            tail (Sequence[OpSpec]): Work after the last block.
        """
        size, blocks = in_size or stem[-1].out_size, []
        for shape in shapes:
            blocks.append(BlockSpec.of(shape, size))
            size = shape.out_size(size)
        return cls(tuple(stem), tuple(blocks), tuple(tail))

    @property
    def static_flops(self) -> int:
        """Multiply-adds per image of the static counterpart."""
        return static_flops((*self.stem, *self.tail)) + sum(
            static_flops(b.ops) for b in self.blocks)
