"""Networks by name or by config, as specs."""
from collections.abc import Callable, Sequence
from typing import Any

from .arguments import check_choice
from .network import NetworkSpec
from .opspec import Size
from .regnet import regnet_spec
from .resnet import resnet_spec
from .t2t_vit import t2t_vit_spec

RESNETS = {'resnet50': 50, 'resnet101': 101, 'resnet152': 152}
REGNETS = ('regnety_400mf', 'regnety_800mf', 'regnety_1.6gf', 'regnety_3.2gf')
T2T_VITS = ('t2t_vit_14', 't2t_vit_19', 't2t_vit_24')
NETWORKS = (*RESNETS, *REGNETS, *T2T_VITS)

# The best of the papers per network; they report 4-4-2-1 for all but ResNet-101.
BEST_SPATIAL_GRANULARITY = {'resnet101': (8, 4, 7, 1)}


def best_spatial_granularity(network):
    """S of each stage that the papers found best for a network."""
    return BEST_SPATIAL_GRANULARITY.get(network, (4, 4, 2, 1))


def network_spec(network: str, image_size: Size = (224, 224),
                 paradigm: str | Sequence[str | None] | None = None,
                 spatial_granularity: int | Sequence[int] | None = None,
                 channel_granularity: int | Sequence[int] = (2, 2, 2, 2),
                 channel_masker: str = 'mlp') -> NetworkSpec:
    """Op specs of a backbone by its name.

    Args:
        network (str): One of `NETWORKS`.
        image_size (tuple[int, int]): Height and width of the images.
        paradigm: As of the backbone.
        spatial_granularity (int | Sequence[int], optional): S; default: the papers' best.
        channel_granularity (int | Sequence[int]): G.
        channel_masker (str): 'mlp' (two layers), 'linear' (one) or 'conv_linear'.

    Returns:
        NetworkSpec: The backbone.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    check_choice('network', network, NETWORKS)
    if network in T2T_VITS:
        return t2t_vit_spec(network, image_size, paradigm=paradigm)
    if spatial_granularity is None:
        spatial_granularity = best_spatial_granularity(network)
    kwargs: dict[str, Any] = dict(
        paradigm=paradigm, channel_granularity=channel_granularity,
        spatial_granularity=spatial_granularity, channel_masker=channel_masker)
    if network in RESNETS:
        return resnet_spec(RESNETS[network], image_size, **kwargs)
    return regnet_spec(network, image_size, **kwargs)


# Arguments of the backbones that change what they cost, and what else they may have.
_BACKBONES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'LAUDResNet': (resnet_spec, (
        'depth', 'in_channels', 'base_channels', 'stem_channels', 'num_stages', 'strides',
        'dilations', 'style', 'paradigm', 'spatial_granularity', 'channel_granularity')),
    'LAUDRegNet': (regnet_spec, ('arch', 'in_channels', 'paradigm', 'spatial_granularity',
                                 'channel_granularity')),
    'LAUDT2TViT': (t2t_vit_spec, ('arch', 'in_channels', 'token_dim', 't2t_type')),
}


def backbone_spec(backbone: dict, image_size: Size = (224, 224)) -> NetworkSpec:
    """Op specs of the backbone that a config describes.

    Args:
        backbone (dict): Config of a LAUD backbone, `type` and arguments.
        image_size (tuple[int, int]): Height and width of the images.

    Returns:
        NetworkSpec: The backbone.

    Raises:
        ValueError: If the type is not a LAUD backbone, or an argument is out of its range.
    """
    kind = str(backbone.get('type')).rsplit('.', 1)[-1]
    if kind not in _BACKBONES:
        raise ValueError(f'backbone.type must be one of {", ".join(_BACKBONES)} (of laud_mm), '
                         f'got {backbone.get("type")!r}')
    build, names = _BACKBONES[kind]
    kwargs = {name: backbone[name] for name in names if backbone.get(name) is not None}
    masker = backbone.get('masker') or {}
    kwargs.update({f'{"channel_masker" if k == "channel" else "masker_reduction"}': masker[k]
                   for k in ('channel', 'reduction') if k in masker})
    # A backbone decides by layer unless its config says otherwise, None included.
    kwargs['paradigm'] = backbone.get('paradigm', 'layer')
    return build(image_size=tuple(image_size), **kwargs)
