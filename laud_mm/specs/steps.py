"""Steps: the typed pieces of a block's program, plain data (see `program.py`).

`STEP_KINDS` is the one place that says what a kind of step is called, which sizes describe
it and in which units. Three tables go by these names: the run table
(`laud_mm/models/dynamic/run_table.py`) calls the operation, the kernel table
(`laud_mm/latency/kernel_table.py`) says what a GPU's kernel costs, and a calibration has a
fit per kind. A test holds that all know the same kinds.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .opspec import OpSpec

NO_OP = OpSpec('', '', 0, 0, (0, 0), (0, 0))  # of a step that serves none


@dataclass(frozen=True)
class Step:
    """One step of a program: mostly one call of an operation.

    Attributes:
        kind (str): A key of `STEP_KINDS`.
        part (str): Which part of the block it serves, such as 'conv1'.
        op (OpSpec): Geometry of the op that it serves, dense.
        patch (int): Side of listed patches, in positions of the op's output; at least the
            map's for whole samples.
        window (int): Side of a masker's pooling window; 0: the whole map.
        group_size (int): G, where channels are picked or decided on.
        units (int): Units that a masker decides on per image.
        listed (bool): At listed positions only; of attention: to tokens that are on only.
        narrow (str): Which side of the op is the bottleneck, whose channels may be skipped:
            '', 'in', 'out' or 'both'.
        inner (tuple[OpSpec, ...]): The ops that it is made of, where it is several.
        when (str): Field of `Work` that says whether it runs at all; '': always.
        sums (bool): Whether it adds up what it writes, for the next block's masker.
    """
    kind: str
    part: str = ''
    op: OpSpec = NO_OP
    patch: int = 0
    window: int = 0
    group_size: int = 0
    units: int = 0
    listed: bool = False
    narrow: str = ''
    inner: tuple[OpSpec, ...] = ()
    when: str = ''
    sums: bool = False

    @property
    def in_rows(self) -> int:
        """Positions of the dense input map."""
        return math.prod(self.op.in_size)

    @property
    def out_rows(self) -> int:
        """Positions of the dense output map."""
        return math.prod(self.op.out_size)

    @property
    def patch_rows(self) -> int:
        """Positions of a patch, cut to the map's size."""
        return math.prod([min(self.patch, n) for n in self.op.out_size])

    def inputs(self, work: 'Work') -> float:
        """Channels read, where some of the bottleneck's are skipped."""
        if self.narrow == 'both':
            return work.channels + work.ones
        return work.channels if self.narrow == 'in' else self.op.in_channels

    def outputs(self, work: 'Work') -> float:
        """Channels written; a channel of zeros goes with those that are spread."""
        if self.narrow == 'out':
            return work.channels + work.spread
        return work.channels if self.narrow == 'both' else self.op.out_channels


@dataclass(frozen=True)
class Work:
    """How much one pass over a program's steps computes: exact of a decision, or expected.

    Attributes:
        samples (float): Images.
        times (float): How often the pass runs.
        patches (float): Listed patches.
        computing (float): Samples with a listed patch.
        positions (float): Positions that conv1 computes.
        channels (float): Active channels of the bottleneck, the mean over the samples.
        read_channels (float): Channels of the convolution groups that have an active one.
        some_on, sliced, spread, taken (float): 1 where some channel or head is on, where some
            channel is off, where a convolution group has channels of both kinds, and where the
            samples are part of a batch.
        ones (float): 1 where conv2 reads a channel of ones, for what masks before norms leave.
        rows (float): Active tokens.
        longest (float): Active tokens of the sample that has most.
        heads (float): Active heads.
        picked, everything, listed, padded (float): 1 where some head is off, where all tokens
            are on, where some are off, and where samples have unequally many.
    """
    samples: float
    times: float = 1.0
    patches: float = 0.0
    computing: float = 0.0
    positions: float = 0.0
    channels: float = 0.0
    read_channels: float = 0.0
    some_on: float = 1.0
    sliced: float = 0.0
    spread: float = 0.0
    taken: float = 0.0
    ones: float = 0.0
    rows: float = 0.0
    longest: float = 0.0
    heads: float = 0.0
    picked: float = 0.0
    everything: float = 1.0
    listed: float = 0.0
    padded: float = 0.0


