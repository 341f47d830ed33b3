"""Token gather and scatter, for the transformer.

Layout: (N, T, C) contiguous, so a token is one contiguous row of C values.
"""
from .library import op


@op('(Tensor x, Tensor index) -> Tensor',
    fake=lambda x, index: x.new_empty(index.shape[0], x.shape[2]))
def gather_tokens(x, index):
    """Copy some tokens.

    Args:
        x (Tensor): (N, T, C).
        index (Tensor): (R,) int64, flat indices into N * T.

    Returns:
        Tensor: (R, C).
    """
    return x.flatten(0, 1).index_select(0, index)


@op('(Tensor(a!) out, Tensor index, Tensor rows) -> ()')
def scatter_add_tokens_(out, index, rows):
    """Add rows to some tokens.

    Where gradients are recorded a copy is written instead of `out`.

    Args:
        out (Tensor): (N, T, C).
        index (Tensor): (R,) int64, flat indices into N * T, each at most once.
        rows (Tensor): (R, C).

    Returns:
        Tensor: What was written to.
    """
    out.view(-1, out.shape[2]).index_add_(0, index, rows)
