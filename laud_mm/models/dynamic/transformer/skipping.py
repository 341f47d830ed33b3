"""Skipping executor of a transformer block: computes only what the decision turns on.

Samples that a branch runs on and that keep the same heads share a `Pack`: their
active tokens, one after another, are the rows (R, C) of the linear layers.
Attention alone pads the rows of every sample to the longest.
"""
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm import ops

ATTENTION, MLP = range(2)  # columns of `TransformerDecision.branches`


@dataclass(frozen=True)
class Pack:
    """Active tokens of samples that keep the same heads, sample after sample.

    Attributes:
        samples (int): n.
        index (Tensor | None): (R,) int64, flat indices into N * T; None: all tokens.
        present (Tensor | None): (n, longest) bool, where a padded row holds a
            token; None: the samples have equally many.
        heads (Tensor | None): (A,) int64, the heads kept; None: all.
    """
    samples: int
    index: Optional[Tensor] = None
    present: Optional[Tensor] = None
    heads: Optional[Tensor] = None


def run_skipping(block, x, normed, decision):
    """Run a transformer block on the active units only.

    Args:
        block (TransformerBlock): The block, in evaluation.
        x (Tensor): (N, T, C), its input. It becomes the output, in place, where
            the block allows it and no gradients are recorded.
        normed (Tensor | None): (N, T, C), norm1 of `x` where it is known already.
        decision (TransformerDecision): What to compute.

    Returns:
        Tensor: (N, T, C), the block's output.
    """
    out = x.contiguous()
    if out is x and not (block.owns_input or decision.is_static or torch.is_grad_enabled()):
        out = x.clone()
    for pack in _packs(decision, ATTENTION, x.shape):
        rows = block.norm1(_gather(out, pack)) if normed is None else _gather(normed, pack)
        out = _add(out, pack, _attend(block, rows, pack))
    for pack in _packs(decision, MLP, x.shape):
        rows = block.norm2(_gather(out, pack))
        if pack.heads is not None:
            rows = _pick(rows, block.shape.num_heads, pack.heads)
        hidden = F.gelu(_linear(rows, block.mlp.fc1, pack.heads, block.shape))
        out = _add(out, pack, block.mlp.fc2(hidden))
    return out


def _packs(decision, branch, size):
    """The packs that a branch runs on a batch of `size` (N, T, C)."""
    if decision.is_static:
        return [Pack(size[0])]
    some = next(iter(decision.masks().values()))
    on = (torch.ones(size[:2], dtype=torch.bool, device=some.device)
          if decision.tokens is None else decision.all_tokens.bool())
    if decision.branches is not None:
        on = on & decision.branches[:, branch, None].bool()
    if decision.heads is None:
        return _pack(on)
    packs = []
    masks, which = decision.heads.bool().unique(dim=0, return_inverse=True)
    for i, mask in enumerate(masks):
        heads = None if mask.all() else mask.nonzero()[:, 0]
        packs += _pack(on & (which == i)[:, None], heads)
    return packs


def _pack(on, heads=None):
    """Pack the tokens that are `on` (N, T): a list of one, or of none if none are."""
    lengths = on.sum(1)
    lengths = lengths[lengths > 0]  # the class token stands for its sample
    if not len(lengths):
        return []
    longest, present = int(lengths.max()), None
    if longest * len(lengths) > int(lengths.sum()):
        present = torch.arange(longest, device=on.device) < lengths[:, None]
    index = on.flatten().nonzero()[:, 0]
    return [Pack(len(lengths), None if len(index) == on.numel() else index, present, heads)]


def _gather(x, pack):
    return x.flatten(0, 1) if pack.index is None else ops.gather_tokens(x, pack.index)


def _add(out, pack, rows):
    if pack.index is None:
        return out + rows.view(out.shape)
    return ops.scatter_add_tokens_(out, pack.index, rows.to(out.dtype))  # autocast halves rows


def _attend(block, rows, pack):
    """The attention branch on rows (R, C) of norm1's output."""
    shape = block.shape
    mixed = _qkv(rows, block.attn.qkv, pack.heads, shape)
    if mixed.shape[1]:  # else no head is on: the projection's bias is left
        mixed = _mix(mixed, pack, shape.head_dims)
    return _linear(mixed, block.attn.proj, pack.heads, shape)


def _mix(qkv, pack, head_dims):
    """Softmax attention within each sample: (R, 3 * A * D) to (R, A * D)."""
    keys = None
    if pack.present is not None:
        slots = pack.present.flatten().nonzero()[:, 0]
        keys = pack.present[:, None, None]
        qkv = qkv.new_zeros(pack.present.numel(), qkv.shape[1]).index_copy(0, slots, qkv)
    q, k, v = qkv.view(pack.samples, -1, 3, qkv.shape[1] // (3 * head_dims),
                       head_dims).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, keys)
    y = y.transpose(1, 2).flatten(2).flatten(0, 1)
    return y if keys is None else y.index_select(0, slots)


def _qkv(rows, qkv, heads, shape):
    """Queries, keys and values of some heads: (R, 3 * A * D)."""
    if heads is None:
        return qkv(rows)
    weight, bias = (None if p is None else p.unflatten(0, (3, shape.num_heads, -1))
                    .index_select(1, heads).flatten(0, 2) for p in (qkv.weight, qkv.bias))
    return F.linear(rows, weight, bias)


def _linear(rows, linear, heads, shape):
    """A linear layer of which the inputs of some heads are left, (R, A * D)."""
    if heads is None:
        return linear(rows)
    return F.linear(rows, _pick(linear.weight, shape.num_heads, heads), linear.bias)


def _pick(x, num_heads, heads):
    """The channels of some heads: (R, C) to (R, A * D)."""
    return x.unflatten(1, (num_heads, -1)).index_select(1, heads).flatten(1)
