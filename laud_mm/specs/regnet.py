"""RegNetY as a table: the blocks of each network and the op specs of the whole net."""
from collections.abc import Sequence
from typing import Any

from .arguments import Paradigm, check_choice, check_fraction, per_stage
from .bottleneck import BottleneckShape, Stages, ceil_div, stage_paradigms
from .network import NetworkSpec
from .opspec import OpSpec, Size

# Stages of the published networks; a conv2 group is `group_widths` channels wide.
ARCHS = {
    'regnety_400mf': dict(widths=(48, 104, 208, 440), depths=(1, 3, 6, 6), group_widths=8),
    'regnety_800mf': dict(widths=(64, 144, 320, 784), depths=(1, 3, 8, 2), group_widths=16),
    'regnety_1.6gf': dict(widths=(48, 120, 336, 888), depths=(2, 6, 17, 2), group_widths=24),
    'regnety_3.2gf': dict(widths=(72, 216, 576, 1512), depths=(2, 5, 13, 1), group_widths=24),
}
NUM_STAGES = 4
STEM_CHANNELS = 32
SE_RATIO = 0.25


def _arch_settings(arch):
    """Stage widths, depths and group widths, and the excitation's ratio."""
    if isinstance(arch, str):
        arch = ARCHS[check_choice('arch', arch, ARCHS)]
    required, allowed = {'widths', 'depths', 'group_widths'}, ('widths', 'depths',
                                                               'group_widths', 'se_ratio')
    if not isinstance(arch, dict) or not required <= set(arch) <= set(allowed):
        raise ValueError(f'arch must be one of {", ".join(map(repr, ARCHS))}, or a dict with '
                         f'widths, depths, group_widths and maybe se_ratio, got {arch!r}')
    widths, depths, group_widths = (
        per_stage(f'arch.{key}', arch[key], NUM_STAGES) for key in allowed[:3])
    for width, group_width in zip(widths, group_widths):
        if width % group_width:
            raise ValueError(f'arch.group_widths must divide arch.widths, got {group_width} '
                             f'for width {width}')
    return widths, depths, group_widths, check_fraction('arch.se_ratio',
                                                        arch.get('se_ratio', SE_RATIO))


def regnet_shapes(arch: str | dict, paradigm: Paradigm = None,
                  spatial_granularity: int | Sequence[int] = (4, 4, 2, 1),
                  channel_granularity: int | Sequence[int] = (2, 2, 2, 2),
                  channel_masker: str = 'mlp', masker_reduction: int = 16) -> Stages:
    """List the bottleneck blocks of a LAUD-RegNetY, stage by stage.

    Args:
        arch (str | dict): One of `ARCHS`, or a dict of stage `widths`, `depths`
            and `group_widths` (channels per group of conv2), each an int or one
            per stage, and maybe `se_ratio` (hidden channels of the
            squeeze-and-excitation per input channel of the block; 0: none).
        paradigm (str | None | Collection): What is skipped, or a list per stage, see
            `paradigms_per_stage`.
        spatial_granularity (int | Sequence[int]): S, for all stages or per stage.
        channel_granularity (int | Sequence[int]): G, for all stages or per stage.
        channel_masker (str): 'mlp', 'linear' or 'conv_linear'.
        masker_reduction (int): Groups per hidden unit of the 'mlp' masker.

    Returns:
        Stages: One tuple per stage.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    widths, depths, group_widths, se_ratio = _arch_settings(arch)
    deciding = stage_paradigms(NUM_STAGES, paradigm, spatial_granularity, channel_granularity,
                               channel_masker, masker_reduction)

    stages, in_channels = [], STEM_CHANNELS
    for stage, width in enumerate(widths):
        blocks = []
        for index in range(depths[stage]):
            blocks.append(BottleneckShape(
                name=f'trunk_output.block{stage + 1}.block{stage + 1}-{index}', stage=stage,
                in_channels=in_channels, width=width, out_channels=width,
                stride=2 if index == 0 else 1, groups=width // group_widths[stage],
                # Of the block's input, not of the map that is squeezed.
                se_channels=round(se_ratio * in_channels), downsample=index == 0,
                **deciding[stage]))
            in_channels = width
        stages.append(tuple(blocks))
    return tuple(stages)


def regnet_stem_specs(image_size: Size, in_channels: int = 3) -> tuple[OpSpec, ...]:
    """Op specs of the 3x3 stem."""
    half = tuple(ceil_div(n, 2) for n in image_size)
    return (OpSpec('stem.0', 'conv', in_channels, STEM_CHANNELS, tuple(image_size), half,
                   kernel_size=3, stride=2),)


def regnet_spec(arch: str | dict, image_size: Size = (224, 224), in_channels: int = 3,
                **kwargs: Any) -> NetworkSpec:
    """Op specs of a whole LAUD-RegNetY backbone; arguments as in `regnet_shapes`."""
    shapes = [shape for stage in regnet_shapes(arch, **kwargs) for shape in stage]
    return NetworkSpec.chain(regnet_stem_specs(image_size, in_channels), shapes)
