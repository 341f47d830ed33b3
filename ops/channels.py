"""Channel skipping: compact activations and the weights of each sample's channels.

In a compact map or list of rows the active channels of a sample stand first, in
ascending order; what follows them is unspecified. `channel_index` (N, width / G)
and `channel_count` (N,) come from `compact` on the mask of groups.
"""
import torch


def channel_mask(channel_index, channel_count, group_size):
    """The mask (N, width) bool that an index and its counts describe."""
    listed = torch.arange(channel_index.shape[1], device=channel_index.device)
    listed = listed < channel_count[:, None]
    # Entries beyond the count are unspecified: they go to a column that is cut away.
    at = torch.where(listed, channel_index.long(), channel_index.shape[1])
    mask = listed.new_zeros(len(listed), channel_index.shape[1] + 1).scatter_(1, at, True)
    return mask[:, :-1].repeat_interleave(group_size, 1)


def _order(mask):
    """For each sample its active channels first, both parts ascending: (N, width) int64."""
    return torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices


def to_compact(values, samples, mask):
    """Move the active channels of rows (R, width) to the front; the others become zero.

    Args:
        values (Tensor): (R, width).
        samples (Tensor): (R,) int64, the sample of each row.
        mask (Tensor): (N, width) bool.
    """
    return (values * mask[samples]).gather(1, _order(mask)[samples])


def from_compact(values, samples, mask):
    """The reverse of `to_compact`; inactive channels become zero."""
    order = _order(mask)[samples]
    active = mask.sum(1)[samples]
    kept = torch.arange(values.shape[1], device=values.device) < active[:, None]
    values = torch.where(kept, values, 0)
    return torch.zeros_like(values).scatter(1, order, values)