def no_variant(step: Step, work: Any) -> tuple:
    """The variant of a kind that has one code path."""
    return ()


@dataclass(frozen=True)
class StepKind:
    """A kind of step.

    Attributes:
        sizes (tuple[str, ...]): Names of the sizes that describe it; see `UNITS`.
        measure (Callable): `(step, work) -> tuple[float, ...]`, in the order of `sizes`.
        variant (Callable): `(step, work) -> tuple[int, ...]`, sizes that pick another code
            path rather than more work.
        calls (tuple[str, ...]): Operations of `laud_mm.ops` that it calls, in order.
    """
    sizes: tuple[str, ...]
    measure: Callable[[Step, Any], tuple]
    variant: Callable[[Step, Any], tuple] = no_variant
    calls: tuple[str, ...] = ()


# Units of all sizes. Positions and rows are of the whole batch.
UNITS = dict(
    rows='positions or tokens written', reads='positions read', map_rows='positions of the map',
    positions='positions of one image', inputs='channels read', outputs='channels written',
    channels='channels', width='channels', group_width='channels of a convolution group',
    hidden='hidden channels', active='active channels', outer='channels outside the bottleneck',
    samples='images', units='units decided on', groups='channel groups of an image',
    lines='map lines under the windows of all patches', heads='attention heads',
    longest='tokens of the longest sample', head_dims='channels of a head', weights='values')


def small_input(samples: float, values: float) -> int:
    """1 where torch convolves so small an input itself on a CPU, without oneDNN, else 0."""
    return int(samples == 1 and values <= 20480)


def window_class(side: int) -> int:
    """Sides of windows that behave alike: 1, 2, 3 to 5, 6 to 11, more (or the whole map)."""
    return next((low for low, high in ((1, 1), (2, 2), (4, 5), (8, 11)) if 0 < side <= high), 16)


def _dense(s, w):
    return (w.samples * s.out_rows, s.op.in_channels, s.op.out_channels, w.samples * s.in_rows)


def _dense_variant(s, w):
    return s.op.stride, small_input(w.samples, w.samples * s.in_rows * s.op.in_channels)


def _map(s, w):
    return w.samples * s.out_rows, s.op.out_channels


def _positions(s, w):
    return w.positions if s.listed else w.samples * s.out_rows


def _patches(s, w):
    return w.patches * s.patch_rows


def _conv_rows(s, w):
    return _positions(s, w), s.inputs(w), s.outputs(w)


def _patch_conv(s, w):
    return _patches(s, w), s.inputs(w), s.outputs(w)


def _lines(s, w):
    reach = (min(s.patch, s.op.out_size[0]) - 1) * s.op.stride + 1 + 2 * s.op.dilation
    return w.positions, w.samples * s.in_rows, w.patches * min(reach, s.op.in_size[0])


