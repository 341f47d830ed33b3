"""What a forward pass moves, multiplies and launches on a GPU: arithmetic, not measurement.

    python -m laud_mm.latency.arithmetic

prints the table of docs/ops.md. Bytes and FLOPs follow from the steps of the programs; times are
what the fastest of a GPU's limits allows each kernel, one after another.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from laud_mm.specs import STEP_KINDS, Case, NetworkSpec, Step, Work, network_spec

VALUE_BYTES = 2  # of float16


@dataclass(frozen=True)
class Limits:
    """What a GPU does at most; those of an H100 from its data sheet and published measurements.

    Attributes:
        multiprocessors (int): Of the GPU.
        memory_tb_s (float): From memory, at nine tenths of the data sheet.
        cache_tb_s (float): From the second-level cache.
        tflops (float): Products by mma.sync, which no kernel of ours comes above.
        launch_us (float): Between two kernels of a CUDA graph.
    """
    multiprocessors: int = 132
    memory_tb_s: float = 3.0
    cache_tb_s: float = 5.5
    tflops: float = 620.0
    launch_us: float = 1.5


@dataclass(frozen=True)
class Cost:
    """What some kernels cost.

    Attributes:
        moved (float): Bytes from and to memory.
        flops (float): A multiply-add is two.
        ours, library (int): Kernels of this project, and of the framework.
        tiles (float): Of a product on tensor cores; 0: none.
        intensity (float): FLOPs for each byte that a tile reads from the cache.
    """
    moved: float = 0.0
    flops: float = 0.0
    ours: int = 0
    library: int = 0
    tiles: float = 0.0
    intensity: float = 0.0

    def waves(self, limits: Limits) -> float:
        """Tiles for each multiprocessor."""
        return self.tiles / limits.multiprocessors

    def ms(self, limits: Limits) -> float:
        """At least; the last wave of tiles takes as long as a full one."""
        compute = 0.0
        if self.tiles:
            rate = min(limits.tflops, self.intensity * limits.cache_tb_s)
            used = self.waves(limits) / math.ceil(self.waves(limits))
            compute = self.flops / (rate * used) / 1e9
        return max(compute, self.moved / limits.memory_tb_s / 1e9) \
            + (self.ours + self.library) * limits.launch_us / 1e3


def tile_for(rows: float, columns: int, multiprocessors: int) -> tuple[int, int]:
    """Rows and columns of a tile, as `tile_for` of gemm_tiles.h has it for one group."""
    if columns <= 32:
        return 128, 32
    row_tiles = math.ceil(math.ceil(rows / 2) / 128)
    half_used = columns <= 64 or 128 < columns <= 192
    if not half_used and row_tiles * math.ceil(columns / 128) >= multiprocessors:
        return 128, 128
    return (128, 64) if row_tiles * math.ceil(columns / 64) >= multiprocessors else (64, 64)


def _product(rows, inputs, outputs, taps, reads, all_rows, limits, extra=0.0, ours=1):
    """A convolution at some of all rows; `extra`: more values moved."""
    tile = tile_for(all_rows, int(outputs), limits.multiprocessors)
    tiles = math.ceil(rows / tile[0]) * math.ceil(outputs / tile[1])
    moved = reads * inputs + rows * outputs + taps * inputs * outputs + extra
    return Cost(VALUE_BYTES * moved, 2 * rows * inputs * outputs * taps, ours, 1 - ours, tiles,
                tile[0] * tile[1] / (tile[0] + tile[1]))


def _listing(units):
    """Flags to a list: a long one in two launches."""
    return Cost(5 * units, ours=2 if units > 8 * 16384 else 1)


def _sum(*costs):
    return Cost(sum(c.moved for c in costs), ours=sum(c.ours for c in costs),
                library=sum(c.library for c in costs))


def _cost(step: Step, work: Work, batch: int, limits: Limits) -> Cost:
    own = dict(zip(STEP_KINDS[step.kind].sizes, STEP_KINDS[step.kind].measure(step, work)))
    kind, op, all_rows = step.kind, step.op, batch * step.out_rows
    if kind == 'block':
        return Cost()
    if kind in ('layer_masker', 'spatial_masker'):
        return Cost(VALUE_BYTES * own['samples'] * own['positions'] * own['channels'], ours=2)
    if kind == 'channel_masker':  # means; two layers with their elementwise kernels
        return Cost(VALUE_BYTES * own['samples'] * own['positions'] * own['channels'], ours=1,
                    library=6)
    if kind == 'list_patches':
        return _listing(own['units'])
    if kind == 'halo_positions':
        return _sum(Cost(own['map_rows'], ours=1), _listing(own['map_rows']))
    if kind in ('rows1x1', 'rows3x3', 'rows1x1_add'):
        taps = op.kernel_size**2
        return _product(own['rows'], own['inputs'], own['outputs'], taps,
                        own['rows'] * op.stride**2 if taps > 1 else own['rows'], all_rows, limits,
                        own['rows'] * own['outputs'] * (kind == 'rows1x1_add'))
    if kind == 'masker_conv1x1':
        return _sum_product(_product(own['rows'], own['inputs'], own['outputs'], 1, own['rows'],
                                     all_rows, limits), Cost(4 * 2 * own['rows'], ours=1))
    if kind in ('conv1x1', 'conv3x3', 'conv7x7'):
        return _product(own['rows'], own['inputs'], own['outputs'], op.kernel_size**2,
                        own.get('reads', own['rows'] * op.stride**2), 2 * all_rows, limits, ours=0)
    # How often values pass between memory and elementwise kernels; a pool reads four times as many.
    passes = dict(relu=2, mask_channels=2, add_relu=5, add_masked_relu=5, copy_map=2, maxpool=5)
    if kind not in passes:
        raise ValueError(f'kind must be a step of a ResNet on a GPU, got {kind!r}')
    return Cost(VALUE_BYTES * own['rows'] * own['channels'] * passes[kind],
                library=2 if kind.startswith('add') else 1)


def _sum_product(product, other):
    return Cost(product.moved + other.moved, product.flops, product.ours + other.ours,
                product.library, product.tiles, product.intensity)


@dataclass(frozen=True)
class StageArithmetic:
    """A stage of a network, or its stem.

    Attributes:
        name (str): Of the stage.
        blocks (int): How many it has.
        costs (tuple[Cost, ...]): Of all kernels in order.
        ours (int): Kernels of ours in a block that decides, besides its convolutions; the most.
    """
    name: str
    blocks: int
    costs: tuple[Cost, ...]
    ours: int

    def row(self, limits: Limits) -> dict:
        """One line of the table."""
        products = [cost for cost in self.costs if cost.tiles]
        return dict(
            stage=self.name, blocks=self.blocks,
            launches=sum(cost.ours + cost.library for cost in self.costs),
            ours_per_block=self.ours,
            gb=sum(cost.moved for cost in self.costs) / 1e9,
            tflop=sum(cost.flops for cost in self.costs) / 1e12,
            waves=min(cost.waves(limits) for cost in products),
            ms=sum(cost.ms(limits) for cost in self.costs))


def forward_arithmetic(network: NetworkSpec, rate: float, batch: int,
                       limits: Limits | None = None) -> list[StageArithmetic]:
    """The arithmetic of a ResNet's forward pass in float16.

    Args:
        network (NetworkSpec): With what it skips.
        rate (float): Share of units on.
        batch (int): Images.
        limits (Limits, optional): Of the GPU.

    Returns:
        list[StageArithmetic]: The stem, and the stages in order.
    """
    limits = limits or Limits()
    stem = tuple(_cost(step, Work(batch), batch, limits) for step in network.outside_steps)
    stages = [StageArithmetic('stem', 0, stem, 0)]
    for stage in sorted({block.shape.stage for block in network.blocks}):
        blocks = [block for block in network.blocks if block.shape.stage == stage]
        costs, ours = [], 0
        for block in blocks:
            rates = block.expected_rates(rate)
            case = Case(block.shape, block.in_size, batch, 'cuda', owns_input=block != blocks[0])
            program = block.program(case, None, rates)
            works = {name: (max(own, key=lambda work: work.times),) for name, own in
                     block.shape.expected_work(case, program.route, rates).items()}
            found = [_cost(step, work, batch, limits) for step, work, _ in program.at(works)]
            costs += found
            ours = max(ours, sum(cost.ours - bool(cost.tiles and cost.ours) for cost in found))
        stages.append(StageArithmetic(f'stage {stage + 1}', len(blocks), tuple(costs), ours))
    return stages


COLUMNS: dict[str, Callable] = dict(
    paradigm=str, stage=str, blocks=str, launches=str, ours_per_block=str, gb='{:.2f}'.format,
    tflop='{:.2f}'.format, waves='{:.1f}'.format, ms='{:.2f}'.format)


def table(paradigms: Sequence[str] = ('layer', 'spatial', 'channel'), name: str = 'resnet101',
          rate: float = 0.5, batch: int = 128) -> str:
    """The table of docs/ops.md, in Markdown."""
    limits, lines = Limits(), []
    for paradigm in paradigms:
        rows = [stage.row(limits) for stage in forward_arithmetic(
            network_spec(name, (224, 224), paradigm), rate, batch)]
        total = {key: sum(row[key] for row in rows)
                 for key in ('blocks', 'launches', 'gb', 'tflop', 'ms')}
        total.update(stage='**all**', waves=min(row['waves'] for row in rows),
                     ours_per_block=max(row['ours_per_block'] for row in rows))
        lines += [dict(row, paradigm=paradigm) for row in (*rows, total)]
    header = ('skipped', 'stage', 'blocks', 'launches', 'of ours in a block, besides convolutions',
              'GB', 'TFLOP', 'fewest waves', 'ms')
    cells = [[form(line[key]) for key, form in COLUMNS.items()] for line in lines]
    return '\n'.join(['| ' + ' | '.join(row) + ' |' for row in (
        header, ['---'] * len(header), *cells)])


if __name__ == '__main__':
    print(table())
