"""How the steps of a transformer block run.

Samples that a branch runs on and that keep the same heads share a `Pack`: their
active tokens, one after another, are the rows (R, C) of the linear layers.
Attention alone pads the rows of every sample to the longest.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm import ops

from ..decision import TransformerDecision
from ..run_table import runs

BRANCHES = dict(attention=0, mlp=1)  # columns of `TransformerDecision.branches`, by loop

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
    index: Tensor | None = None
    present: Tensor | None = None
    heads: Tensor | None = None


class TransformerRun:
    """What the steps of a transformer block read and write.

    Attributes:
        block (TransformerBlock): The block.
        x, identity, out (Tensor): (N, T, C), its input, and what it adds to and returns.
        normed (Tensor | None): (N, T, C), norm1 of `x` where tokens are decided by it.
        masks (dict[str, Tensor]): What the maskers decided, and their logits.
        decision (TransformerDecision): After the override.
        packs (dict[str, list[Pack]]): By branch.
    """

    def __init__(self, block, x):
        self.block, self.shape, self.x = block, block.shape, x
        self.identity = self.out = x.contiguous()
        self.normed = None
        self.masks, self.decision = {}, TransformerDecision()
        self.packs = dict.fromkeys(BRANCHES, [Pack(len(x))])

    def decided(self):
        """The masks as a decision."""
        return TransformerDecision(**self.masks)

    def parts(self, branch):
        """The packs of a branch."""
        normed = self.normed if branch == 'attention' else None
        return [PackRun(self, pack, branch, normed) for pack in self.packs[branch]]

    def finish(self, part):
        """Nothing to take over: packs write into `out` themselves."""


class PackRun:
    """One pack in one branch.

    Attributes:
        run (TransformerRun): The block's run.
        pack (Pack): The tokens.
        branch (str): A key of `BRANCHES`.
        source (Tensor): (N, T, C), what its tokens are gathered from.
        rows (Tensor): (R, C'), what the next step reads.
    """

    def __init__(self, run, pack, branch, normed=None):
        self.run, self.block, self.shape, self.pack = run, run.block, run.shape, pack
        self.everything = pack.index is None
        self.listed = not self.everything
        self.picked = pack.heads is not None
        self.some_on = not self.picked or len(pack.heads) > 0
        self.branch = branch
        self.source = run.out if normed is None else normed
        self.rows = self.source.flatten(0, 1) if self.everything else None


class TokensRun:
    """What the step that turns images into tokens reads and writes."""

    def __init__(self, net, x):
        self.net, self.x, self.out = net, x, None


@runs('tokens_to_token')
def _tokens_to_token(run, step):
    run.out = run.net.embed(run.x)


@runs('norm_map')
def _norm_map(run, step):
    run.normed = run.block.norm1(run.x)


@runs('token_masker')
def _decide_tokens(run, step):
    run.masks['tokens'] = run.block.masker.token(run.normed[:, 1:])[..., 0]


@runs('class_masker')
def _decide_by_class_token(run, step):
    run.masks.update(run.block.masker.by_class_token(step.part.removesuffix('_masker'), run.x))


@runs('list_tokens')
def _list_tokens(run, step):
    run.packs = {branch: pack_tokens(run.decision, column, run.x.shape)
                 for branch, column in BRANCHES.items()}


@runs('gather_tokens')
def _gather_tokens(part, step):
    part.rows = ops.gather_tokens(part.source, part.pack.index)


@runs('norm_rows')
def _norm_rows(part, step):
    part.rows = getattr(part.block, step.part)(part.rows)


@runs('pick_heads')
def _pick_heads(part, step):
    part.rows = _pick(part.rows, part.shape.num_heads, part.pack.heads)


@runs('linear')
def _linear_rows(part, step):
    linear, heads = part.block.get_submodule(step.part), part.pack.heads
    if step.narrow == 'out':
        part.rows = _qkv(part.rows, linear, heads, part.shape)
    else:
        part.rows = _linear(part.rows, linear, heads if step.narrow else None, part.shape)


@runs('attention')
def _attend(part, step):
    # Where all tokens are computed, those that are off must not be attended to.
    keys = part.run.decision.all_tokens.bool() if step.listed else None
    part.rows = _mix(part.rows, part.pack, part.shape.head_dims, keys)


@runs('mask_heads')
def _mask_heads(part, step):
    heads = part.run.decision.heads.to(part.rows.dtype)
    part.rows = part.rows.view(len(heads), -1, heads.shape[1], part.shape.head_dims) \
        .mul(heads[:, None, :, None]).view(part.rows.shape)


@runs('mask_tokens')
def _mask_tokens(part, step):
    decision, on = part.run.decision, 1.0
    if decision.tokens is not None:
        on = decision.all_tokens.to(part.rows.dtype)
    if decision.branches is not None:
        column = BRANCHES[part.branch]
        on = on * decision.branches[:, column:column + 1].to(part.rows.dtype)
    part.rows = part.rows.view(len(on), -1, part.rows.shape[1]).mul(on[..., None]).flatten(0, 1)


@runs('gelu')
def _gelu(part, step):
    part.rows = F.gelu(part.rows)


@runs('add_tokens')
def _add_tokens(part, step):
    part.run.out = part.run.out + part.rows.view(part.run.out.shape)


@runs('scatter_tokens')
def _scatter_tokens(part, step):
    out = part.run.out
    part.run.out = ops.scatter_add_tokens_(out, part.pack.index,
                                           part.rows.to(out.dtype))  # autocast halves rows


def pack_tokens(decision, branch, size):
    """The packs that a branch runs on a batch of `size` (N, T, C)."""
    if decision.is_static:
        return [Pack(size[0])]
    device = next(iter(decision.masks().values())).device
    on = (torch.ones(size[:2], dtype=torch.bool, device=device)
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


def _mix(qkv, pack, head_dims, keys=None):
    """Softmax attention within each sample, to the `keys`: (R, 3 * A * D) to (R, A * D)."""
    slots = None
    if keys is not None:
        keys = keys[:, None, None]
    elif pack.present is not None:
        slots = pack.present.flatten().nonzero()[:, 0]
        keys = pack.present[:, None, None]
        qkv = qkv.new_zeros(pack.present.numel(), qkv.shape[1]).index_copy(0, slots, qkv)
    tokens = len(qkv) // max(pack.samples, 1)
    q, k, v = qkv.view(pack.samples, tokens, 3, qkv.shape[1] // (3 * head_dims),
                       head_dims).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, keys)
    y = y.transpose(1, 2).flatten(2).flatten(0, 1)
    return y if slots is None else y.index_select(0, slots)


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
    if not len(heads):  # the bias is left
        rows = rows[:, :0]
    return F.linear(rows, _pick(linear.weight, shape.num_heads, heads), linear.bias)


def _pick(x, num_heads, heads):
    """The channels of some heads: (R, C) to (R, A * D)."""
    return x.unflatten(1, (num_heads, -1)).index_select(1, heads).flatten(1)
