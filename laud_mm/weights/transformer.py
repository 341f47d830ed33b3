"""Keys of T2T-ViTs: mmpretrain's become ours."""
import re

import torch

_MMPRETRAIN = (
    (re.compile(r'\bln([12])\.'), r'norm\1.'),
    (re.compile(r'\bffn\.layers\.0\.0\.'), 'mlp.fc1.'),
    (re.compile(r'\bffn\.layers\.1\.'), 'mlp.fc2.'),
)
T2T = 'tokens_to_token'
QKV = re.compile(r'\.attn\.qkv\.(weight|bias)$')


def adapt_mmpretrain(state_dict, head_dims, token_dim):
    """Make the state dict of an mmpretrain `T2T_ViT` ours, with mmpretrain's numbers.

    mmpretrain 1.x multiplies the scores of attention by the square root of the
    channels per head, where we (and T2T-ViT) divide by it; the queries take up the
    difference. Weights that were trained with mmcls 0.x, such as the released
    ones, scaled them as T2T-ViT does: see `convert_mmcls_t2t_vit`.

    Args:
        state_dict (dict[str, Tensor]): Keys of the backbone, mmpretrain's or ours.
        head_dims (int): Channels per head of the blocks.
        token_dim (int): Channels of the tokens-to-token module's layers.

    Returns:
        dict[str, Tensor]: Keys of `LAUDT2TViT`; as it was if no key is mmpretrain's.
    """
    renamed = {rename_mmpretrain(key): value for key, value in state_dict.items()}
    if set(renamed) == set(state_dict):
        return state_dict
    return {key: scale_queries(value, token_dim if key.startswith(T2T) else head_dims)
            if QKV.search(key) else value for key, value in renamed.items()}


def rename_mmpretrain(key):
    """One of our keys for one of mmpretrain's."""
    for pattern, replacement in _MMPRETRAIN:
        key = pattern.sub(replacement, key)
    return key


def scale_queries(qkv, factor):
    """Scale the queries' third of a joint weight or bias."""
    queries, rest = qkv.split([len(qkv) // 3, 2 * (len(qkv) // 3)])
    return torch.cat([queries * factor, rest])
