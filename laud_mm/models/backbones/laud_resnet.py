"""LAUD-ResNet: a ResNet whose blocks decide per image what to compute."""
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential, constant_init
from torch import nn
from torch.utils import checkpoint

from laud_mm.models.dynamic import (BlockMasker, Decision, FoldCache, FoldedBottleneck,
                                    FoldedConv, fold_conv_norm, run_masked,
                                    run_skipping)
from laud_mm.registry import MODELS
from laud_mm.specs import resnet_shapes, resnet_stem_specs

from .base import LAUDBackbone, check_conv_cfg, check_norm_cfg


class LAUDBottleneck(BaseModule):
    """A bottleneck block that computes what its masker decides.

    Args:
        shape (BottleneckShape): Geometry and paradigm.
        conv_cfg (dict, optional): Config of the convolutions.
        norm_cfg (dict): Config of the batch norms.
        with_cp (bool): Recompute activations in the backward pass.
        mask_before_norm (bool): Channel masks act before the norms.
        noise (bool): Whether the masker samples in training.

    Attributes:
        owns_input (bool): Whether nobody else reads the block's input, so that
            the output may overwrite it (every block of a stage but the first).
    """

    def __init__(self, shape, conv_cfg=None, norm_cfg=None, with_cp=False,
                 mask_before_norm=False, noise=True, init_cfg=None):
        super().__init__(init_cfg)
        self.shape, self.with_cp, self.mask_before_norm = shape, with_cp, mask_before_norm
        self.owns_input = False

        def conv(cin, cout, kernel, **kwargs):
            return build_conv_layer(conv_cfg, cin, cout, kernel, bias=False, **kwargs)

        def norm(channels):
            return build_norm_layer(norm_cfg, channels)[1]

        self.conv1 = conv(shape.in_channels, shape.width, 1, stride=shape.stride1)
        self.bn1 = norm(shape.width)
        self.conv2 = conv(shape.width, shape.width, 3, stride=shape.stride2,
                          padding=shape.dilation, dilation=shape.dilation, groups=shape.groups)
        self.bn2 = norm(shape.width)
        self.conv3 = conv(shape.width, shape.out_channels, 1)
        self.bn3 = norm(shape.out_channels)
        self.downsample = nn.Sequential(
            conv(shape.in_channels, shape.out_channels, 1, stride=shape.stride),
            norm(shape.out_channels)) if shape.downsample else None
        self.masker = BlockMasker(shape, noise) if shape.paradigm else None
        self._fold = FoldCache()

    def forward(self, x, masked, as_static=False, override=None):
        """Decide, then compute.

        Args:
            x (Tensor): (N, C, H, W).
            masked (bool): Use the masked executor, else the skipping one.
            as_static (bool): Ignore the masker and compute everything.
            override (Callable, optional): Changes the decision.

        Returns:
            tuple[Tensor, Decision]: The (N, C', H', W') output and what was decided.
        """
        if self.with_cp and self.training and x.requires_grad:
            return checkpoint.checkpoint(self._forward, x, masked, as_static, override,
                                         use_reentrant=False)
        return self._forward(x, masked, as_static, override)

    def _forward(self, x, masked, as_static, override):
        decision = Decision() if as_static or self.masker is None else self.masker(x)
        if override is not None and not decision.is_static:
            decision = override(self.shape.name, decision)
        run = run_masked if masked else run_skipping
        return run(self, x, decision), decision

    def folded(self):
        """The block's weights with the norms folded in: a `FoldedBottleneck`."""
        modules = [self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3]
        if self.downsample is not None:
            modules += self.downsample
        return self._fold.get(modules, lambda dtype: FoldedBottleneck(*(
            fold_conv_norm(conv, norm, dtype)
            for conv, norm in zip(modules[::2], modules[1::2]))))

    def train(self, mode=True):
        """Set training mode; the folded weights are made anew afterwards."""
        self._fold.clear()
        return super().train(mode)


