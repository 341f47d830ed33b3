"""Analytic cost of one GPU kernel: compute + memory + launch (LAUDNet, the latency predictor).

A kernel splits its output into tiles. The processing engines of the device take
them in waves; each tile reads its operands through the last-level cache. All
candidate tiles are costed together in NumPy, and the cheapest is taken.

Sizes are in positions and channels, costs are of a whole batch, in seconds until
`KernelCost` turns them into ms.
"""
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .hardware import Hardware

MAX_PATCHES_PER_ENGINE = 256
SECTOR_BYTES = 32


@dataclass(frozen=True)
class KernelCost:
    """What one kernel takes on a batch.

    Attributes:
        compute_ms, memory_ms, launch_ms (float): The three terms.
        tile (tuple[int, ...] | None): Channels, height and width of the tile,
            and for patch kernels how many patches an engine takes at a time.
    """
    compute_ms: float
    memory_ms: float
    launch_ms: float
    tile: tuple[int, ...] | None = None

    @property
    def latency_ms(self):
        return self.compute_ms + self.memory_ms + self.launch_ms

    def scaled(self, share, launches=1):
        """The cost of running so often, with so many launches each time."""
        return replace(self, compute_ms=self.compute_ms * share,
                       memory_ms=self.memory_ms * share,
                       launch_ms=self.launch_ms * share * launches)


@dataclass(frozen=True)
class Conv:
    """A convolution on whole maps; a linear layer is a 1x1 one on (tokens, 1).

    Attributes:
        in_channels, out_channels (int): Channels of the dense convolution.
        size (tuple[int, int]): Height and width written.
        kernel_size, stride, groups (int): As of a convolution.
        in_rate, out_rate (float): Shares of channels that are read and written.
        granularity (int | None): G where the written channels are random
            groups, so that the busiest tile holds up its wave.
        matrices (float): Independent products per image, each with its own
            right-hand side: heads of an attention matmul. 0: shared weights.
    """
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    in_rate: float = 1.0
    out_rate: float = 1.0
    granularity: int | None = None
    matrices: float = 0


@dataclass(frozen=True)
class PatchConv:
    """A convolution on the active patches of each image.

    Attributes:
        in_channels, out_channels (int): Channels.
        size (tuple[int, int]): Height and width of the whole output map.
        patch (int): S.
        patches (int): Active patches per image.
        gathered (bool): The input holds the active patches only.
        kernel_size, stride, groups (int): As of a convolution.
    """
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    patch: int
    patches: int
    gathered: bool = False
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1


@dataclass(frozen=True)
class ScatterAdd:
    """Adds active patches into a map of (channels, *size); fields as of `PatchConv`."""
    channels: int
    size: tuple[int, int]
    patch: int
    patches: int


@dataclass(frozen=True)
class Add:
    """Adds two maps of (channels, *size)."""
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Stream:
    """Moves data and does little else: pools, small linear layers, copies, norms.

    Attributes:
        elements (float): Values per image over the off-chip bus.
        cached (float): Values per image through the last-level cache.
        shared (float): Values over the bus once per batch: weights.
        macs (float): Multiply-adds per image, at the device's full rate.
    """
    elements: float
    cached: float = 0.0
    shared: float = 0.0
    macs: float = 0.0


Kernel = Conv | PatchConv | ScatterAdd | Add | Stream


@dataclass(frozen=True)
class Launch:
    """A kernel to launch.

    Attributes:
        name (str): Name of the op it serves.
        kernel (Kernel): What runs.
        samples (float): Share of the batch that it works on.
        probability (float): How often it runs at all.
        launches (int): 0 where it is part of the kernel before.
    """
    name: str
    kernel: 'Kernel'
    samples: float = 1.0
    probability: float = 1.0
    launches: int = 1


def dense_kernel(op):
    """The kernel that runs an `OpSpec` with everything on."""
    positions = op.out_size[0] * op.out_size[1]
    read = op.in_channels * op.in_size[0] * op.in_size[1]
    written = op.out_channels * positions
    if op.kind == 'matmul':
        return Conv(op.in_channels // op.groups, op.out_channels // op.groups, op.out_size,
                    matrices=op.groups)
    if op.kind in ('conv', 'linear'):
        if positions == 1 and (op.kind == 'linear' or op.dynamic):
            weights = op.in_channels * op.out_channels
            return Stream(read + written, shared=weights, macs=weights)
        return Conv(op.in_channels, op.out_channels, op.out_size, op.kernel_size, op.stride,
                    op.groups)
    if op.kind == 'add':
        return Add(op.out_channels, op.out_size)
    if op.kind == 'pool':
        return Stream(read + written, cached=read)
    if op.kind == 'scale':
        return Stream(2 * written, cached=3 * written)
    return Stream(read + written)


def launch_dense(ops):
    """Launches of ops with everything on."""
    return [Launch(op.name, dense_kernel(op)) for op in ops]


