"""Families: kinds of networks, each registered in one place.

Whoever goes by networks (predictor, measurement, calibration, zoo, checkpoints, tools) asks
here; nobody else lists them.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from .arguments import check_choice, type_name
from .network import NetworkSpec
from .opspec import Size


@dataclass(frozen=True)
class Family:
    """A kind of networks.

    Attributes:
        backbone (str): Its registered backbone, without the scope: 'LAUDResNet'.
        title (str): What the zoo calls it.
        networks (dict[str, dict]): Networks by name: arguments of the backbone.
        spec (Callable): `(image_size=..., **arguments) -> NetworkSpec`.
        arguments (tuple[str, ...]): Arguments of the backbone that change what it costs;
            `spec` takes them.
        paradigms (tuple[str, ...]): What its blocks can skip.
        granularities (tuple[str, ...]): Those of `arguments` that are granularities per stage.
        best (dict[str, dict]): Arguments that the papers found best, by network; '' for others.
        infer (Callable | None): `weights -> arguments | None`: which backbone has such keys;
            None where it is not this family's.
        draw (Callable | None): `Random -> arguments` of a random small backbone, for
            calibrations.
    """
    backbone: str
    title: str
    networks: Mapping[str, dict]
    spec: Callable[..., NetworkSpec]
    arguments: tuple[str, ...]
    paradigms: tuple[str, ...]
    granularities: tuple[str, ...] = ()
    best: Mapping[str, dict] = field(default_factory=dict)
    infer: Callable[[Mapping], dict | None] | None = None
    draw: Callable[[Random], dict] | None = None

    def defaults(self, network: str) -> dict:
        """Arguments of a network: its own, and those that the papers found best for it."""
        return {**self.best.get(network, self.best.get('', {})), **self.networks[network]}

    def name_of(self, backbone: Mapping) -> str:
        """The network that a backbone's config is, or something like its name."""
        for name, own in self.networks.items():
            if all(backbone.get(key) == value for key, value in own.items()):
                return name
        return str(backbone.get('arch', backbone.get('depth')))


FAMILIES: dict[str, Family] = {}
NETWORKS: dict[str, Family] = {}  # by the name of a network


def register_family(family: Family) -> Family:
    """Make a family known; one of the same backbone is replaced.

    Raises:
        ValueError: If a network of that name belongs to another family.
    """
    for name in family.networks:
        if name in NETWORKS and NETWORKS[name].backbone != family.backbone:
            raise ValueError(f'networks must have names of their own, got {name!r}, which is of '
                             f'{NETWORKS[name].backbone}')
    FAMILIES[family.backbone] = family
    NETWORKS.update(dict.fromkeys(family.networks, family))
    return family


def family_of(backbone: Mapping) -> Family:
    """The family of a backbone's config.

    Raises:
        ValueError: If its type is no backbone of a family.
    """
    name = type_name(backbone)
    if name not in FAMILIES:
        raise ValueError(f'backbone.type must be one of {", ".join(FAMILIES)} (of laud_mm), '
                         f'got {backbone.get("type")!r}')
    return FAMILIES[name]


def network_spec(network: str, image_size: Size = (224, 224), paradigm: Any = None,
                 **arguments: Any) -> NetworkSpec:
    """Op specs of a backbone by its name.

    Args:
        network (str): One of `NETWORKS`.
        image_size (tuple[int, int]): Height and width of the images.
        paradigm: As of the backbone.
        **arguments: More of the family's arguments, such as `spatial_granularity`; default:
            the papers' best. None: left out.

    Returns:
        NetworkSpec: The backbone.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    family = NETWORKS[check_choice('network', network, NETWORKS)]
    given = {name: value for name, value in arguments.items() if value is not None
             and name in family.arguments}
    return family.spec(image_size=image_size, **dict(family.defaults(network), **given,
                                                     paradigm=paradigm))


def backbone_spec(backbone: Mapping, image_size: Size = (224, 224)) -> NetworkSpec:
    """Op specs of the backbone that a config describes.

    Args:
        backbone (dict): Config of a LAUD backbone, `type` and arguments.
        image_size (tuple[int, int]): Height and width of the images.

    Returns:
        NetworkSpec: The backbone.

    Raises:
        ValueError: If the type is not a LAUD backbone, or an argument is out of its range.
    """
    family = family_of(backbone)
    kwargs = {name: backbone[name] for name in family.arguments
              if backbone.get(name) is not None}
    masker = backbone.get('masker') or {}
    renamed = dict(channel='channel_masker', reduction='masker_reduction')
    kwargs.update({renamed[key]: masker[key] for key in renamed if key in masker})
    # A backbone decides by layer unless its config says otherwise, None included.
    kwargs['paradigm'] = backbone.get('paradigm', 'layer')
    return family.spec(image_size=tuple(image_size), **kwargs)
