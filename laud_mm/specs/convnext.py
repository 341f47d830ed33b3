"""ConvNeXt as a table: the blocks of each network and the op specs of the whole net."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arguments import (
    Paradigm,
    check_choice,
    check_positive_int,
    paradigm_set,
    paradigms_per_stage,
    per_stage,
)
from .bottleneck import MapDecisions, ceil_div
from .convnext_program import (
    REMOVED,
    STATIC,
    ConvNeXtRoute,
    convnext_program,
    expected_work,
    routes,
)
from .network import NetworkSpec
from .opspec import OpSpec, Rates, Size
from .program import WHOLE, Case, Program
from .steps import Step, Work

CONVNEXT_ARCHS = dict(tiny=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
                      small=dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)))
CONVNEXT_PARADIGMS = ('layer', 'spatial')
STEM_STRIDE, DOWNSAMPLING, WINDOW, MLP_RATIO = 4, 2, 7, 4


def convnext_arch(arch):
    """Blocks and channels of every stage.

    Args:
        arch (str | dict): A key of `CONVNEXT_ARCHS`, or a dict of `depths` and `channels`.

    Raises:
        ValueError: If the name is unknown, or a key or a value of the dict is wrong.
    """
    if isinstance(arch, str):
        arch = CONVNEXT_ARCHS[check_choice('arch', arch, CONVNEXT_ARCHS)]
    if not isinstance(arch, dict) or set(arch) != {'depths', 'channels'} \
            or not isinstance(arch['depths'], (list, tuple)) or not arch['depths']:
        raise ValueError(f'arch must be one of {", ".join(map(repr, CONVNEXT_ARCHS))}, or a dict '
                         f'with depths (a list) and channels, got {arch!r}')
    stages = len(arch['depths'])
    return tuple(per_stage(f'arch.{key}', arch[key], stages) for key in ('depths', 'channels'))


@dataclass(frozen=True)
class ConvNeXtShape(MapDecisions):
    """Everything about a ConvNeXt block that is known before its weights.

    Attributes:
        name (str): Module path inside the backbone, such as 'features.1.0'.
        stage (int): Stage index, from 0.
        channels (int): Channels of its input and output.
        paradigms (tuple[str, ...]): What is skipped, of `CONVNEXT_PARADIGMS`.
        spatial_granularity (int): S, side of a patch in positions.
    """
    name: str
    stage: int
    channels: int
    paradigms: tuple[str, ...] = ()
    spatial_granularity: int = 1

    halo = False  # what a patch reads around itself is the block's input
    stride = 1

    def __post_init__(self):
        object.__setattr__(self, 'paradigms', paradigm_set(self.paradigms, CONVNEXT_PARADIGMS))

    @property
    def in_channels(self) -> int:
        """Channels of the block's input."""
        return self.channels

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        return self.channels

    @property
    def hidden(self) -> int:
        """Channels between the pointwise layers."""
        return MLP_RATIO * self.channels

    def out_size(self, in_size: Size) -> Size:
        """Height and width written: those read."""
        return in_size

    def grid_size(self, in_size: Size) -> Size:
        """Height and width of the patch grid."""
        return tuple(ceil_div(n, self.spatial_granularity) for n in in_size)

    def patch_side(self, in_size: Size) -> int:
        """Side of the patches that are listed: S, or the map's where only samples are."""
        return self.spatial_granularity if self.spatial_skipping else max(in_size)

    def expected_rates(self, rate: float, in_size: Size | None = None) -> Rates:
        """Activation rates for a share of units on."""
        fields = dict(layer='layer', spatial='patch')
        return Rates(**{fields[paradigm]: rate for paradigm in self.paradigms})

    def program(self, case: Case, route: Any = None) -> Program:
        """The steps of a case of this shape, see `convnext_program`."""
        return convnext_program(case, route)

    @property
    def static_route(self) -> Any:
        """The route of the static block."""
        return STATIC

    @property
    def removed_route(self) -> Any:
        """The route of a block that is off for good."""
        return REMOVED

    def dense_route(self, masks: tuple[str, ...]) -> Any:
        """The route that computes everything and multiplies by some of the masks."""
        return ConvNeXtRoute('dense', masks)

    def routes(self, case: Case) -> tuple:
        """Routes that can run a case, the default first."""
        return routes(case)

    def expected_work(self, case: Case, route: Any, rates: Rates) -> Mapping[str, tuple]:
        """Work to expect of a case at `Rates`."""
        return expected_work(case, route, rates)

    def op_specs(self, in_size: Size) -> tuple[OpSpec, ...]:
        """Describe the block's work on one image of (height, width)."""
        width, hidden = self.channels, self.hidden

        def op(name, kind, cin, cout, **kwargs):
            return OpSpec(f'{self.name}.{name}', kind, cin, cout, in_size, in_size,
                          scaled_by=('layer', 'patch'), **kwargs)

        ops = [op('depthwise', 'conv', width, width, kernel_size=WINDOW, groups=width),
               op('norm', 'norm', width, width),
               op('pointwise1', 'linear', width, hidden),
               op('activation', 'activation', hidden, hidden),
               op('pointwise2', 'linear', hidden, width),
               op('add', 'add', width, width)]
        grids = dict(layer=(1, 1), spatial=self.grid_size(in_size))
        for paradigm in self.paradigms:
            grid, name = grids[paradigm], f'{self.name}.{paradigm}_masker'
            ops += [OpSpec(f'{name}.pool', 'pool', width, width, in_size, grid, dynamic=True),
                    OpSpec(f'{name}.conv', 'conv', width, 2, grid, grid, dynamic=True)]
        return tuple(ops)


