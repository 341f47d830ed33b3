"""LAUD-RegNet: a RegNetY whose blocks decide per image what to compute."""
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from laud_mm.framework import Sequential, build_conv_layer, build_norm_layer
from laud_mm.models.dynamic import SqueezeExcitation
from laud_mm.registry import MODELS
from laud_mm.specs import OpSpec, Size, regnet_shapes, regnet_stem_specs
from laud_mm.specs.arguments import Paradigm, check_choice

from .base import check_conv_cfg, check_norm_cfg, check_unused
from .bottleneck import BottleneckBackbone, DynamicBottleneck, make_blocks, masker_settings


class LAUDRegNetBottleneck(DynamicBottleneck):
    """The bottleneck block with torchvision's RegNet names."""

    def name_modules(self, layers: Sequence[tuple[nn.Module, nn.Module]],
                     shortcut: nn.Sequential | None, excitation: SqueezeExcitation | None) -> None:
        self.proj = shortcut
        a, b, c = (nn.Sequential(*layer) for layer in layers)
        self.f = nn.ModuleDict(dict(a=a, b=b, c=c) if excitation is None
                               else dict(a=a, b=b, se=excitation, c=c))

    def layers(self) -> tuple:
        return self.f['a'], self.f['b'], self.f['c']

    def shortcut(self) -> nn.Sequential | None:
        return self.proj

    def excitation(self) -> nn.Module | None:
        return self.f['se'] if 'se' in self.f else None


@MODELS.register_module()
class LAUDRegNet(BottleneckBackbone):
    """RegNetY with layer, channel or spatial skipping (LAUDNet, section 3).

    State-dict keys of the static part are torchvision's, so its `regnet_y_*`
    checkpoints load; maskers add `<block>.masker.*`.

    Args:
        arch (str | dict): 'regnety_400mf', 'regnety_800mf', 'regnety_1.6gf',
            'regnety_3.2gf', or a dict, see `laud_mm.specs.regnet_shapes`.
        in_channels (int): Channels of the images.
        out_indices (Sequence[int]): Stages whose outputs are returned.
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
        channel_granularity (int | Sequence[int]): G, channels per group of the masker.
        masker (dict, optional): `channel` ('mlp', 'linear' or 'conv_linear'),
            `reduction` (groups per hidden unit of the MLP) and `noise` (Gumbel
            noise in training); default dict(channel='mlp', reduction=16, noise=True).
        se_pool (str): What squeeze-and-excitation takes its means over under spatial
            skipping: 'computed' positions; or 'dense', all of them, for weights
            trained that way, which only runs with execution='masked'.
        execution (str): 'auto', 'masked' or 'skipping', see `LAUDBackbone`.
        plan (str, optional): See `BottleneckBackbone`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
        **unused: As of `LAUDResNet`.

    Raises:
        ValueError: For an argument out of its range, with the field's name.

    Examples:
        >>> import torch
        >>> from laud_mm.models.backbones import LAUDRegNet
        >>> net = LAUDRegNet('regnety_400mf', paradigm='channel').eval()
        >>> [tuple(y.shape) for y in net(torch.rand(1, 3, 64, 64))]
        [(1, 48, 16, 16), (1, 104, 8, 8), (1, 208, 4, 4), (1, 440, 2, 2)]
    """

    stem: nn.Sequential

    def __init__(self, arch: str | dict, in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1,
                 conv_cfg: dict | None = None, norm_cfg: dict = dict(type='BN', requires_grad=True),
                 norm_eval: bool = False, with_cp: bool = False, zero_init_residual: bool = True,
                 paradigm: Paradigm = 'layer',
                 spatial_granularity: int | Sequence[int] = (4, 4, 2, 1),
                 channel_granularity: int | Sequence[int] = (2, 2, 2, 2),
                 masker: dict | None = None, se_pool: str = 'computed', execution: str = 'auto',
                 plan: str | None = None, init_cfg: dict | list[dict] | None = None,
                 **unused: Any):
        init_cfg = check_unused(type(self).__name__, unused, init_cfg)
        masker = masker_settings(masker)
        shapes = regnet_shapes(arch, paradigm, spatial_granularity, channel_granularity,
                               masker['channel'], masker['reduction'])
        super().__init__(out_indices, len(shapes), frozen_stages, norm_eval, execution,
                         zero_init_residual, init_cfg, plan)
        self.arch, self.in_channels = arch, in_channels
        if check_choice('se_pool', se_pool, ('computed', 'dense')) == 'dense' \
                and execution != 'masked' and any(s[0].spatial_skipping for s in shapes):
            raise ValueError("se_pool='dense' with spatial skipping needs execution='masked', "
                             f'got {execution!r}')
        norm_cfg, conv_cfg = check_norm_cfg(norm_cfg), check_conv_cfg(conv_cfg)

        channels = shapes[0][0].in_channels
        self.stem = nn.Sequential(
            build_conv_layer(conv_cfg, in_channels, channels, 3, stride=2, padding=1, bias=False),
            build_norm_layer(norm_cfg, channels)[1], nn.ReLU())
        self.trunk_output = Sequential(OrderedDict(
            (f'block{stage}', Sequential(OrderedDict(
                (f'block{stage}-{index}', block) for index, block in enumerate(make_blocks(
                    LAUDRegNetBottleneck, stage_shapes, conv_cfg, norm_cfg, with_cp,
                    noise=masker['noise'], se_pool=se_pool)))))
            for stage, stage_shapes in enumerate(shapes, 1)))
        self._freeze()

    def stem_specs(self, image_size: Size) -> tuple[OpSpec, ...]:
        return regnet_stem_specs(image_size, self.in_channels)

    def call_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def stem_layers(self) -> list:
        return [tuple(self.stem)[:2]]

    def stem_modules(self) -> Sequence[nn.Module]:
        return (self.stem,)

    def stages(self) -> list:
        return list(self.trunk_output)
