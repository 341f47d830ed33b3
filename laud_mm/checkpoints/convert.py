"""Turn other projects' checkpoints into ours."""
import os
import re
from pathlib import Path

import torch

from .safe import CheckpointError, load_state_dict
from .transformer import convert_adavit, convert_mmcls_t2t_vit, convert_t2t_vit

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
    rf'(fc|conv1|bn1|{_RESNET_BLOCK}\.(conv[123]|bn[123]|downsample\.[01])'
    rf'|stem\.[01]|{_REGNET_BLOCK}\.(proj\.[01]|f\.[abc]\.[01]|f\.se\.fc[12]))'
    r'\.(weight|bias|running_mean|running_var|num_batches_tracked)$')
_MASKER_KEY = re.compile(
    rf'({_RESNET_BLOCK}|{_REGNET_BLOCK})'
    r'\.masker\.(spatial\.conv|channel\.fc[12])\.(weight|bias)$')


def convert_laudnet(state_dict):
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
    converted, unknown = {}, []
    for key, value in state_dict.items():
        new = key.removeprefix('module.')
        for pattern, replacement in _LAUDNET_MASKERS:
            new = pattern.sub(replacement, new)
        if not (_STATIC_KEY.match(new) or _MASKER_KEY.match(new)):
            unknown.append(key)
        converted[new] = value
    if unknown:
        raise CheckpointError(
            f'{len(unknown)} of {len(state_dict)} keys are not those of a LAUDNet ResNet or '
            f'RegNet, the first being {unknown[:3]}')
    if not {'conv1.weight', 'stem.0.weight'} & set(converted):
        raise CheckpointError('the checkpoint holds no conv1.weight and no stem.0.weight, so it is '
                              'neither a ResNet nor a RegNet')
    return converted


SOURCES = {'laudnet': convert_laudnet, 'adavit': convert_adavit, 't2t_vit': convert_t2t_vit,
           'mmcls_t2t_vit': convert_mmcls_t2t_vit}
_CLASSIFIERS = ('fc.', 'layers.head.')  # below mmpretrain's `head.`


def convert_file(source, src, dst, prefix=''):
    """Convert a checkpoint file; nothing is written unless all of it converts.

    Args:
        source (str): One of `SOURCES`.
        src (str | Path): File to read, weights only.
        dst (str | Path): File to write: {'state_dict': ...}.
        prefix (str): Put before backbone keys, such as 'backbone.'; the
            classifier's `fc.*` or `layers.head.*` then becomes mmpretrain's `head.…`.

    Returns:
        dict[str, Tensor]: The state dict written.

    Raises:
        ValueError: If `source` is not known.
        CheckpointError: If `src` cannot be read safely or does not convert.
    """
    if source not in SOURCES:
        raise ValueError(f'source must be one of {", ".join(SOURCES)}, got {source!r}')
    state_dict = SOURCES[source](load_state_dict(src))
    if prefix:
        state_dict = {f'head.{k}' if k.startswith(_CLASSIFIERS) else prefix + k: v
                      for k, v in state_dict.items()}
    dst = Path(dst)
    dst.parent.mkdir(parents=True, exist_ok=True)
    part = dst.with_name(f'.{dst.name}.part')
    torch.save({'state_dict': state_dict}, part)
    os.replace(part, dst)
    return state_dict
