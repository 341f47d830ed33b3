"""Which backbone a checkpoint's keys and shapes belong to."""
import re

import torch

from laud_mm.specs import PARADIGMS
from laud_mm.specs.resnet import EXPANSION, STAGE_BLOCKS

from .safe import CheckpointError
from .transformer import is_t2t_vit, t2t_vit_arguments


def infer_backbone(state_dict):
    """Find the backbone config that weights with our keys belong to.

    Args:
        state_dict (dict[str, Tensor]): Keys of one of our backbones.

    Returns:
        dict: `type` and arguments. S cannot be seen from weights, and in others' checkpoints
        and those of before version 0.2 maskers of layers are called `spatial` too: name a
        config for these.

    Raises:
        CheckpointError: If no backbone has such keys.
    """
    for infer in ARCHITECTURES:
        backbone = infer(state_dict)
        if backbone is not None:
            return backbone
    raise CheckpointError('the architecture cannot be inferred from the keys, the first being '
                          f'{list(state_dict)[:3]}: name a config')


def build_keys(backbone):
    """The keys and shapes of a backbone config: a model without memory for weights."""
    from laud_mm.registry import MODELS
    with torch.device('meta'):
        return MODELS.build(dict(backbone, init_cfg=None))


def is_masker_key(key):
    """Whether a backbone's key belongs to a masker."""
    return '.masker.' in key


def _infer_resnet(weights):
    if 'layer1.0.conv1.weight' not in weights or 'conv1.weight' not in weights:
        return None
    blocks = _count_blocks(weights, r'layer(\d+)\.(\d+)\.conv3\.weight')
    depth = next((d for d, n in STAGE_BLOCKS.items() if n[:len(blocks)] == blocks), None)
    width = len(weights['layer1.0.conv1.weight'])
    if depth is None or len(weights['layer1.0.conv3.weight']) != EXPANSION * width:
        return None
    return dict(type='laud_mm.LAUDResNet', depth=depth, num_stages=len(blocks), base_channels=width,
                out_indices=(len(blocks) - 1, ), stem_channels=len(weights['conv1.weight']),
                in_channels=weights['conv1.weight'].shape[1],
                **_paradigms(weights, [f'layer{i + 1}.0' for i in range(len(blocks))], 'conv1'))


def _infer_regnet(weights):
    depths = _count_blocks(weights, r'trunk_output\.block(\d+)\.block\d+-(\d+)\.f\.c\.0\.weight')
    if len(depths) != 4 or 'stem.0.weight' not in weights:
        return None
    first = [f'trunk_output.block{i}.block{i}-0' for i in range(1, 5)]
    arch = dict(depths=depths, widths=tuple(len(weights[f'{b}.f.c.0.weight']) for b in first),
                group_widths=tuple(weights[f'{b}.f.b.0.weight'].shape[1] for b in first))
    if f'{first[0]}.f.se.fc1.weight' not in weights:
        arch['se_ratio'] = 0.0
    return dict(type='laud_mm.LAUDRegNet', arch=arch, in_channels=weights['stem.0.weight'].shape[1],
                **_paradigms(weights, first, 'f.a.0'))


def _infer_t2t_vit(weights):
    if not is_t2t_vit(weights):
        return None
    return dict(type='laud_mm.LAUDT2TViT', **t2t_vit_arguments(weights))


# Each takes weights and returns a backbone config, or None if they are not its own.
ARCHITECTURES = [_infer_resnet, _infer_regnet, _infer_t2t_vit]


def _count_blocks(weights, pattern):
    """Blocks per stage: the pattern's groups are the stage and the block."""
    found = {tuple(map(int, m.groups())) for m in map(re.compile(pattern).fullmatch, weights) if m}
    stages = sorted({stage for stage, _ in found})
    return tuple(sum(s == stage for s, _ in found) for stage in stages)


def _paradigms(weights, first_blocks, conv1):
    """What the maskers of each stage's first block decide."""
    kinds, groups, masker = [], [], {}
    for block in first_blocks:
        logits = weights.get(f'{block}.masker.channel.fc2.weight')
        kinds.append(tuple(paradigm for paradigm in PARADIGMS if any(
            key.startswith(f'{block}.masker.{paradigm}.') for key in weights)) or None)
        width = len(weights[f'{block}.{conv1}.weight'])
        groups.append(1 if logits is None else max(2 * width // len(logits), 1))
        if logits is not None:
            kind = next((k for k, key in (('mlp', 'fc1'), ('conv_linear', 'conv'))
                         if f'{block}.masker.channel.{key}.weight' in weights), 'linear')
            masker = dict(masker=dict(channel=kind))
    return dict(paradigm=kinds, channel_granularity=tuple(groups), **masker)
