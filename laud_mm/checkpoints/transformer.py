"""Turn T2T-ViT checkpoints of AdaViT, T2T-ViT, mmcls and mmpretrain into ours, and back."""
import re

import torch

from laud_mm.specs.networks import infer_t2t_vit
from laud_mm.weights.safe import CheckpointError
from laud_mm.weights.transformer import QKV, T2T, adapt_mmpretrain, rename_mmpretrain, scale_queries

_AUTHORS = (
    (re.compile(r'^blocks\.'), 'encoder.'),
    (re.compile(r'\.attn\.token_select\.mlp_head\.'), '.masker.token.fc.'),
    (re.compile(r'\.(head|layer)_select\.mlp_head\.'), r'.masker.\1.fc.'),
    (re.compile(r'^head\.'), 'layers.head.'),
)
_TRANSFORMER_LAYER = r'(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])'
_KEY = re.compile(
    rf'(cls_token|pos_embed|{T2T}\.attention[12]\.w'
    rf'|({T2T}\.(project|attention[12]\.(kqv|proj|norm[12]|mlp\.[02]|{_TRANSFORMER_LAYER}))'
    rf'|encoder\.\d+\.({_TRANSFORMER_LAYER}|masker\.(token|head|layer)\.fc)'
    r'|norm|layers\.head)\.(weight|bias))$')
_QUERY = re.compile(r'\.attn\.query\.(weight|bias)$')


