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
SUM_BYTES = 4
BAND_ROWS = 64  # that kernels add up together, as in row_map.h


@dataclass(frozen=True)
class Limits:
    """What a GPU does at most; those of an H100: docs/ops.md says where they are from.

    Attributes:
        multiprocessors (int): Of the GPU.
        memory_tb_s (float): From memory.
        cache_tb_s (float): From the second-level cache.
        shared_tb_s (float): Through the shared memory of all multiprocessors.
        tflops (float): Products by mma.sync, which no kernel of ours comes above.
        launch_us (float): Between two kernels of a CUDA graph.
        fill_us (float): Until a product's pipelines are full, and while its last tiles are
            written: once in a kernel.
    """
    multiprocessors: int = 132
    memory_tb_s: float = 3.0
    cache_tb_s: float = 5.5
    shared_tb_s: float = 30.9
    tflops: float = 620.0
    launch_us: float = 1.5
    fill_us: float = 1.0


@dataclass(frozen=True)
class Tile:
    """A tile of outputs, and what a warp takes of it: `TileSize` of gemm_tiles.h.

    Attributes:
        rows, columns, warp_rows, warp_columns (int): Outputs.
    """
    rows: int
    columns: int
    warp_rows: int
    warp_columns: int

    @property
    def read(self) -> int:
        """Values from the second-level cache for each input."""
        return self.rows + self.columns

    @property
    def shared(self) -> int:
        """Values through shared memory for each input: written once, and read by every warp."""
        warps = self.rows * self.columns // (self.warp_rows * self.warp_columns)
        return self.read + warps * (self.warp_rows + self.warp_columns)


TILES = (Tile(128, 256, 64, 64), Tile(128, 128, 64, 64), Tile(128, 64, 64, 32),
         Tile(64, 64, 32, 32), Tile(128, 32, 32, 32))


@dataclass(frozen=True)
class Product:
    """Some rows by a matrix, in tiles.

    Attributes:
        rows, depth, columns (float): Of the product: rows x depth by depth x columns.
        tile (Tile): What a block computes at a time.
    """
    rows: float
    depth: float
    columns: float
    tile: Tile

    @property
    def flops(self) -> float:
        """A multiply-add is two."""
        return 2 * self.rows * self.depth * self.columns

    @property
    def tiles(self) -> int:
        """How many there are."""
        return math.ceil(self.rows / self.tile.rows) * math.ceil(self.columns / self.tile.columns)

    def waves(self, limits: Limits) -> float:
        """Tiles for each multiprocessor."""
        return self.tiles / limits.multiprocessors

    def ms(self, limits: Limits) -> float:
        """By tensor cores, shared memory and cache; the last wave takes as long as a full one.

        A multiprocessor's own limits hold wave by wave, the cache serves all tiles together.
        """
        tile, share = self.tile, limits.multiprocessors / 1e9
        products = 2 * tile.rows * tile.columns * self.depth / limits.tflops
        shared = VALUE_BYTES * tile.shared * self.depth / limits.shared_tb_s
        own = math.ceil(self.waves(limits)) * max(products, shared) * share
        return max(own, self.tiles * VALUE_BYTES * tile.read * self.depth
                   / limits.cache_tb_s / 1e9)


@dataclass(frozen=True)
class Cost:
    """What some kernels cost.

    Attributes:
        moved (float): Bytes from and to memory.
        ours, library (int): Kernels of this project, and of the framework.
        product (Product | None): On tensor cores.
    """
    moved: float = 0.0
    ours: int = 0
    library: int = 0
    product: Product | None = None

    @property
    def flops(self) -> float:
        """Of the product."""
        return 0.0 if self.product is None else self.product.flops

    def ms(self, limits: Limits) -> float:
        """At least."""
        moving = self.moved / limits.memory_tb_s / 1e9
        launching = (self.ours + self.library) * limits.launch_us / 1e3
        if self.product is None:
            return moving + launching
        return max(self.product.ms(limits), moving) + launching + limits.fill_us / 1e3


# Products in the time of a value from the cache, and of one through shared memory, as in
# gemm_tiles.h.
PER_READ, PER_SHARED = 113, 21


def tile_for(rows: float, columns: int, multiprocessors: int) -> Tile:
    """A tile of half types, as `tile_for` of gemm_tiles.h has it for one group."""
    def cost(tile):
        tiles = math.ceil(math.ceil(rows / 2) / tile.rows) * math.ceil(columns / tile.columns)
        own = max(tile.rows * tile.columns, PER_SHARED * tile.shared)
        return max(math.ceil(tiles / multiprocessors) * multiprocessors * own,
                   tiles * tile.read * PER_READ)
    return min(TILES, key=cost)


def _product(rows, inputs, outputs, taps, reads, all_rows, limits, extra=0.0, ours=1):
    """A convolution at some of all rows; `extra`: more bytes moved."""
    tile = tile_for(all_rows, int(outputs), limits.multiprocessors)
    moved = VALUE_BYTES * (reads * inputs + rows * outputs + taps * inputs * outputs) + extra
    return Cost(moved, ours, 1 - ours, Product(rows, taps * inputs, outputs, tile))


def _listing(units):
    """Flags to a list: a long one in two launches."""
    return Cost(5 * units, ours=2 if units > 8 * 16384 else 1)


