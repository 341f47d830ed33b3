"""Sample gather and add, for layer skipping around library convolutions.

Layout: maps are channels-last, so a sample is one contiguous row and a gather
is a copy of whole rows.
"""
import torch
import torch.nn.functional as F

from .library import op


def _sample_rows(x):
    """View a channels-last map (N, C, H, W) as (N, H*W*C)."""
    return x.permute(0, 2, 3, 1).view(x.shape[0], -1)


def _fake_gather(x, samples):
    return torch.empty((len(samples), *x.shape[1:]), dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last)


@op('(Tensor x, Tensor samples) -> Tensor', fake=_fake_gather)
def gather_samples(x, samples):
    """Copy some samples of a map.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        samples (Tensor): (P,) int64 indices into N.

    Returns:
        Tensor: (P, C, H, W), channels-last.
    """
    rows = _sample_rows(x).index_select(0, samples)
    _, c, h, w = x.shape
    return rows.view(samples.numel(), h, w, c).permute(0, 3, 1, 2)


@op('(Tensor(a!) out, Tensor identity, Tensor samples, Tensor residual) -> ()')
def add_relu_samples_(out, identity, samples, residual):
    """Write relu(identity + residual) to some samples.

    Where gradients are recorded a copy is written instead of `out`.

    Args:
        out (Tensor): (N, C, H, W), channels-last; may be `identity` itself.
        identity (Tensor): (N, C, H, W), channels-last.
        samples (Tensor): (P,) int64 indices into N, each at most once.
        residual (Tensor): (P, C, H, W), channels-last.

    Returns:
        Tensor: What was written to.
    """
    values = F.relu(identity.index_select(0, samples) + residual)
    out.index_copy_(0, samples, values.to(out.dtype))
