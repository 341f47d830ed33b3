"""Token gather and scatter, for token, head and branch skipping in transformers.

Layout: token maps (N, T, C) are contiguous, so a token is one row of C values
and a flat index n * T + t names it.
"""
import torch


def gather_tokens(x, index):
    """Copy some tokens of a batch.

    Args:
        x (Tensor): (N, T, C), contiguous.
        index (Tensor): (R,) int64, flat indices into N * T.

    Returns:
        Tensor: (R, C), in the order of `index`.
    """
    return x.view(-1, x.shape[-1]).index_select(0, index)


def scatter_add_tokens(out, index, rows):
    """Add rows to some tokens of a batch; in place unless gradients are recorded.

    Args:
        out (Tensor): (N, T, C), contiguous.
        index (Tensor): (R,) int64, flat indices into N * T, each at most once.
        rows (Tensor): (R, C), what is added; cast to the type of `out`.

    Returns:
        Tensor: `out`, or a new (N, T, C) when gradients are recorded.
    """
    flat, rows = out.view(-1, out.shape[-1]), rows.to(out.dtype)
    if torch.is_grad_enabled():
        return flat.index_add(0, index, rows).view(out.shape)
    flat.index_add_(0, index, rows)
    return out
