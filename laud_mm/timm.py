"""LAUD networks in timm: `import laud_mm.timm; timm.create_model('laud_resnet50_layer')`.

Names are `laud_<network>_<what is skipped>`; without the last part it is the static net.
A model is a backbone with timm's head: `model.backbone` has all that a LAUD backbone has.
"""
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from laud_mm.utils.stack import require_packages

require_packages('laud_mm.timm', 'timm')

import torch
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from laud_mm.framework import quiet_initialisation
from laud_mm.models import backbones
from laud_mm.specs import FAMILIES, NETWORKS, token_grid
from laud_mm.specs.arguments import check_choice
from laud_mm.weights.layout import add_classifier_prefixes, rename_keys
from laud_mm.weights.published import PUBLISHED, published_urls


class LAUDTimmModel(nn.Module):
    """A LAUD backbone with a classifier, as timm's models are.

    Keys are those of the classifiers that this project trains: `backbone.…` and `head.fc.…`.

    Args:
        backbone (str): Class of the backbone, such as 'LAUDResNet'.
        num_classes (int): Classes; 0: none, the pooled features come out.
        in_chans (int): Channels of the images.
        global_pool (str): How the head pools; '': not at all.
        drop_rate (float): Dropout before the classifier.
        output_stride (int): Of a ResNet: 32, 16 or 8, by dilation.
        device (str | torch.device, optional): Where to build the model.
        dtype (torch.dtype, optional): Type of the weights.
        **arguments: Of the backbone.

    Attributes:
        backbone (LAUDBackbone): Decides and computes; its `record` says what it decided.
    """

    def __init__(self, backbone: str, num_classes: int = 1000, in_chans: int = 3,
                 global_pool: str = 'avg', drop_rate: float = 0.0, output_stride: int = 32,
                 device: Any = None, dtype: torch.dtype | None = None, **arguments: Any):
        super().__init__()
        cls = getattr(backbones, backbone)
        arguments.update(_strides(cls, output_stride))
        with nullcontext() if device is None else torch.device(device):
            self.backbone = cls(in_channels=in_chans, **self.build_arguments, **arguments)
            if not next(self.backbone.parameters()).is_meta:  # those have no values
                with quiet_initialisation():
                    self.backbone.init_weights()
            self._describe()
            self.head = self.build_head(num_classes, global_pool, drop_rate)
        self.to(dtype=dtype)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate

    backbone: Any
    head: Any
    build_arguments: dict[str, Any] = {}
    feature_info: list[dict[str, Any]]

    def _describe(self) -> None:
        """Set `feature_info` and `num_features`."""
        net, size = self.backbone, 2**10
        net.out_indices = (net.num_stages - 1,)
        reductions, stages = {}, net.stages()
        for block in net.op_specs((size, size)).blocks:
            reductions[block.shape.stage] = size // block.shape.out_size(block.in_size)[0]
        names = {module: name for name, module in self.named_modules()}
        self.feature_info = [
            dict(num_chs=stage[-1].shape.out_channels, reduction=reductions[index],
                 module=names[stage]) for index, stage in enumerate(stages)]
        self.num_features = self.feature_info[-1]['num_chs']

    def build_head(self, num_classes: int, global_pool: str, drop_rate: float) -> nn.Module:
        """The head of a network of maps."""
        return ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)

    @property
    def head_hidden_size(self) -> int:
        """Features that the classifier reads."""
        return self.head.num_features

    def maps(self, outputs: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """Outputs of the backbone as (N, C, H, W) maps."""
        return list(outputs)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last stage's output."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's output to logits, or with `pre_logits` to what the classifier reads."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None,
                              norm: bool = False, stop_early: bool = False,
                              output_fmt: str = 'NCHW',
                              intermediates_only: bool = False) -> Any:
        """Features of several stages.

        Args:
            x (Tensor): (N, C, H, W) images.
            indices (int | list[int], optional): Of `feature_info`; an int: so many last
                ones; None: all.
            norm (bool): Taken for the signature; stages have no norm of their own.
            stop_early (bool): Taken for the signature: all stages are computed, unless
                `prune_intermediate_layers` dropped them.
            output_fmt (str): 'NCHW'.
            intermediates_only (bool): Leave out the last stage's output.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: (N, C, H, W) maps, and before them,
            unless left out, what `forward_features` returns.
        """
        check_choice('output_fmt', output_fmt, ('NCHW',))
        count = len(self.feature_info)
        taken, _ = feature_take_indices(count, indices)
        last = self.backbone.num_stages - 1
        outputs = self.backbone(x, sorted({*taken, last}))
        found = dict(zip(sorted({*taken, last}), outputs))
        features = self.maps([found[index] for index in taken], x)
        return features if intermediates_only else (found[last], features)

    def prune_intermediate_layers(self, indices: int | list[int] = 1,
                                  prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop what `forward_intermediates` does not need; returns the indices kept."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        if last + 1 < self.backbone.num_stages:
            self.backbone.keep_stages(last + 1)
            self.num_features = self.feature_info[last]['num_chs']
            self.head.reset(0, '', in_features=self.num_features)
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; `global_pool` as it is unless given."""
        self.num_classes, like = num_classes, next(self.parameters())
        self.head.reset(num_classes, global_pool, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, which saves memory in training."""
        for block in self.backbone.blocks():
            block.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> Any:
        """Where a parameter stands, for layer-wise learning rates: a function of its name."""
        stages = [{id(p) for p in stage.parameters()} for stage in self.backbone.stages()]
        parameters = dict(self.named_parameters())

        def layer(name):
            if coarse:
                return next((i for i, own in enumerate(stages, 1)
                             if id(parameters[name]) in own), len(stages) + 1
                            if name.startswith('head.') else 0)
            return self.backbone.get_layer_depth(name, 'backbone.')[0]
        return layer

    def load_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by this model's names; static ones get its fresh maskers."""
        weights, own = add_classifier_prefixes(weights), self.backbone.state_dict()
        body = rename_keys({key.removeprefix('backbone.'): value for key, value in weights.items()
                            if key.startswith('backbone.')}, own)
        head = {key.replace('head.layers.head.', 'head.fc.'): value
                for key, value in weights.items() if key.startswith('head.')}
        maskers = {key: value for key, value in own.items() if '.masker.' in key}
        if not maskers:  # the static net of a network that skips
            body = {key: value for key, value in body.items() if '.masker.' not in key}
        elif not maskers.keys() & body.keys():
            body = {**body, **maskers}
        return {**head, **{f'backbone.{key}': value for key, value in body.items()}}


class TokenHead(nn.Module):
    """Pool tokens, and classify.

    Args:
        in_features (int): Channels of a token.
        num_classes (int): Classes; 0: none.
        pool_type (str): 'token' (the class token), 'avg' (the others) or '' (no pooling).
        drop_rate (float): Dropout before the classifier.
    """

    def __init__(self, in_features: int, num_classes: int, pool_type: str = 'token',
                 drop_rate: float = 0.0):
        super().__init__()
        self.num_features, self.drop = in_features, nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None, device: Any = None,
              dtype: torch.dtype | None = None) -> None:
        """Replace the classifier, where the old one was."""
        if pool_type is not None:
            self.pool_type = check_choice('global_pool', pool_type, ('token', 'avg', ''))
        self.fc = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype) \
            if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 1 + T, C) tokens to logits."""
        if self.pool_type:
            x = x[:, 0] if self.pool_type == 'token' else x[:, 1:].mean(1)
        return self.drop(x) if pre_logits else self.fc(self.drop(x))


class LAUDTimmTransformer(LAUDTimmModel):
    """A LAUD transformer with a classifier; a feature is the map of a block's tokens."""

    build_arguments = dict(out_type='raw')

    def _describe(self) -> None:
        size = 2**10
        reduction = size // token_grid((size, size))[0]
        names = {module: name for name, module in self.named_modules()}
        self.feature_info = [dict(num_chs=block.shape.embed_dims, reduction=reduction,
                                  module=names[block]) for block in self.backbone.blocks()]
        self.num_features = self.feature_info[-1]['num_chs']

    def build_head(self, num_classes: int, global_pool: str, drop_rate: float) -> nn.Module:
        return TokenHead(self.num_features, num_classes, global_pool, drop_rate)

    def maps(self, outputs: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        grid = token_grid(x.shape[-2:])
        return [y[:, 1:].transpose(1, 2).unflatten(2, grid) for y in outputs]

    def prune_intermediate_layers(self, indices: int | list[int] = 1,
                                  prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the head; all blocks stay. Returns the indices kept."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {'backbone.cls_token'}


def _strides(cls, output_stride):
    if output_stride == 32:
        return {}
    if cls is not backbones.LAUDResNet:
        raise ValueError(f'output_stride must be 32 for {cls.__name__}, got {output_stride!r}')
    check_choice('output_stride', output_stride, (8, 16, 32))
    dense = 2 if output_stride == 8 else 1  # stages that are dilated
    return dict(strides=(1, 2, 2, 1) if dense == 1 else (1, 2, 1, 1),
                dilations=(1, 1, 1, 2) if dense == 1 else (1, 1, 2, 4))


@dataclass(frozen=True)
class _Family:
    """How timm sees a family.

    Attributes:
        model (type): Class of its models.
        cfg (dict): What all of its default configs say.
        combined (str): Name of the model that skips all that the family can.
        skips (tuple): Of the combined model.
        names (dict[str, str]): timm's names for networks, where they differ.
    """
    model: type
    cfg: dict
    combined: str
    skips: tuple
    names: dict = field(default_factory=dict)


_MAPS = dict(pool_size=(7, 7), interpolation='bilinear', classifier='head.fc',
             license='bsd-3-clause')
_TOKENS = dict(pool_size=None, first_conv=(), classifier='head.fc', crop_pct=0.9,
               interpolation='bicubic', fixed_input_size=True)
_FAMILIES = {
    'LAUDResNet': _Family(LAUDTimmModel, dict(_MAPS, first_conv='backbone.conv1'), 'both',
                          ('channel', 'spatial')),
    'LAUDRegNet': _Family(LAUDTimmModel, dict(_MAPS, first_conv='backbone.stem.0'), 'both',
                          ('channel', 'spatial'),
                          {'regnety_400mf': 'regnety_004', 'regnety_800mf': 'regnety_008',
                           'regnety_1.6gf': 'regnety_016', 'regnety_3.2gf': 'regnety_032'}),
    'LAUDT2TViT': _Family(LAUDTimmTransformer, _TOKENS, 'all', FAMILIES['LAUDT2TViT'].paradigms),
}


def _models() -> dict[str, tuple[str, Any]]:
    """Names in timm, with the network and what it skips."""
    found: dict[str, tuple[str, Any]] = {}
    for network, family in NETWORKS.items():
        own = _FAMILIES.get(family.backbone)
        if own is None:  # a family of others
            continue
        name = f'laud_{own.names.get(network, network)}'
        found[name] = network, None
        found.update({f'{name}_{paradigm}': (network, paradigm) for paradigm in family.paradigms})
        found[f'{name}_{own.combined}'] = network, own.skips
    return found


def _configs(network: str, own: _Family) -> dict[str, dict]:
    """Default configs by tag; published weights are of the static net."""
    if network not in PUBLISHED:
        return {'': own.cfg}
    first, second = published_urls(network)
    return {'tv2_in1k': dict(own.cfg, url=second, crop_pct=224 / 232),
            'tv_in1k': dict(own.cfg, url=first)}


MODELS = _models()
default_cfgs = generate_default_cfgs({
    f'{name}.{tag}'.rstrip('.'): cfg for name, (network, _) in MODELS.items()
    for tag, cfg in _configs(network, _FAMILIES[NETWORKS[network].backbone]).items()})


def _entrypoint(name: str, network: str, skips: str | Collection[str] | None) -> Any:
    family = NETWORKS[network]
    own = _FAMILIES[family.backbone]
    arguments = dict(family.defaults(network), backbone=family.backbone, paradigm=skips)
    last: dict[str, Any] = dict(feature_cls='getter', out_indices=(0, 1, 2, 3))
    if own.model is LAUDTimmTransformer:
        arguments['global_pool'], last['out_indices'] = 'token', 3

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            own.model, name, pretrained, feature_cfg=dict(last),
            pretrained_filter_fn=lambda weights, model: model.load_weights(weights),
            **{**arguments, **kwargs})
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f'{family.title} {network}, skipping: {skips or "nothing"}.'
    return create


for _name, (_network, _skips) in MODELS.items():
    register_model(_entrypoint(_name, _network, _skips))
