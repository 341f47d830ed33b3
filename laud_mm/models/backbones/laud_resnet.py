"""LAUD-ResNet: a ResNet whose blocks decide per image what to compute."""
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from laud_mm.framework import Sequential, build_conv_layer, build_norm_layer
from laud_mm.models.dynamic import SqueezeExcitation
from laud_mm.registry import MODELS
from laud_mm.specs import OpSpec, Size, resnet_shapes, resnet_stem_specs
from laud_mm.specs.arguments import Paradigm, check_choice

from .base import check_conv_cfg, check_norm_cfg, check_unused
from .bottleneck import BottleneckBackbone, DynamicBottleneck, make_blocks, masker_settings


class LAUDBottleneck(DynamicBottleneck):
    """The bottleneck block with torchvision's ResNet names."""

    def name_modules(self, layers: Sequence[tuple[nn.Module, nn.Module]],
                     shortcut: nn.Sequential | None, excitation: SqueezeExcitation | None) -> None:
        (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3) = layers
        self.downsample, self.se = shortcut, excitation

    def layers(self) -> tuple:
        return (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)

    @property
    def norm1(self) -> nn.Module:
        """The first norm, as mmdet and mmpretrain call it."""
        return self.bn1

    @property
    def norm2(self) -> nn.Module:
        """The second norm."""
        return self.bn2

    @property
    def norm3(self) -> nn.Module:
        """The third norm."""
        return self.bn3

    def shortcut(self) -> nn.Sequential | None:
        return self.downsample

    def excitation(self) -> SqueezeExcitation | None:
        return self.se


