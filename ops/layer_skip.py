"""Sample gather and scatter, for layer skipping.

Layout: maps are channels-last, so a sample is one contiguous row and a gather
is a copy of whole rows.
"""
import torch
import torch.nn.functional as F


def _sample_rows(x):
    """View a channels-last map (N, C, H, W) as (N, H*W*C)."""
    return x.permute(0, 2, 3, 1).view(x.shape[0], -1)


def gather_samples(x, samples):
    """Copy some samples of a map.

    Args:
        x (Tensor): (N, C, H, W), channels-last.
        samples (Tensor): (P,) int64 indices into N.

    Returns:
        Tensor: (P, C, H, W), channels-last.
    """
    rows = _sample_rows(x).index_select(0, samples)
    n, c, h, w = x.shape
    return rows.view(samples.numel(), h, w, c).permute(0, 3, 1, 2)


def add_relu_samples(out, identity, samples, residual):
    """Write relu(identity + residual) to some samples; in place unless gradients are recorded.

    Args:
        out (Tensor): (N, C, H, W), channels-last; may be `identity` itself.
        identity (Tensor): (N, C, H, W), channels-last.
        samples (Tensor): (P,) int64 indices into N, each at most once.
        residual (Tensor): (P, C, H, W).

    Returns:
        Tensor: `out`, or a new map when gradients are recorded.
    """
    residual = residual.to(out.dtype)
    if torch.is_grad_enabled():
        return out.index_copy(0, samples, F.relu(identity.index_select(0, samples) + residual))
    if out.device.type == 'cpu':
        # Sample by sample: index_copy_ takes twice as long, and this needs no gather.
        for sample, values in zip(samples.tolist(), residual):
            torch.add(identity[sample], values, out=out[sample]).relu_()
        return out
    values = gather_samples(identity, samples).add_(residual).relu_()
    _sample_rows(out).index_copy_(0, samples, _sample_rows(values))
    return out