@MODELS.register_module()
class LAUDResNet(LAUDBackbone):
    """ResNet with layer, channel or spatial skipping (LAUDNet, section 3).

    State-dict keys of the static part are torchvision's, so torchvision and
    mmdet/mmpretrain ResNet checkpoints load; maskers add `<block>.masker.*`.

    Args:
        depth (int): 50, 101 or 152.
        in_channels (int): Channels of the images.
        stem_channels (int, optional): Channels of the stem; default `base_channels`.
        base_channels (int): Bottleneck width of the first stage.
        num_stages (int): Stages built, 1 to 4.
        strides (Sequence[int]): Stride of each stage.
        dilations (Sequence[int]): Dilation of each stage.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        style (str): 'pytorch' puts a block's stride in the 3x3 convolution, 'caffe' in the first.
        frozen_stages (int): Stem (0) and stages up to this one are frozen; -1: none.
            Maskers of frozen stages train unless a checkpoint brought their weights.
        conv_cfg (dict, optional): Convolutions; plain ones only.
        norm_cfg (dict): Norms; a batch norm.
        norm_eval (bool): Keep batch norm statistics fixed in training.
        with_cp (bool): Recompute block activations in the backward pass.
        zero_init_residual (bool): Start the last norm of each block at zero.
        paradigm (str | None | Sequence): 'layer', 'channel', 'spatial', 'both'
            (spatial and channel) or None (static), for all stages or one per stage.
        spatial_granularity (int | Sequence[int]): S, side of a patch in output positions.
        channel_granularity (int | Sequence[int]): G, channels per group.
        masker (dict, optional): `channel` ('mlp', 'linear' or 'conv_linear'),
            `reduction` (groups per hidden unit of the MLP) and `noise` (Gumbel
            noise in training); default dict(channel='mlp', reduction=16, noise=True).
        mask_before_norm (bool): Channel masks act before the norms, as in the
            released LAUDNet ResNets; their skipped channels leave a constant behind.
        execution (str): 'auto', 'masked' or 'skipping', see `LAUDBackbone`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Raises:
        ValueError: For an argument out of its range, with the field's name.

    Example:
        >>> import torch
        >>> from laud_mm.models.backbones import LAUDResNet
        >>> net = LAUDResNet(50, paradigm='layer').eval()
        >>> [tuple(y.shape) for y in net(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    def __init__(self, depth, in_channels=3, stem_channels=None, base_channels=64, num_stages=4,
                 strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(0, 1, 2, 3),
                 style='pytorch', frozen_stages=-1, conv_cfg=None,
                 norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, with_cp=False,
                 zero_init_residual=True, paradigm='layer', spatial_granularity=(4, 4, 2, 1),
                 channel_granularity=(2, 2, 2, 2), masker=None, mask_before_norm=False,
                 execution='auto', init_cfg=None):
        masker = _masker_settings(masker)
        stem_channels = stem_channels or base_channels
        shapes = resnet_shapes(
            depth, base_channels, stem_channels, num_stages, strides, dilations, style, paradigm,
            spatial_granularity, channel_granularity, masker['channel'], masker['reduction'])
        super().__init__(out_indices, num_stages, frozen_stages, norm_eval, execution,
                         init_cfg or [dict(type='Kaiming', layer='Conv2d'),
                                      dict(type='Constant', val=1, layer='_BatchNorm')])
        self.depth, self.in_channels, self.stem_channels = depth, in_channels, stem_channels
        self.zero_init_residual = zero_init_residual and init_cfg is None
        norm_cfg, conv_cfg = check_norm_cfg(norm_cfg), check_conv_cfg(conv_cfg)

        self.conv1 = build_conv_layer(conv_cfg, in_channels, stem_channels, 7, stride=2,
                                      padding=3, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, stem_channels)[1]
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self._stem_fold = FoldCache()
        for name, stage in zip(self.stage_names, shapes):
            blocks = [LAUDBottleneck(shape, conv_cfg, norm_cfg, with_cp, mask_before_norm,
                                     masker['noise']) for shape in stage]
            for block in blocks[1:]:
                block.owns_input = True
            self.add_module(name, Sequential(*blocks))
        self._freeze()

    def run_stem(self, x, folded):
        if folded:
            stem: FoldedConv = self._stem_fold.get(
                [self.conv1, self.bn1],
                lambda dtype: fold_conv_norm(self.conv1, self.bn1, dtype))
            x = F.conv2d(x, stem.weight, stem.bias, stride=2, padding=3)
        else:
            x = self.bn1(self.conv1(x))
        return self.maxpool(F.relu_(x))

    def stem_specs(self, image_size):
        return resnet_stem_specs(image_size, self.in_channels, self.stem_channels)

    def stem_modules(self):
        return self.conv1, self.bn1

    def init_weights(self):
        if self.is_init:
            return
        super().init_weights()
        if self.zero_init_residual:
            for block in self.blocks():
                constant_init(block.bn3, 0)

    def train(self, mode=True):
        self._stem_fold.clear()
        return super().train(mode)


def _masker_settings(masker):
    settings = dict(channel='mlp', reduction=16, noise=True)
    unknown = set(masker or {}) - set(settings)
    if unknown:
        raise ValueError(f'masker must have keys among {", ".join(settings)}, '
                         f'got {", ".join(sorted(unknown))}')
    settings.update(masker or {})
    if not isinstance(settings['reduction'], int) or settings['reduction'] < 1:
        raise ValueError(f'masker.reduction must be a positive int, got {settings["reduction"]!r}')
    return settings
