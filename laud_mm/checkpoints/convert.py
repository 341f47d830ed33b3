"""Turn other projects' checkpoints into ours, and the static part of ours into theirs."""
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from laud_mm.weights.convnext import (
    adapt_convnext,
    is_convnext,
    name_as_mmpretrain_convnext,
    name_as_torchvision_convnext,
)
from laud_mm.weights.layout import (
    CLASSIFIER_KEYS,
    add_classifier_prefixes,
    compare_keys,
    name_as_mmpretrain,
    name_stem,
    rename_keys,
    strip_classifier_prefixes,
)
from laud_mm.weights.safe import CheckpointError, load_state_dict, save_state_dict

from .architecture import build_keys, infer_backbone, is_masker_key
from .transformer import (
    check_t2t_vit,
    convert_adavit,
    convert_mmcls_t2t_vit,
    convert_mmpretrain_t2t_vit,
    convert_t2t_vit,
    export_adavit,
    export_mmpretrain_t2t_vit,
    export_t2t_vit,
    is_t2t_vit,
)

# The authors' names of a block's maskers, and ours.
_LAUDNET_MASKERS = (
    (re.compile(r'\.f\.masker_'), '.masker_'),
    (re.compile(r'\.masker_spatial\.conv\.'), '.masker.spatial.conv.'),
    (re.compile(r'\.masker_channel\.conv\.0\.'), '.masker.channel.fc1.'),
    (re.compile(r'\.masker_channel\.conv\.2\.'), '.masker.channel.fc2.'),
    (re.compile(r'\.masker_channel\.(conv|linear)\.(?=weight|bias)'), '.masker.channel.fc2.'),
)
_RESNET_BLOCK, _REGNET_BLOCK = r'layer\d+\.\d+', r'trunk_output\.block\d+\.block\d+-\d+'
_STATIC_KEY = re.compile(
    rf'(fc|conv1|bn1|{_RESNET_BLOCK}\.(conv[123]|bn[123]|downsample\.[012])'
    rf'|stem\.[013467]|{_REGNET_BLOCK}\.(proj\.[01]|f\.[abc]\.[01]|f\.se\.fc[12]))'
    r'\.(weight|bias|running_mean|running_var|num_batches_tracked)$')
_MASKER_KEY = re.compile(
    rf'({_RESNET_BLOCK}|{_REGNET_BLOCK})'
    r'\.masker\.((spatial|layer)\.conv|channel\.(fc[12]|conv))\.(weight|bias)$')
_CONVNEXT_KEY = re.compile(
    r'(features\.0\.[01]|features\.\d*[02468]\.[01]|features\.\d+\.\d+\.block\.[0235]'
    r'|features\.\d+\.\d+\.masker\.(spatial|layer)\.conv|norm\d+|fc)\.(weight|bias)$'
    r'|features\.\d+\.\d+\.layer_scale$')


def _check_convnext(state_dict, masked=False):
    """Our names for those of any ConvNeXt; refuses keys that have no place in ours."""
    state_dict = adapt_convnext(strip_classifier_prefixes(state_dict))
    unknown = [k for k in state_dict if not _CONVNEXT_KEY.match(k)
               or not masked and is_masker_key(k)]
    if unknown:
        raise CheckpointError(f'{len(unknown)} of {len(state_dict)} keys are not those of a '
                              f'ConvNeXt, the first being {unknown[:3]}')
    return state_dict


def _check_keys(state_dict, names, *patterns):
    """Refuse keys that no pattern knows; `names` says whose they should be."""
    unknown = [k for k in state_dict if not any(p.match(k) for p in patterns)]
    if unknown:
        raise CheckpointError(f'{len(unknown)} of {len(state_dict)} keys are not those of {names}, '
                              f'the first being {unknown[:3]}')
    if not {'conv1.weight', 'stem.0.weight'} & set(state_dict):
        raise CheckpointError('the checkpoint holds no conv1.weight and no stem.0.weight, so it is '
                              'neither a ResNet nor a RegNet')
    return state_dict