def _sum(*costs):
    return Cost(sum(c.moved for c in costs), sum(c.ours for c in costs),
                sum(c.library for c in costs), costs[0].product)


def _pieces(rows, channels):
    """Bytes of what rows of whole maps add up to."""
    return SUM_BYTES * (rows / BAND_ROWS) * channels


def _cost(step: Step, work: Work, batch: int, limits: Limits, known: bool = False) -> Cost:
    """What a step costs; `known`: kernels have added up the block's input."""
    own = dict(zip(STEP_KINDS[step.kind].sizes, STEP_KINDS[step.kind].measure(step, work)))
    kind, op, all_rows = step.kind, step.op, batch * step.out_rows
    if kind not in ('rows3x3', 'rows1x1_add') and not step.listed:
        all_rows *= 2  # tiles are chosen for half of them
    if kind == 'block':
        return Cost()
    if kind == 'layer_masker' and known:  # pieces, and the sums that are read and written
        values = own['samples'] * own['channels']
        return Cost(_pieces(own['samples'] * own['positions'], own['channels'])
                    + 2 * SUM_BYTES * values, ours=1)
    if kind in ('layer_masker', 'spatial_masker'):
        return Cost(VALUE_BYTES * own['samples'] * own['positions'] * own['channels'], ours=2)
    if kind == 'channel_masker':  # means; two layers with their elementwise kernels
        return Cost(VALUE_BYTES * own['samples'] * own['positions'] * own['channels'], ours=1,
                    library=6)
    if kind == 'list_patches':
        return _listing(own['units'])
    if kind == 'halo_positions':
        return _sum(Cost(own['map_rows'], ours=1), _listing(own['map_rows']))
    if kind in ('rows1x1', 'rows3x3', 'rows1x1_add', 'shortcut1x1'):
        taps, extra = op.kernel_size**2, 0.0
        if kind == 'rows1x1_add':
            extra += VALUE_BYTES * own['rows'] * own['outputs']
        if step.sums:
            extra += _pieces(own['rows'], own['outputs'])
        return _product(own['rows'], own['inputs'], own['outputs'], taps,
                        own['rows'] * op.stride**2 if taps > 1 else own['rows'],
                        all_rows, limits, extra)
    if kind == 'masker_conv1x1':
        return _sum(_product(own['rows'], own['inputs'], own['outputs'], 1, own['rows'],
                             all_rows, limits), Cost(4 * 2 * own['rows'], ours=1))
    if kind == 'stem_conv':  # the library's convolution, and a kernel with bias, ReLU and pool
        conv = VALUE_BYTES * own['rows'] * own['outputs']
        pooled = conv / math.prod(pool.stride**2 for pool in step.inner)
        made = _product(own['rows'], own['inputs'], own['outputs'], op.kernel_size**2,
                        batch * step.in_rows, all_rows, limits, ours=0)
        return _sum(made, Cost(conv + pooled, ours=1))
    if kind in ('conv1x1', 'conv3x3', 'conv7x7'):
        made = _product(own['rows'], own['inputs'], own['outputs'], op.kernel_size**2,
                        own.get('reads', own['rows'] * op.stride**2), all_rows, limits, ours=0)
        # Biases are elementwise kernels of their own.
        return _sum(made, Cost(2 * VALUE_BYTES * own['rows'] * own['outputs'], library=1))
    # How often values pass between memory and elementwise kernels; a pool reads four times as many.
    passes = dict(relu=2, mask_channels=2, add_relu=5, add_masked_relu=5, copy_map=2, maxpool=5)
    if kind not in passes:
        raise ValueError(f'kind must be a step of a ResNet on a GPU, got {kind!r}')
    return Cost(VALUE_BYTES * own['rows'] * own['channels'] * passes[kind],
                library=2 if kind.startswith('add') else 1)


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
        products = [cost.product for cost in self.costs if cost.product]
        return dict(
            stage=self.name, blocks=self.blocks,
            launches=sum(cost.ours + cost.library for cost in self.costs),
            ours_per_block=self.ours,
            gb=sum(cost.moved for cost in self.costs) / 1e9,
            tflop=sum(cost.flops for cost in self.costs) / 1e12,
            waves=min(product.waves(limits) for product in products),
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
    stem = tuple(_cost(step, Work(batch), batch, limits) for step in network.fused_steps)
    stages, known = [StageArithmetic('stem', 0, stem, 0)], False
    for stage in sorted({block.shape.stage for block in network.blocks}):
        blocks = [block for block in network.blocks if block.shape.stage == stage]
        costs, ours = [], 0
        for block in blocks:
            rates = block.expected_rates(rate)
            case = Case(block.shape, block.in_size, batch, 'cuda', owns_input=block != blocks[0])
            program = block.program(case, None, rates)
            works = {name: (max(own, key=lambda work: work.times),) for name, own in
                     block.shape.expected_work(case, program.route, rates).items()}
            steps = list(program.at(works))
            found = [_cost(step, work, batch, limits, known) for step, work, _ in steps]
            known = any(step.sums for step, *_ in steps)
            costs += found
            ours = max(ours, sum(cost.ours - bool(cost.product and cost.ours) for cost in found))
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
