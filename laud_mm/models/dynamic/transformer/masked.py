"""Masked executor of a transformer block: dense x mask. Differentiable; computes everything."""
import math

import torch.nn.functional as F

from ..plain import differentiating_forward


def run_masked(block, x, normed, decision):
    """Run a transformer block densely and multiply by the decision's masks.

    Args:
        block (TransformerBlock): The block.
        x (Tensor): (N, T, C), its input.
        normed (Tensor | None): (N, T, C), norm1 of `x` where it is known already.
        decision (TransformerDecision): What counts as computed.

    Returns:
        Tensor: (N, T, C), the block's output.
    """
    decision = decision.map(lambda mask: mask.to(x.dtype))
    channels = None
    if decision.heads is not None:
        channels = decision.heads.repeat_interleave(block.shape.head_dims, 1)[:, None]

    y = block.attn(block.norm1(x) if normed is None else normed, channels, decision.all_tokens)
    x = x + block.drop_path(_keep(y, decision, 0))
    y = block.mlp(_times(block.norm2(x), channels))
    return x + block.drop_path(_keep(y, decision, 1))


def attend(q, k, v, tokens, drop_rate):
    """Softmax attention (N, heads, T, D) to the `tokens` (N, T) that are on."""
    if not differentiating_forward() and (tokens is None or not tokens.requires_grad):
        keys = None if tokens is None else tokens.bool()[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, keys, drop_rate)
    tokens = q.new_ones(()) if tokens is None else tokens[:, None, None].to(q.dtype)
    scores = q @ k.transpose(-2, -1) * q.shape[-1]**-0.5
    top = scores.detach().masked_fill(tokens == 0, -math.inf).amax(-1, keepdim=True)
    # Tokens that are off get a finite weight times 0, so that their gradient says
    # what attending to them would have changed.
    weights = (scores - top).clamp(max=0).exp() * tokens
    weights = weights / weights.sum(-1, keepdim=True)
    return F.dropout(weights, drop_rate).to(v.dtype) @ v


def _keep(y, decision, branch):
    """Zero what is off in a branch's output (N, T, C)."""
    if decision.tokens is not None:
        y = y * decision.all_tokens[..., None]
    if decision.branches is not None:
        y = y * decision.branches[:, branch, None, None]
    return y


def _times(y, mask):
    return y if mask is None else y * mask