@MODELS.register_module()
class LAUDResNet(BottleneckBackbone):
    """ResNet with layer, channel or spatial skipping (LAUDNet, section 3).

    State-dict keys of the static part are torchvision's, so torchvision and
    mmdet/mmpretrain ResNet checkpoints load; maskers add `<block>.masker.*`.

    Args:
        depth (int): 26 (two blocks in each stage), 50, 101 or 152.
        in_channels (int): Channels of the images.
        stem_channels (int, optional): Channels of the stem; default `base_channels`.
        base_channels (int): Bottleneck width of the first stage.
        num_stages (int): Stages built, 1 to 4.
        strides (Sequence[int]): Stride of each stage.
        dilations (Sequence[int]): Dilation of each stage.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        style (str): 'pytorch' puts a block's stride in the 3x3 convolution, 'caffe' in the first.
        deep_stem (bool): Three 3x3 convolutions in place of the stem's 7x7 one (ResNet-C).
        avg_down (bool): Shortcuts take their stride in an average pool (ResNet-D).
        frozen_stages (int): Stem (0) and stages up to this one are frozen; -1: none.
            Maskers of frozen stages train unless a checkpoint brought their weights.
        conv_cfg (dict, optional): Convolutions; plain ones only.
        norm_cfg (dict): Norms; a batch norm.
        norm_eval (bool): Keep batch norm statistics fixed in training.
        with_cp (bool): Recompute block activations in the backward pass.
        zero_init_residual (bool): Start the last norm of each block at zero.
        paradigm (str | None | Collection): What is skipped: 'layer', 'spatial', 'channel', a
            tuple or set of several, or None (static); a list: what each stage skips.
        spatial_granularity (int | Sequence[int]): S, side of a patch in output positions.
        channel_granularity (int | Sequence[int]): G, channels per group.
        masker (dict, optional): `channel` ('mlp', 'linear' or 'conv_linear'),
            `reduction` (groups per hidden unit of the MLP) and `noise` (Gumbel
            noise in training); default dict(channel='mlp', reduction=16, noise=True).
        mask_before_norm (bool): Channel masks act before the norms, as in the
            released LAUDNet ResNets; their skipped channels leave a constant behind.
        execution (str): 'auto', 'masked' or 'skipping', see `LAUDBackbone`.
        plan (str, optional): See `BottleneckBackbone`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
        **unused: Arguments of mmdet's and mmpretrain's classes that are not supported, where
            they ask for nothing: `dcn=None`, `plugins=None`; `pretrained`, see `check_unused`.

    Raises:
        ValueError: For an argument out of its range, with the field's name.

    Examples:
        >>> import torch
        >>> from laud_mm.models.backbones import LAUDResNet
        >>> net = LAUDResNet(50, paradigm='layer').eval()
        >>> [tuple(y.shape) for y in net(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    stem: nn.Sequential

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int | None = None,
                 base_channels: int = 64, num_stages: int = 4,
                 strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3), style: str = 'pytorch',
                 deep_stem: bool = False, avg_down: bool = False, frozen_stages: int = -1,
                 conv_cfg: dict | None = None,
                 norm_cfg: dict = dict(type='BN', requires_grad=True), norm_eval: bool = False,
                 with_cp: bool = False, zero_init_residual: bool = True,
                 paradigm: Paradigm = 'layer',
                 spatial_granularity: int | Sequence[int] = (4, 4, 2, 1),
                 channel_granularity: int | Sequence[int] = (2, 2, 2, 2),
                 masker: dict | None = None, mask_before_norm: bool = False,
                 execution: str = 'auto', plan: str | None = None,
                 init_cfg: dict | list[dict] | None = None, **unused: Any):
        init_cfg = check_unused(type(self).__name__, unused, init_cfg)
        masker = masker_settings(masker)
        stem_channels = stem_channels or base_channels
        shapes = resnet_shapes(
            depth, base_channels, stem_channels, num_stages, strides, dilations, style, paradigm,
            spatial_granularity, channel_granularity, masker['channel'], masker['reduction'],
            mask_before_norm, avg_down)
        super().__init__(out_indices, num_stages, frozen_stages, norm_eval, execution,
                         zero_init_residual, init_cfg, plan)
        self.depth, self.in_channels, self.stem_channels = depth, in_channels, stem_channels
        norm_cfg, conv_cfg = check_norm_cfg(norm_cfg), check_conv_cfg(conv_cfg)

        self.deep_stem = check_choice('deep_stem', deep_stem, (True, False))

        def layer(op):
            return (build_conv_layer(conv_cfg, op.in_channels, op.out_channels, op.kernel_size,
                                     stride=op.stride, padding=op.kernel_size // 2, bias=False),
                    build_norm_layer(norm_cfg, op.out_channels)[1], nn.ReLU())

        convs = [layer(op) for op in self.stem_specs((1, 1)) if op.kind == 'conv']
        if deep_stem:
            self.stem = nn.Sequential(*chain.from_iterable(convs))
        else:
            self.conv1, self.bn1, self.relu = convs[0]
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, stage_shapes in enumerate(shapes):
            self.add_module(f'layer{stage + 1}', Sequential(*make_blocks(
                LAUDBottleneck, stage_shapes, conv_cfg, norm_cfg, with_cp, masker['noise'])))
        self._freeze()

    @property
    def norm1(self) -> nn.Module:
        """The norm of the plain stem, as mmdet and mmpretrain call it."""
        return self.bn1

    def call_stem(self, x: Tensor) -> Tensor:
        for module in self.stem_modules():
            x = module(x)
        return x

    def stem_layers(self) -> list:
        if self.deep_stem:
            layers = list(self.stem)
            return list(zip(layers[::3], layers[1::3]))
        return [(self.conv1, self.bn1)]

    def stem_specs(self, image_size: Size) -> tuple[OpSpec, ...]:
        return resnet_stem_specs(image_size, self.in_channels, self.stem_channels,
                                 self.deep_stem)

    def stem_modules(self) -> Sequence[nn.Module]:
        if self.deep_stem:
            return self.stem, self.maxpool
        return self.conv1, self.bn1, self.relu, self.maxpool

    def stages(self) -> list:
        return [getattr(self, f'layer{i + 1}') for i in range(self.num_stages)]
