"""Turn T2T-ViT checkpoints of AdaViT, T2T-ViT and mmpretrain into ours."""
import re

import torch

from .safe import CheckpointError

_MMPRETRAIN = (
    (re.compile(r'\bln([12])\.'), r'norm\1.'),
    (re.compile(r'\bffn\.layers\.0\.0\.'), 'mlp.fc1.'),
    (re.compile(r'\bffn\.layers\.1\.'), 'mlp.fc2.'),
)
_AUTHORS = (
    (re.compile(r'^blocks\.'), 'encoder.'),
    (re.compile(r'\.attn\.token_select\.mlp_head\.'), '.masker.token.fc.'),
    (re.compile(r'\.(head|layer)_select\.mlp_head\.'), r'.masker.\1.fc.'),
    (re.compile(r'^head\.'), 'layers.head.'),
)
_T2T = 'tokens_to_token'
_TRANSFORMER_LAYER = r'(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])'
_KEY = re.compile(
    rf'(cls_token|pos_embed|{_T2T}\.attention[12]\.w'
    rf'|({_T2T}\.(project|attention[12]\.(kqv|proj|norm[12]|mlp\.[02]|{_TRANSFORMER_LAYER}))'
    rf'|encoder\.\d+\.({_TRANSFORMER_LAYER}|masker\.(token|head|layer)\.fc)'
    r'|norm|layers\.head)\.(weight|bias))$')
_QUERY = re.compile(r'\.attn\.query\.(weight|bias)$')


def rename_mmpretrain(key):
    """Our name of a weight of mmpretrain's `T2T_ViT`; other names stay."""
    for pattern, replacement in _MMPRETRAIN:
        key = pattern.sub(replacement, key)
    return key


def convert_adavit(state_dict):
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


def convert_t2t_vit(state_dict):
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
        if re.match(rf'{_T2T}\.attention[12]\.attn\.qkv\.', key):
            value = _rescale_queries(key, value, state_dict)
        converted[key] = value
    return _checked(converted, 'T2T-ViT')


def convert_mmpretrain_t2t_vit(state_dict):
    """Rename the keys of an mmpretrain `T2T_ViT`, of the backbone or of the whole classifier.

    Args:
        state_dict (dict[str, Tensor]): Keys of the backbone, or with 'backbone.' and 'head.'.

    Returns:
        dict[str, Tensor]: As from `convert_adavit`.

    Raises:
        CheckpointError: If there is a key that has no place in ours.
    """
    converted = {}
    for key, value in _plain(state_dict).items():
        key = re.sub(r'^head\.(?=layers\.head\.)', '', key.removeprefix('backbone.'))
        converted[rename_mmpretrain(key)] = value
    return _checked(converted, "mmpretrain's T2T_ViT")


def t2t_vit_arguments(state_dict, num_heads=None):
    """Read from a converted checkpoint which `LAUDT2TViT` it belongs to.

    Args:
        state_dict (dict[str, Tensor]): From `convert_adavit` and its like.
        num_heads (int, optional): Heads; default: those of its head maskers, else
            T2T-ViT's, of 64 channels.

    Returns:
        dict: Arguments of `LAUDT2TViT`.
    """
    depth = 1 + max(int(k.split('.')[1]) for k in state_dict if k.startswith('encoder.'))
    hidden, dims = state_dict['encoder.0.mlp.fc1.weight'].shape
    last = f'encoder.{depth - 1}.masker'
    if num_heads is None:
        masker = state_dict.get(f'{last}.head.fc.weight')
        num_heads = max(dims // 64, 1) if masker is None else len(masker)
    first = f'{_T2T}.attention1'
    performer = f'{first}.w' in state_dict
    token_dim = len(state_dict[f'{first}.proj.weight' if performer
                               else f'{first}.attn.proj.weight'])
    side = round((state_dict['pos_embed'].shape[1] - 1)**0.5)
    return dict(
        arch=dict(embed_dims=dims, num_layers=depth, num_heads=num_heads,
                  feedforward_channels=hidden),
        img_size=side * 16, in_channels=len(state_dict[f'{first}.norm1.weight']) // 7**2,
        token_dim=token_dim, t2t_type='performer' if performer else 'transformer',
        qkv_bias='encoder.0.attn.qkv.bias' in state_dict,
        paradigm=tuple(p for p in ('token', 'head', 'layer')
                       if f'{last}.{p}.fc.weight' in state_dict) or None)


def _plain(state_dict):
    return {key.removeprefix('module.'): value for key, value in state_dict.items()}


def _rescale_queries(key, value, state_dict):
    """Fold the authors' scale of the scores, by input channels, into the queries."""
    dims = len(value) // 3
    weight = _plain(state_dict)[re.sub(r'(weight|bias)$', 'weight', key)]
    queries, rest = value.split([dims, 2 * dims])
    return torch.cat([queries * (dims / weight.shape[1])**0.5, rest])


def _checked(converted, name):
    unknown = [key for key in converted if not _KEY.match(key)]
    if unknown:
        raise CheckpointError(f'{len(unknown)} of {len(converted)} keys are not those of {name}, '
                              f'the first being {unknown[:3]}')
    if 'cls_token' not in converted or 'encoder.0.mlp.fc1.weight' not in converted:
        raise CheckpointError('the checkpoint holds no cls_token or no first block, so it is '
                              f'not {name}')
    return converted