def convert_adavit(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of a released AdaViT T2T-ViT checkpoint to ours.

    Args:
        state_dict (dict[str, Tensor]): Keys as released, with or without a leading 'module.'.

    Returns:
        dict[str, Tensor]: Keys of `LAUDT2TViT`, and the classifier's `layers.head.*`,
        as in mmpretrain's `VisionTransformerClsHead`.

    Raises:
        CheckpointError: If there is a key that neither has a place in ours.
    """
    state_dict, joined = _plain(state_dict), {}
    for key, value in state_dict.items():
        query = _QUERY.search(key)
        if query:
            prefix, kind = key[:query.start()], query[1]
            parts = [f'{prefix}.attn.{part}.{kind}' for part in ('query', 'key', 'value')]
            missing = [part for part in parts if part not in state_dict]
            if missing:
                raise CheckpointError(f'the checkpoint holds {key} but no {missing[0]}')
            joined[f'{prefix}.attn.qkv.{kind}'] = torch.cat([state_dict[p] for p in parts])
        elif not re.search(r'\.attn\.(key|value)\.(weight|bias)$', key):
            joined[key] = value
    return convert_t2t_vit(joined)


def convert_t2t_vit(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of a released T2T-ViT checkpoint to ours.

    Args:
        state_dict (dict[str, Tensor]): Keys as released, with or without a leading 'module.'.

    Returns:
        dict[str, Tensor]: As from `convert_adavit`.

    Raises:
        CheckpointError: If there is a key that neither has a place in ours.
    """
    converted = {}
    for key, value in _plain(state_dict).items():
        for pattern, replacement in _AUTHORS:
            key = pattern.sub(replacement, key)
        converted[key] = value
    return _checked(_rescale_stem(converted), 'T2T-ViT')


def convert_mmcls_t2t_vit(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn an mmcls 0.x `T2T_ViT`, such as mmpretrain's released T2T-ViT-t's, into ours.

    Those of mmpretrain 1.x need no conversion, see `adapt_mmpretrain`.

    Args:
        state_dict (dict[str, Tensor]): Keys of the backbone, or with 'backbone.' and 'head.'.

    Returns:
        dict[str, Tensor]: As from `convert_adavit`.

    Raises:
        CheckpointError: If there is a key that has no place in ours.
    """
    return _checked(_rescale_stem({
        rename_mmpretrain(re.sub(r'^(backbone|head)\.', '', key)): value
        for key, value in _plain(state_dict).items()}), "mmcls's T2T_ViT")


def convert_mmpretrain_t2t_vit(state_dict):
    """Turn the plain keys of an mmpretrain 1.x `T2T_ViT`, with its scale of scores, into ours."""
    named = _checked({rename_mmpretrain(k): v for k, v in state_dict.items()},
                     "mmpretrain's T2T_ViT")
    return adapt_mmpretrain(state_dict, *_attention_dims(named))


def check_t2t_vit(state_dict):
    """Check that the keys are those of `LAUDT2TViT`."""
    return _checked(state_dict, 'a LAUD-T2T-ViT')


def is_t2t_vit(state_dict):
    """Whether plain keys are a T2T-ViT's, anybody's."""
    return 'cls_token' in state_dict


def export_t2t_vit(state_dict):
    """The static part of `LAUDT2TViT` with T2T-ViT's keys, undoing `convert_t2t_vit`.

    Bit for bit for the Performer type; the queries of T2T-ViT-t's two first layers,
    which another scale of scores went into, come back to float rounding.
    """
    scaled = _rescale_stem(_static_part(state_dict), invert=True)
    return {re.sub(r'^encoder\.', 'blocks.', key.removeprefix('layers.')): value
            for key, value in scaled.items()}


def export_adavit(state_dict):
    """The static part of `LAUDT2TViT` with AdaViT's keys: T2T-ViT's, each qkv in three."""
    exported = {}
    for key, value in export_t2t_vit(state_dict).items():
        if key.startswith('blocks.') and QKV.search(key):
            for part, third in zip(('query', 'key', 'value'), value.chunk(3)):
                exported[key.replace('.qkv.', f'.{part}.')] = third.clone()
        else:
            exported[key] = value
    return exported


def export_mmpretrain_t2t_vit(state_dict):
    """The static part of `LAUDT2TViT` with the keys and numbers of mmpretrain 1.x.

    Raises:
        CheckpointError: If its tokens-to-token module is a Performer.
    """
    static = _static_part(state_dict)
    if infer_t2t_vit(static)['t2t_type'] != 'transformer':
        raise CheckpointError("mmpretrain has no T2T-ViT with t2t_type='performer' to convert to")
    head_dims, token_dim = _attention_dims(state_dict)
    exported = {}
    for key, value in static.items():
        if QKV.search(key):
            value = scale_queries(value, 1 / (token_dim if key.startswith(T2T) else head_dims))
        for ours, theirs in (('.norm', '.ln'), ('.mlp.fc1.', '.ffn.layers.0.0.'),
                             ('.mlp.fc2.', '.ffn.layers.1.')):
            key = key.replace(ours, theirs)
        exported[key] = value
    return exported


def _static_part(state_dict):
    if not is_t2t_vit(state_dict):
        raise CheckpointError("the weights are not a T2T-ViT's: they hold no cls_token")
    return {k: v for k, v in state_dict.items() if '.masker.' not in k}


def _attention_dims(state_dict):
    """Channels per head of the blocks, and of the tokens-to-token module's layers."""
    arguments = infer_t2t_vit(state_dict)
    dims, heads = (arguments['arch'][key] for key in ('embed_dims', 'num_heads'))
    if dims % 64 and 'head' not in (arguments['paradigm'] or ()):
        raise CheckpointError(f'the weights do not tell the number of heads of {dims} channels, '
                              'which the scale of scores depends on')
    return dims // heads, arguments['token_dim']


def _plain(state_dict):
    return {key.removeprefix('module.'): value for key, value in state_dict.items()}


def _rescale_stem(state_dict, invert=False):
    """Let queries take up how T2T-ViT-t scales scores: by the layers' input channels, not ours."""
    converted = dict(state_dict)
    for layer in (f'{T2T}.attention{i}.attn' for i in (1, 2)):
        weight = state_dict.get(f'{layer}.qkv.weight')
        for key in (f'{layer}.qkv.{kind}' for kind in ('weight', 'bias')):
            if key in state_dict:
                factor = (len(weight) / 3 / weight.shape[1])**0.5
                converted[key] = scale_queries(state_dict[key], 1 / factor if invert else factor)
    return converted


def _checked(converted, name):
    unknown = [key for key in converted if not _KEY.match(key)]
    if unknown:
        raise CheckpointError(f'{len(unknown)} of {len(converted)} keys are not those of {name}, '
                              f'the first being {unknown[:3]}')
    if 'cls_token' not in converted or 'encoder.0.mlp.fc1.weight' not in converted:
        raise CheckpointError('the checkpoint holds no cls_token or no first block, so it is '
                              f'not {name}')
    return converted
