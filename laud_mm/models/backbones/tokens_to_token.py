"""The tokens-to-token module: an image becomes tokens (T2T-ViT, section 3.1)."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from laud_mm.framework import BaseModule
from laud_mm.models.dynamic.plain import plain
from laud_mm.models.dynamic.precision import no_autocast
from laud_mm.models.dynamic.transformer import attend
from laud_mm.specs.arguments import check_choice
from laud_mm.specs.t2t_vit import SOFT_SPLITS, T2T_TYPES


@plain
class Attention(nn.Module):
    """Multi-head attention whose tokens and heads may be masked.

    Args:
        in_channels (int): Channels of the tokens read.
        embed_dims (int): Channels of the tokens written.
        num_heads (int): Heads.
        qkv_bias (bool): Whether queries, keys and values have a bias.
        attn_drop_rate (float): Dropout of the attention weights.
        drop_rate (float): Dropout of the output.
    """

    def __init__(self, in_channels, embed_dims, num_heads=1, qkv_bias=False, attn_drop_rate=0.,
                 drop_rate=0.):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(in_channels, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.drop_rate = attn_drop_rate
        self.proj_drop = nn.Dropout(drop_rate)

    def why_not_plain(self):
        """See the function of that name."""
        return 'drops: it is in training mode' if self.training and self.drop_rate else None

    def forward(self, x, channels=None, tokens=None):
        """(N, T, C) to (N, T, embed_dims).

        Args:
            x (Tensor): Normed tokens.
            channels (Tensor, optional): (N, 1, C), 1 in channels of heads that are on.
            tokens (Tensor, optional): (N, T), 1 where a token is on: others are not attended to.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, tokens, self.drop_rate if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)
        # A head that is off reaches the rest of the net through here only.
        return self.proj_drop(self.proj(y if channels is None else y * channels))


@plain
class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        embed_dims (int): Channels of a token.
        hidden (int): Channels between the layers.
        drop_rate (float): Dropout after each layer.
    """

    def __init__(self, embed_dims, hidden, drop_rate=0.):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden)
        self.fc2 = nn.Linear(hidden, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Performer(nn.Module):
    """A layer whose attention costs linear time: positive random features.

    Queries and keys x become exp(w x - |x|^2 / 2) / sqrt(m); the skip goes from
    the values, because the input has other channels.

    Args:
        in_channels (int): Channels of the tokens read.
        embed_dims (int): Channels of the tokens written.
        drop_rate (float): Dropout in training; T2T-ViT's is 0.1.
    """
    EPSILON = 1e-8

    def __init__(self, in_channels, embed_dims, drop_rate=0.1):
        super().__init__()
        features = embed_dims // 2
        self.norm1 = nn.LayerNorm(in_channels)
        self.kqv = nn.Linear(in_channels, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = nn.Sequential(nn.Linear(embed_dims, embed_dims), nn.GELU(),
                                 nn.Linear(embed_dims, embed_dims), nn.Dropout(drop_rate))
        # The directions are drawn once and stay: they belong to the weights.
        self.register_buffer('w', nn.init.orthogonal_(torch.empty(features, embed_dims))
                             * math.sqrt(features))

    def forward(self, x):
        """(N, T, C) to (N, T, embed_dims)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        y = v + self.drop(self.proj(self._attend(k, q, v).to(v.dtype)))
        return y + self.mlp(self.norm2(y))

    def _attend(self, k, q, v):
        # The exponents overflow in half precision.
        wide = torch.promote_types(v.dtype, torch.float32)
        with no_autocast(v.device):
            k, q, v, w = (t.to(wide) for t in (k, q, v, self.w))
            k, q = (torch.exp(F.linear(t, w) - t.square().sum(-1, keepdim=True) / 2)
                    / math.sqrt(len(w)) for t in (k, q))
            return q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + self.EPSILON)


class TokenTransformer(nn.Module):
    """The transformer layer of T2T-ViT-t's module: one head, skip from the values.

    Scores are scaled by embed_dims ** -0.5. The authors scale
    by in_channels ** -0.5; converting their checkpoints folds the ratio into the queries.

    Args:
        in_channels (int): Channels of the tokens read.
        embed_dims (int): Channels of the tokens written.
    """

    def __init__(self, in_channels, embed_dims):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels)
        self.attn = Attention(in_channels, embed_dims)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, embed_dims)

    def forward(self, x):
        """(N, T, C) to (N, T, embed_dims)."""
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, -1)
        y = v + self.attn.proj(F.scaled_dot_product_attention(q, k, v))
        return y + self.mlp(self.norm2(y))


class TokensToToken(BaseModule):
    """Three soft splits (overlapping windows, unfolded), a layer after each of the first two.

    Args:
        in_channels (int): Channels of the images.
        token_dim (int): Channels of the layers' tokens.
        embed_dims (int): Channels of the tokens written.
        t2t_type (str): Layers: 'performer', or 'transformer' (T2T-ViT-t).
    """

    def __init__(self, in_channels, token_dim, embed_dims, t2t_type='performer'):
        super().__init__()
        layer = {'performer': Performer, 'transformer': TokenTransformer}[
            check_choice('t2t_type', t2t_type, T2T_TYPES)]
        first, second, third = (window**2 for window, _, _ in SOFT_SPLITS)
        self.attention1 = layer(in_channels * first, token_dim)
        self.attention2 = layer(token_dim * second, token_dim)
        self.project = nn.Linear(token_dim * third, embed_dims)

    def forward(self, x):
        """Images (N, in_channels, H, W) to tokens (N, T, embed_dims)."""
        for (window, stride, padding), layer in zip(
                SOFT_SPLITS, (self.attention1, self.attention2, self.project)):
            size = [(n + 2 * padding - window) // stride + 1 for n in x.shape[-2:]]
            tokens = layer(F.unfold(x, window, padding=padding, stride=stride).transpose(1, 2))
            x = tokens.transpose(1, 2).unflatten(2, size)
        return tokens
