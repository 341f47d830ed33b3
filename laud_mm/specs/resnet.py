"""ResNet as a table: the blocks of each depth and the op specs of the whole net."""
from collections.abc import Sequence
from typing import Any

from .arguments import Paradigm, check_choice, per_stage
from .bottleneck import BottleneckShape, Stages, ceil_div, stage_paradigms
from .network import NetworkSpec
from .opspec import OpSpec, Size

STAGE_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


def resnet_shapes(depth: int, base_channels: int = 64, stem_channels: int | None = None,
                  num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2),
                  dilations: Sequence[int] = (1, 1, 1, 1), style: str = 'pytorch',
                  paradigm: Paradigm = None,
                  spatial_granularity: int | Sequence[int] = (4, 4, 2, 1),
                  channel_granularity: int | Sequence[int] = (2, 2, 2, 2),
                  channel_masker: str = 'mlp', masker_reduction: int = 16,
                  mask_before_norm: bool = False, avg_down: bool = False) -> Stages:
    """List the bottleneck blocks of a LAUD-ResNet, stage by stage.

    Args:
        depth (int): 26 (two blocks in each stage), 50, 101 or 152.
        base_channels (int): Bottleneck width of the first stage.
        stem_channels (int, optional): Channels of the stem; default `base_channels`.
        num_stages (int): Stages built, 1 to 4.
        strides (Sequence[int]): Stride of each stage.
        dilations (Sequence[int]): Dilation of each stage.
        style (str): 'pytorch' puts the stride in conv2, 'caffe' in conv1.
        paradigm (str | None | Collection): What is skipped, or a list per stage, see
            `paradigms_per_stage`.
        spatial_granularity (int | Sequence[int]): S, for all stages or per stage.
        channel_granularity (int | Sequence[int]): G, for all stages or per stage.
        channel_masker (str): 'mlp', 'linear' or 'conv_linear'.
        masker_reduction (int): Groups per hidden unit of the 'mlp' masker.
        mask_before_norm (bool): Channel masks act before the norms.
        avg_down (bool): Shortcuts take their stride in an average pool (ResNet-D).

    Returns:
        Stages: One tuple per stage.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    if depth not in STAGE_BLOCKS:
        raise ValueError(f'depth must be one of {tuple(STAGE_BLOCKS)} (networks of bottleneck '
                         f'blocks), got {depth!r}')
    if not (isinstance(num_stages, int) and 1 <= num_stages <= 4):
        raise ValueError(f'num_stages must be an int from 1 to 4, got {num_stages!r}')
    check_choice('style', style, ('pytorch', 'caffe'))
    check_choice('avg_down', avg_down, (True, False))
    strides = per_stage('strides', strides, num_stages, of=4)
    dilations = per_stage('dilations', dilations, num_stages, of=4)
    deciding = stage_paradigms(num_stages, paradigm, spatial_granularity, channel_granularity,
                               channel_masker, masker_reduction, of=4)

    stages, in_channels = [], stem_channels or base_channels
    for stage in range(num_stages):
        width, blocks = base_channels * 2**stage, []
        for index in range(STAGE_BLOCKS[depth][stage]):
            stride = strides[stage] if index == 0 else 1
            out_channels = width * EXPANSION
            blocks.append(BottleneckShape(
                name=f'layer{stage + 1}.{index}', stage=stage, in_channels=in_channels,
                width=width, out_channels=out_channels, stride=stride,
                dilation=dilations[stage], stride_in_conv1=style == 'caffe',
                downsample=index == 0 and (stride != 1 or in_channels != out_channels),
                avg_down=avg_down, mask_before_norm=mask_before_norm, **deciding[stage]))
            in_channels = out_channels
        stages.append(tuple(blocks))
    return tuple(stages)


def resnet_stem_specs(image_size: Size, in_channels: int = 3, stem_channels: int = 64,
                      deep_stem: bool = False) -> tuple[OpSpec, ...]:
    """Op specs of the 7x7 stem, or of the deep one's three 3x3 (ResNet-C), and its max pool."""
    half = tuple(ceil_div(n, 2) for n in image_size)
    quarter = tuple(ceil_div(n, 2) for n in half)

    def conv(name, cin, cout, kernel_size, stride):
        return OpSpec(name, 'conv', cin, cout, half if stride == 1 else tuple(image_size), half,
                      kernel_size=kernel_size, stride=stride)

    middle = stem_channels // 2
    convs = (conv('stem.0', in_channels, middle, 3, 2), conv('stem.3', middle, middle, 3, 1),
             conv('stem.6', middle, stem_channels, 3, 1)) if deep_stem else (
        conv('conv1', in_channels, stem_channels, 7, 2),)
    return (*convs, OpSpec('maxpool', 'pool', stem_channels, stem_channels, half, quarter,
                           kernel_size=3, stride=2))


def resnet_spec(depth: int, image_size: Size = (224, 224), in_channels: int = 3,
                base_channels: int = 64, stem_channels: int | None = None,
                deep_stem: bool = False, **kwargs: Any) -> NetworkSpec:
    """Op specs of a whole LAUD-ResNet backbone; arguments as in `resnet_shapes`."""
    stem_channels = stem_channels or base_channels
    stages = resnet_shapes(depth, base_channels, stem_channels, **kwargs)
    stem = resnet_stem_specs(image_size, in_channels, stem_channels, deep_stem)
    return NetworkSpec.chain(stem, [shape for stage in stages for shape in stage])