def count_patches(size, patch):
    """Patches on a map: ceil(H / S) * ceil(W / S)."""
    return -(-size[0] // patch) * -(-size[1] // patch)


@lru_cache(maxsize=None)
def tile_candidates(n):
    """Tile sizes tried along a dimension of n, as the papers' predictor tries them."""
    powers = {2**i for i in range(8) if 2**i <= min(2 * n, 128)}
    small = range(2, min(n, 8))
    return np.array(sorted(powers | {-(-n // i) for i in small} | set(small) | {n}), float)


def _batches_up_to(own, batch):
    """Batches at which the published tile of a patch kernel may be chosen.

    Chosen at one patch count and used at another, a new tile for each batch
    would let the latency fall when the batch rises. So a batch below the
    device's own may use any tile that a larger one would get, and a batch
    above it keeps the tile of the device's own, where the published figures are.
    """
    smaller = {2**i for i in range(own.bit_length()) if batch <= 2**i < own}
    return sorted(smaller | {own})


@lru_cache(maxsize=None)
def _log_factorials(n):
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def busiest_share(tiles, size, rate, channels):
    """Expected share of active units in the busiest tile, for random masks.

    Args:
        tiles (np.ndarray): Tile sizes in channels.
        size (int): G, channels that are on or off together.
        rate (float): Share of groups on.
        channels (int): Channels that the tiles cover.

    Returns:
        np.ndarray: Like `tiles`, from `rate` to 1.
    """
    if rate in (0.0, 1.0):
        return np.full_like(tiles, rate)
    groups = np.maximum(np.round(tiles.ravel() / size), 1).astype(int)[:, None]
    log_f, k = _log_factorials(int(groups.max())), np.arange(groups.max() + 1)
    rest = np.maximum(groups - k, 0)
    log_p = log_f[groups] - log_f[k] - log_f[rest] + k * np.log(rate) + rest * np.log1p(-rate)
    below = np.cumsum(np.where(k <= groups, np.exp(log_p), 0.0), 1).clip(max=1.0)
    count = np.ceil(channels / tiles.ravel())[:, None]
    # E[max] is the sum over k of P(max > k).
    expected = np.where(k < groups, 1 - below**count, 0.0).sum(1) / groups[:, 0]
    return np.maximum(expected, rate).reshape(tiles.shape)


@dataclass(frozen=True)
class KernelModel:
    """Costs kernels on a device.

    Attributes:
        hardware (Hardware): The device.
        precision (str): One of the device's precisions.
        tile_at_mean (bool): Choose the tile of patch kernels at the mean patch
            count, as the published predictor does, not at the real one.
    """
    hardware: Hardware
    precision: str = 'fp32'
    tile_at_mean: bool = False
    _cache: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        self.hardware.macs_per_cycle(self.precision)  # checks the precision

    def cost(self, kernel, batch):
        """Cost a kernel on a batch of images: a `KernelCost`."""
        key = kernel, batch
        if key not in self._cache:
            evaluate = {Conv: self._conv, PatchConv: self._patch_conv, Add: self._add,
                        ScatterAdd: self._scatter_add, Stream: self._stream}[type(kernel)]
            self._cache[key] = evaluate(kernel, batch)
        return self._cache[key]

    @property
    def _bandwidth(self):
        """Off-chip bandwidth in values per second."""
        return self.hardware.bandwidth_gb_s * 1e9 / self.hardware.element_bytes(self.precision)

    @property
    def _cache_bandwidth(self):
        return self.hardware.l2_bandwidth_ratio * self._bandwidth

    @property
    def _lanes(self):
        return self.hardware.macs_per_cycle(self.precision)

    def _engine_seconds(self, outputs, macs_per_output):
        """Time of one engine for independent outputs: it fills L * kappa of them at a time."""
        slots = self._lanes * self.hardware.outputs_per_lane
        macs = np.ceil(outputs / slots) * slots * macs_per_output
        return macs / (self.hardware.clock_ghz * 1e9 * self._lanes)

    def _run_efficiency(self, run, gap):
        """Share of a memory sector that a row run uses when the next is `gap` further."""
        sector = SECTOR_BYTES // self.hardware.element_bytes(self.precision)
        short = np.where(run + gap > sector, run / sector, run / np.maximum(run + gap, 1e-9))
        return np.where(run > sector, run / (np.ceil(run / sector) * sector), short)

    def _waves(self, tiles):
        return np.ceil(tiles / self.hardware.engines)

    def _best(self, compute, memory, dims, choose_by=None):
        total = compute + memory if choose_by is None else choose_by
        index = np.unravel_index(np.argmin(total), total.shape)
        tile = tuple(int(d[tuple(0 if n == 1 else i for i, n in zip(index, d.shape))])
                     for d in dims)
        return self._as_cost(np.broadcast_to(compute, total.shape)[index],
                             np.broadcast_to(memory, total.shape)[index], tile)

    def _as_cost(self, compute, memory, tile=None):
        return KernelCost(float(compute) * 1e3, float(memory) * 1e3,
                          self.hardware.launch_us * 1e-3, tile)

    def _conv(self, k, batch):
        (h, w), depth = k.size, k.in_channels // k.groups * k.kernel_size**2
        images = batch * (k.matrices or 1)
        tc, th, tw = dims = np.ix_(*map(tile_candidates, (k.out_channels, h, w)))
        tiles = np.ceil(k.out_channels / tc) * np.ceil(h / th) * np.ceil(w / tw)
        share = k.out_rate
        if k.granularity:
            share = busiest_share(tc, k.granularity, k.out_rate, k.out_channels)
        compute = self._engine_seconds(tc * th * tw, depth) * images * k.in_rate * share \
            * self._waves(tiles)

        # One image's weights are read sparsely; a batch's images differ in what they read.
        sparse = batch == 1
        weights = k.out_channels * depth * (k.out_rate if sparse else 1)
        tile_weights = tc * depth * (k.in_rate * k.out_rate if sparse else 1)
        if k.matrices:
            weights, tile_weights = weights * images, tile_weights * images
        reads = k.in_channels * h * w * k.stride**2 * images * k.in_rate
        writes = k.out_channels * h * w * images * k.out_rate
        window = (th + k.kernel_size - 1) * (tw + k.kernel_size - 1) * k.stride**2
        tile_reads = np.ceil(tc * k.groups / k.out_channels) * (k.in_channels // k.groups) \
            * window * images * k.in_rate
        tile_writes = tc * th * tw * images * k.out_rate
        memory = (weights + reads + writes) / self._bandwidth \
            + tiles * (tile_weights + tile_reads + tile_writes) \
            / (self._cache_bandwidth * self._run_efficiency(tw, w - tw))
        return self._best(compute, memory, dims)

    def _patch_dims(self, channels, patch):
        return np.ix_(*map(tile_candidates, (channels, patch, patch, MAX_PATCHES_PER_ENGINE)))

    def _patch_best(self, k, batch, patch, dims, cost):
        if not self.tile_at_mean:
            return self._best(*cost(k.patches, batch), dims)
        mean, own = (1 + count_patches(k.size, patch)) / 2, self.hardware.batch
        choices = [sum(cost(mean, b)) for b in _batches_up_to(own, batch)]
        found = [self._best(*cost(k.patches, batch), dims, choice) for choice in choices]
        return min(found, key=lambda cost: cost.latency_ms)

    def _patch_conv(self, k, batch):
        patch = min(k.patch, max(k.size))  # a patch larger than the map is the map
        depth = k.in_channels // k.groups * k.kernel_size**2
        tc, th, tw, p = dims = self._patch_dims(k.out_channels, patch)
        tiles = np.ceil(k.out_channels / tc) * np.ceil(patch / th) * np.ceil(patch / tw)
        reach = k.kernel_size - 1
        window = (th + reach) * (tw + reach) * k.stride**2
        tile_reads = np.ceil(tc * k.groups / k.out_channels) * (k.in_channels // k.groups) * window

        def cost(patches, batch):
            # Patches of all images fill an engine together.
            compute = self._engine_seconds(tc * th * tw * batch * p, depth) \
                * np.ceil(patches / p) * self._waves(tiles)
            reads = (patches * ((patch + reach) * k.stride)**2 if k.gathered
                     else k.size[0] * k.size[1] * k.stride**2) * k.in_channels
            writes = patches * k.out_channels * patch**2
            memory = (k.out_channels * depth + (reads + writes) * batch) / self._bandwidth \
                + tiles * (tc * depth + patches * batch * (tile_reads + tc * th * tw)) \
                / self._cache_bandwidth
            return compute, memory
        return self._patch_best(k, batch, patch, dims, cost)

    def _scatter_add(self, k, batch):
        patch = min(k.patch, max(k.size))
        tc, th, tw, p = dims = self._patch_dims(k.channels, patch)
        tiles = np.ceil(k.channels / tc) * np.ceil(patch / th) * np.ceil(patch / tw)

        def cost(patches, batch):
            compute = self._engine_seconds(tc * th * tw * batch * p, 1) * np.ceil(patches / p) \
                * self._waves(tiles)
            bus = (patches * patch**2 + 2 * k.size[0] * k.size[1]) * k.channels
            cached = 3 * tc * th * tw * patches * tiles / self._run_efficiency(tw, patch - tw)
            memory = batch * (bus / self._bandwidth + cached / self._cache_bandwidth)
            return compute, memory
        return self._patch_best(k, batch, patch, dims, cost)

    def _add(self, k, batch):
        (h, w) = k.size
        tc, th, tw = dims = np.ix_(*map(tile_candidates, (k.channels, h, w)))
        tiles = np.ceil(k.channels / tc) * np.ceil(h / th) * np.ceil(w / tw)
        compute = self._engine_seconds(tc * th * tw, 1) * batch * self._waves(tiles)
        memory = 3 * tc * th * tw * tiles * batch / self._bandwidth
        return self._best(compute, memory, dims)

    def _stream(self, k, batch):
        rate = self.hardware.engines * self.hardware.clock_ghz * 1e9 * self._lanes
        memory = (k.elements * batch + k.shared) / self._bandwidth \
            + k.cached * batch / self._cache_bandwidth
        return self._as_cost(k.macs * batch / rate, memory)