def _tiles(s, w):
    return (4 * w.patches * math.prod(-(-min(s.patch, n) // 2) for n in s.op.out_size),
            s.inputs(w), s.outputs(w))


def _excite_rows(s, w):
    computing = max(w.computing, 1.0)
    grid = math.prod(-(-n // s.patch) for n in s.op.out_size)
    return (w.patches / (computing * grid) * s.out_rows, w.channels, s.op.out_channels,
            w.computing)


def _token_rows(s, w):
    return w.rows, s.op.out_channels


STEP_KINDS: dict[str, StepKind] = dict(
    # What a block costs besides its steps; more where it decides.
    block=StepKind((), lambda s, w: (), lambda s, w: (int(s.listed),)),
    # Deciding, and listing what was decided.
    layer_masker=StepKind(
        ('samples', 'positions', 'channels'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels), calls=('patch_mask',)),
    spatial_masker=StepKind(
        ('samples', 'positions', 'channels', 'units'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels, s.units),
        lambda s, w: (window_class(s.window),), ('patch_mask',)),
    channel_masker=StepKind(
        ('samples', 'positions', 'channels', 'groups'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels, s.units),
        calls=('position_means',)),
    masker_conv1x1=StepKind(
        ('rows', 'inputs', 'outputs', 'units'),
        lambda s, w: (w.samples * s.out_rows, s.op.in_channels, s.op.out_channels,
                      w.samples * s.units), calls=('masker_conv1x1',)),
    list_patches=StepKind(('units',), lambda s, w: (w.samples * s.units,), calls=('compact',)),
    list_channels=StepKind(('samples', 'groups'), lambda s, w: (w.samples, s.units),
                           calls=('compact',)),
    halo_positions=StepKind(('rows', 'map_rows', 'lines'), _lines, calls=('halo_positions',)),
    copy_map=StepKind(('rows', 'channels'), _map),
    # The operations on what is listed.
    rows1x1=StepKind(('rows', 'inputs', 'outputs'), _conv_rows,
                     lambda s, w: (s.op.stride, int(s.listed)), ('conv1x1_positions',)),
    # A shortcut, with ReLU where nothing is added to it.
    shortcut1x1=StepKind(('rows', 'inputs', 'outputs'), _conv_rows, lambda s, w: (s.op.stride,),
                         ('conv1x1_shortcut',)),
    rows3x3=StepKind(('rows', 'inputs', 'outputs'), _patch_conv, lambda s, w: (s.op.stride,),
                     ('conv3x3_patches',)),
    rows3x3_winograd=StepKind(('rows', 'inputs', 'outputs'), _tiles,
                              calls=('conv3x3_patches',)),
    rows3x3_grouped=StepKind(
        ('rows', 'width', 'group_width'),
        lambda s, w: (_patches(s, w), w.read_channels, s.op.in_channels // s.op.groups),
        lambda s, w: (s.op.stride, s.op.in_channels // s.op.groups), ('conv3x3_patches',)),
    rows1x1_add=StepKind(('rows', 'inputs', 'outputs'), _patch_conv,
                         calls=('conv1x1_add_patches_',)),
    excite_rows=StepKind(('positions', 'channels', 'hidden', 'samples'), _excite_rows,
                         calls=('excite_patches_',)),
    # The same with channels picked per sample.
    picked1x1=StepKind(
        ('rows', 'inputs', 'outputs', 'samples'), lambda s, w: (*_conv_rows(s, w), w.computing),
        lambda s, w: (int(s.listed),), ('conv1x1_positions',)),
    picked3x3=StepKind(
        ('rows', 'inputs', 'outputs', 'samples'), lambda s, w: (*_patch_conv(s, w), w.computing),
        lambda s, w: (s.op.stride,), ('conv3x3_patches',)),
    picked3x3_grouped=StepKind(
        ('rows', 'width', 'group_width', 'samples'),
        lambda s, w: (_patches(s, w), w.channels, s.op.in_channels // s.op.groups, w.computing),
        lambda s, w: (s.op.stride, s.op.in_channels // s.op.groups), ('conv3x3_patches',)),
    picked_excite=StepKind(('positions', 'channels', 'hidden', 'samples'), _excite_rows,
                           calls=('excite_patches_',)),
    picked1x1_add=StepKind(
        ('rows', 'inputs', 'outputs', 'samples'), lambda s, w: (*_patch_conv(s, w), w.computing),
        calls=('conv1x1_add_patches_',)),
    # What channels that are off add, where masks come before norms.
    shift_channels=StepKind(('samples', 'width', 'outer'),
                            lambda s, w: (w.samples, s.op.in_channels, s.units)),
    # Weights sliced for every mask that occurs.
    split_masks=StepKind(('samples', 'groups'), lambda s, w: (w.samples, s.units)),
    take_samples=StepKind(('rows', 'channels'), _map),
    slice_weights=StepKind(
        ('width', 'active', 'outer'),
        lambda s, w: (s.op.in_channels, w.channels, s.units),
        lambda s, w: (int(s.op.groups > 1),)),
    spread_channels=StepKind(
        ('rows', 'channels'), lambda s, w: (w.samples * s.in_rows, w.read_channels)),
    keep_channels=StepKind(('rows', 'channels'), lambda s, w: (_patches(s, w), w.channels)),
    put_samples=StepKind(('rows', 'channels'), _map),
    # The framework's convolutions, in stems and dense blocks.
    conv7x7=StepKind(('rows', 'inputs', 'outputs'), lambda s, w: _dense(s, w)[:3]),
    conv1x1=StepKind(('rows', 'inputs', 'outputs', 'reads'), _dense, _dense_variant),
    conv3x3=StepKind(('rows', 'inputs', 'outputs', 'reads'), _dense, _dense_variant),
    conv3x3_grouped=StepKind(
        ('rows', 'width', 'group_width', 'reads'),
        lambda s, w: (w.samples * s.out_rows, s.op.in_channels, s.op.in_channels // s.op.groups,
                      w.samples * s.in_rows),
        lambda s, w: (s.op.stride, s.op.in_channels // s.op.groups)),
    # The first convolution with its ReLU, and max pool, by our kernel.
    stem_conv=StepKind(
        ('rows', 'inputs', 'outputs'), lambda s, w: _dense(s, w)[:3],
        lambda s, w: (s.op.kernel_size, s.op.stride, len(s.inner)), ('stem_conv',)),
    maxpool=StepKind(('rows', 'channels'), _map, calls=('max_pool',)),
    avgpool=StepKind(('rows', 'channels'), _map, lambda s, w: (s.op.kernel_size,),
                     ('average_pool',)),
    relu=StepKind(('rows', 'channels'), _map,
                  lambda s, w: (int(s.part == 'relu'),)),  # of a block's output: our kernel
    mask_channels=StepKind(('rows', 'channels'), _map),
    excite=StepKind(
        ('samples', 'positions', 'channels', 'hidden'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels, s.op.out_channels),
        calls=('position_means',)),
    excite_masked=StepKind(
        ('samples', 'positions', 'channels', 'hidden'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels, s.op.out_channels)),
    add_relu=StepKind(('rows', 'channels'), _map),
    add_masked_relu=StepKind(('rows', 'channels'), _map),
    # Channels-last maps with norms over the channels of each position (ConvNeXt). A convolution
    # on windows side by side is a matrix product of their values.
    patchify=StepKind(
        ('rows', 'inputs', 'outputs'),
        lambda s, w: (w.samples * s.out_rows, s.op.in_channels * s.op.kernel_size**2,
                      s.op.out_channels), lambda s, w: (s.op.kernel_size,), ('patchify',)),
    channel_norm=StepKind(('rows', 'channels'), _map),
    depthwise_conv=StepKind(('rows', 'channels'), _map, calls=('conv_map',)),
    pointwise=StepKind(('rows', 'inputs', 'outputs'), lambda s, w: _dense(s, w)[:3]),
    add_map=StepKind(('rows', 'channels'), _map),
    add_masked_map=StepKind(('rows', 'channels'), _map),
    depthwise_norm_rows=StepKind(
        ('rows', 'channels'), lambda s, w: (_patches(s, w), s.op.out_channels),
        calls=('depthwise_norm_patches',)),
    mlp_rows_add=StepKind(
        ('rows', 'channels', 'hidden'),
        lambda s, w: (_patches(s, w), s.op.in_channels, s.op.out_channels),
        calls=('mlp_add_patches_',)),
    # Tokens of a transformer.
    tokens_to_token=StepKind(
        ('samples', 'positions', 'inputs', 'outputs'),
        lambda s, w: (w.samples, s.in_rows, s.op.in_channels, s.op.out_channels)),
    token_masker=StepKind(('rows', 'channels'),
                          lambda s, w: (w.samples * s.in_rows, s.op.in_channels)),
    class_masker=StepKind(('samples', 'channels', 'units'),
                          lambda s, w: (w.samples, s.op.in_channels, s.op.out_channels)),
    list_tokens=StepKind(('rows',), lambda s, w: (w.samples * s.units,)),
    norm_map=StepKind(('rows', 'channels'), lambda s, w: (w.samples * s.out_rows,
                                                          s.op.out_channels)),
    norm_rows=StepKind(('rows', 'channels'), _token_rows),
    gather_tokens=StepKind(('rows', 'channels'), _token_rows, calls=('gather_tokens',)),
    pick_heads=StepKind(('rows', 'channels'), lambda s, w: (w.rows, w.heads * s.group_size)),
    mask_heads=StepKind(('rows', 'channels'), _token_rows),
    mask_tokens=StepKind(('rows', 'channels'), _token_rows),
    linear=StepKind(
        ('rows', 'inputs', 'outputs'), lambda s, w: (w.rows, *_head_sides(s, w)),
        lambda s, w: (int(bool(s.narrow) and w.picked > 0),)),
    attention=StepKind(
        ('samples', 'longest', 'heads', 'head_dims'),
        lambda s, w: (w.samples, w.longest, w.heads, s.group_size),
        lambda s, w: (int(w.padded > 0),)),
    gelu=StepKind(('rows', 'channels'), _token_rows),
    add_tokens=StepKind(('rows', 'channels'), _token_rows),
    scatter_tokens=StepKind(('rows', 'channels'), _token_rows, calls=('scatter_add_tokens_',)),
)


def _head_sides(s, w):
    """Channels read and written by a linear layer of which some heads' are left."""
    share = w.heads * s.group_size
    return (share if s.narrow == 'in' else s.op.in_channels,
            share * (s.op.out_channels // s.op.in_channels) if s.narrow == 'out'
            else s.op.out_channels)


@dataclass(frozen=True)
class StepCall:
    """A step with its sizes: what a calibration measures and a predictor prices.

    Attributes:
        kind (str): A key of `STEP_KINDS`.
        sizes (tuple[float, ...]): In the order of `StepKind.sizes`; expected sizes may be
            fractions.
        variant (tuple[int, ...]): See `StepKind.variant`. Each has a fit of its own.
        times (float): How often it runs, on average.
        name (str): The op it serves.
        near (bool): Whether its weights were made just before.
    """
    kind: str
    sizes: tuple[float, ...]
    variant: tuple[int, ...] = ()
    times: float = 1.0
    name: str = ''
    near: bool = False

    @property
    def key(self) -> str:
        """Kind and variant as one word."""
        return '/'.join([self.kind, *map(str, self.variant)])


def step_call(step: Step, work: Work, times: float = 1.0, block: str = '') -> StepCall:
    """A step at some work."""
    kind = STEP_KINDS[step.kind]
    name = '.'.join(filter(None, (block, step.part or step.kind)))
    return StepCall(step.kind, tuple(float(n) for n in kind.measure(step, work)),
                    tuple(int(n) for n in kind.variant(step, work)), times, name,
                    work.sliced > 0)


def dense_steps(ops: Sequence[OpSpec], fused: bool = False) -> tuple[Step, ...]:
    """The steps of a convolutional stem: each convolution with its ReLU, and pools.

    Args:
        ops (Sequence[OpSpec]): The stem's work.
        fused (bool): Whether our kernel runs the first convolution, with the pool where one
            follows.
    """
    steps: list[Step] = []
    if fused:
        first, *rest = ops
        pools = tuple(op for op in rest[:1] if op.kind == 'pool')
        steps.append(Step('stem_conv', first.name, first, inner=pools))
        ops = rest[len(pools):]
    for op in ops:
        if op.kind == 'conv':
            kind = f'conv{op.kernel_size}x{op.kernel_size}'
            steps += [Step(kind, op.name, op), Step('relu', f'{op.name}.relu', op)]
        else:
            steps.append(Step('maxpool', op.name, op))
    return tuple(steps)


def register_kinds(table: dict[str, Any], kinds: Sequence[str]) -> Callable:
    """A decorator that enters a function into a table for some kinds of step.

    Raises:
        ValueError: If `STEP_KINDS` knows no such kind.
    """
    def register(function):
        for kind in kinds:
            if kind not in STEP_KINDS:
                raise ValueError(f'kind must be one of STEP_KINDS, got {kind!r}')
            table[kind] = function
        return function
    return register