def convert_laudnet(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of a released LAUDNet ResNet or RegNet checkpoint to ours.

    Args:
        state_dict (dict[str, Tensor]): Keys as released, with or without a
            leading 'module.'. Channel maskers of a ResNet act before the norm:
            build it with `mask_before_norm=True`. Spatial maskers of a RegNet
            were trained with `se_pool='dense'`.

    Returns:
        dict[str, Tensor]: Keys of `LAUDResNet` or `LAUDRegNet`, and the classifier's `fc.*`.

    Raises:
        CheckpointError: If there is a key that neither has a place in ours.
    """
    converted = {}
    for key, value in state_dict.items():
        key = key.removeprefix('module.')
        for pattern, replacement in _LAUDNET_MASKERS:
            key = pattern.sub(replacement, key)
        converted[key] = value
    return _check_keys(converted, 'a LAUDNet ResNet or RegNet', _STATIC_KEY, _MASKER_KEY)


def convert_torchvision(state_dict):
    """Check that the keys are those of a torchvision ResNet, RegNetY or ConvNeXt: ours, mostly."""
    if is_convnext(state_dict):
        return _check_convnext(state_dict)
    return _check_keys(dict(state_dict), "torchvision's ResNet or RegNetY", _STATIC_KEY)


def convert_mmpretrain(state_dict):
    """Turn the keys of an mmpretrain ResNet, ConvNeXt or T2T-ViT-t classifier into ours."""
    plain = strip_classifier_prefixes(state_dict)
    if is_convnext(plain):
        return _check_convnext(plain)
    if is_t2t_vit(plain):
        return convert_mmpretrain_t2t_vit(plain)
    plain = {name_stem(key): value for key, value in plain.items()}
    return _check_keys(plain, "mmpretrain's ResNet or T2T_ViT", _STATIC_KEY)


def convert_ours(state_dict):
    """Strip the prefixes of a classifier trained here; other models are refused."""
    plain = strip_classifier_prefixes(state_dict)
    if is_convnext(plain):
        return _check_convnext(plain, masked=True)
    if is_t2t_vit(plain):
        return check_t2t_vit(plain)
    names = 'a LAUD-ResNet, LAUD-RegNet, LAUD-ConvNeXt or LAUD-T2T-ViT'
    return _check_keys(plain, names, _STATIC_KEY, _MASKER_KEY)


# 'lasnet' is the earlier repository of LAUDNet's authors, whose names LAUDNet kept.
SOURCES = {'laud': convert_ours, 'laudnet': convert_laudnet, 'lasnet': convert_laudnet,
           'torchvision': convert_torchvision, 'mmpretrain': convert_mmpretrain,
           'adavit': convert_adavit, 't2t_vit': convert_t2t_vit,
           'mmcls_t2t_vit': convert_mmcls_t2t_vit}


def export_torchvision(state_dict):
    """The static part of our ResNet, RegNet or ConvNeXt with torchvision's keys.

    Raises:
        CheckpointError: For a T2T-ViT, which torchvision does not have.
    """
    if is_t2t_vit(state_dict):
        raise CheckpointError('torchvision has no T2T-ViT to convert to')
    static = {k: v for k, v in state_dict.items() if not is_masker_key(k)}
    return name_as_torchvision_convnext(static) if is_convnext(static) else static


def export_mmpretrain(state_dict):
    """The static part of our weights with the keys of an mmpretrain classifier.

    Raises:
        CheckpointError: For what mmpretrain does not have: RegNetY, T2T-ViT with a Performer.
    """
    if is_t2t_vit(state_dict):
        return add_classifier_prefixes(export_mmpretrain_t2t_vit(state_dict))
    if is_convnext(state_dict):
        static = {k: v for k, v in state_dict.items() if not is_masker_key(k)}
        return name_as_mmpretrain_convnext(add_classifier_prefixes(static))
    if 'layer1.0.conv1.weight' not in state_dict:
        raise CheckpointError('mmpretrain has ResNets, but no RegNetY, to convert to')
    return add_classifier_prefixes(name_as_mmpretrain(export_torchvision(state_dict)))


# LAUDNet's and LASNet's static parts have torchvision's keys.
TARGETS = {'laud': dict, 'torchvision': export_torchvision, 'mmpretrain': export_mmpretrain,
           'laudnet': export_torchvision, 'lasnet': export_torchvision,
           't2t_vit': export_t2t_vit, 'adavit': export_adavit}


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        state_dict (dict[str, Tensor]): The weights written.
        backbone (dict): Config of the backbone that they were checked against.
        fresh (tuple[str, ...]): Keys of maskers that the source does not have
            and training starts afresh.
        dropped (tuple[str, ...]): Keys of maskers that the target has no place for.
    """
    state_dict: dict[str, torch.Tensor]
    backbone: dict
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def convert_file(source: str, src: str | Path, dst: str | Path, prefix: str = '',
                 target: str = 'laud', backbone: dict | None = None,
                 trust: bool = False) -> Conversion:
    """Convert a checkpoint file; nothing is written unless all of it converts.

    Args:
        source (str): One of `SOURCES`.
        src (str | Path): File to read, weights only; `.safetensors` is one of them.
        dst (str | Path): File to write: `.safetensors`, else {'state_dict': ...}.
        prefix (str): Put before backbone keys, such as 'backbone.'; the
            classifier's keys then become mmpretrain's `head.…`.
        target (str): One of `TARGETS`; others than 'laud' take the static part.
        backbone (dict, optional): Config of the backbone that the weights are
            for; default: inferred from the weights.
        trust (bool): See `load_state_dict`.

    Returns:
        Conversion: The weights written and how they fit.

    Raises:
        ValueError: If `source` or `target` is not known.
        CheckpointError: If `src` cannot be read safely, does not convert or
            does not fit the backbone, naming missing and unexpected keys.
    """
    for field, value, known in (('source', source, SOURCES), ('target', target, TARGETS)):
        if value not in known:
            raise ValueError(f'{field} must be one of {", ".join(known)}, got {value!r}')
    if prefix and target != 'laud':
        raise ValueError(f'prefix must be empty for the target {target}, got {prefix!r}')
    weights = SOURCES[source](load_state_dict(src, trust))
    backbone = backbone or infer_backbone(weights)
    weights = rename_keys(weights, build_keys(backbone).state_dict())
    fresh = check_backbone(weights, backbone)
    converted = TARGETS[target](weights)
    if prefix:
        converted = add_classifier_prefixes(converted, prefix)
    save_state_dict(converted, Path(dst))
    dropped = tuple(filter(is_masker_key, weights)) if target != 'laud' else ()
    return Conversion(converted, backbone, fresh, dropped)


def check_backbone(weights, backbone):
    """Check that weights fill a backbone; its classifier is not looked at.

    Args:
        weights (dict[str, Tensor]): With our keys.
        backbone (dict): Config of the backbone.

    Returns:
        tuple[str, ...]: Keys of its maskers, if the weights have none at all.

    Raises:
        CheckpointError: If anything else is missing, unexpected or of another shape.
    """
    body = {k: v for k, v in weights.items() if not k.startswith(CLASSIFIER_KEYS)}
    fit = compare_keys(body, build_keys(backbone))
    fresh = tuple(filter(is_masker_key, fit.missing))
    static = not any(map(is_masker_key, body))
    if fit.unexpected or fit.mismatched or (set(fit.missing) - set(fresh if static else ())):
        raise CheckpointError(f'the weights do not fit {backbone["type"]}: {fit}')
    return fresh