@dataclass(frozen=True)
class DownsampleShape:
    """The norm and the 2x2 convolution between two stages, which decide nothing.

    Attributes:
        name (str): Module path inside the backbone, such as 'features.2'.
        stage (int): Index of the stage that follows.
        in_channels (int): Channels of its input.
        out_channels (int): Channels of its output.
    """
    name: str
    stage: int
    in_channels: int
    out_channels: int

    paradigms = masks = ()
    paradigm = None
    static_route = ConvNeXtRoute('dense')

    def out_size(self, in_size: Size) -> Size:
        """Height and width written; a last odd line is not read."""
        return tuple(n // DOWNSAMPLING for n in in_size)

    def expected_rates(self, rate: float, in_size: Size | None = None) -> Rates:
        """Everything is computed."""
        return Rates()

    def op_specs(self, in_size: Size) -> tuple[OpSpec, ...]:
        """Describe its work on one image of (height, width)."""
        return _downsampling(self.name, ('norm', 'conv'), self.in_channels, self.out_channels,
                             tuple(in_size), DOWNSAMPLING)

    def routes(self, case: Case) -> tuple:
        """The one route."""
        return (self.static_route,)

    def program(self, case: Case, route: Any = None) -> Program:
        """Norm and convolution."""
        return Program(self.static_route, (Step('block'),),
                       _map_steps(self.op_specs(case.in_size)))

    def expected_work(self, case: Case, route: Any, rates: Rates | None) -> Mapping[str, tuple]:
        """All of the batch."""
        return {WHOLE: (Work(case.batch),)}


def _downsampling(name, order, in_channels, out_channels, size, stride):
    """A convolution on windows side by side, with a norm before or after it."""
    out = tuple(n // stride for n in size)
    made = dict(conv=OpSpec(f'{name}.conv', 'conv', in_channels, out_channels, size, out,
                            kernel_size=stride, stride=stride))
    channels, at = (in_channels, size) if order[0] == 'norm' else (out_channels, out)
    made['norm'] = OpSpec(f'{name}.norm', 'norm', channels, channels, at, at)
    return tuple(made[part] for part in order)


def _map_steps(ops):
    """The steps of norms and of convolutions on windows side by side."""
    kinds = dict(norm='channel_norm', conv='patchify')
    return tuple(Step(kinds[op.kind], op.name.rpartition('.')[2], op) for op in ops)


ConvNeXtStages = tuple[tuple[DownsampleShape | ConvNeXtShape, ...], ...]


def convnext_shapes(arch: str | dict, paradigm: Paradigm = None,
                    spatial_granularity: int | Sequence[int] = (4, 4, 2, 1)) -> ConvNeXtStages:
    """List the blocks of a LAUD-ConvNeXt, stage by stage; a downsampling layer is one of them.

    Args:
        arch (str | dict): A key of `CONVNEXT_ARCHS`, or a dict of `depths` (blocks of every
            stage) and `channels`.
        paradigm (str | None | Collection): 'layer', 'spatial', both or none; or a list with
            what each stage skips.
        spatial_granularity (int | Sequence[int]): S, for all stages or per stage.

    Returns:
        ConvNeXtStages: One tuple per stage.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    depths, channels = convnext_arch(arch)
    count = len(depths)
    paradigms = paradigms_per_stage(paradigm, count, CONVNEXT_PARADIGMS)
    sides = per_stage('spatial_granularity', spatial_granularity, count, of=4)
    stages = []
    for stage, (depth, width) in enumerate(zip(depths, channels)):
        blocks: list[DownsampleShape | ConvNeXtShape] = []
        if stage:
            blocks.append(DownsampleShape(f'features.{2 * stage}', stage, channels[stage - 1],
                                          width))
        blocks += [ConvNeXtShape(f'features.{2 * stage + 1}.{index}', stage, width,
                                 paradigms[stage], sides[stage]) for index in range(depth)]
        stages.append(tuple(blocks))
    return tuple(stages)


def convnext_stem_specs(image_size: Size, in_channels: int = 3,
                        channels: int = 96) -> tuple[OpSpec, ...]:
    """Op specs of the stem: a 4x4 convolution with stride 4, and a norm."""
    return _downsampling('features.0', ('conv', 'norm'), in_channels, channels,
                         tuple(image_size), STEM_STRIDE)


def convnext_spec(arch: str | dict = 'tiny', image_size: Size = (224, 224), in_channels: int = 3,
                  paradigm: Paradigm = None,
                  spatial_granularity: int | Sequence[int] = (4, 4, 2, 1)) -> NetworkSpec:
    """Op specs of a whole LAUD-ConvNeXt backbone; arguments as in `convnext_shapes`.

    The norms of the outputs, small beside the rest, are left out.
    """
    shapes = convnext_shapes(arch, paradigm, spatial_granularity)
    stem = convnext_stem_specs(image_size, check_positive_int('in_channels', in_channels),
                               convnext_arch(arch)[1][0])
    return NetworkSpec.chain(stem, [shape for stage in shapes for shape in stage],
                             outside_steps=_map_steps(stem))
