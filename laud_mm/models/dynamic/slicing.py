"""Slicing: the weights that a block's active channels need (method, sections 1 and 4)."""
from dataclasses import replace

import torch
import torch.nn.functional as F

from .folding import FoldedBottleneck, FoldedConv


def slice_channels(folded, on, mask_before_norm=False):
    """Keep the active channels of the bottleneck width.

    Args:
        folded (FoldedBottleneck): The whole block.
        on (Tensor): (width,) bool, the active channels.
        mask_before_norm (bool): Whether masks act before the norm; only for a
            conv2 without groups and no excitation after it.

    Returns:
        FoldedBottleneck: The residual branch on the active channels.
    """
    active = on.nonzero()[:, 0]
    if folded.conv2.groups > 1:
        return _slice_grouped(folded, on, active)
    conv1, conv3 = _outputs(folded.conv1, active), _inputs(folded.conv3, active)
    conv2 = _outputs(folded.conv2, active)
    if mask_before_norm:
        return _slice_before_norm(folded, ~on, conv1, conv2, conv3)
    return FoldedBottleneck(conv1, _inputs(conv2, active), conv3,
                            excitation=_excitation(folded, active))


def _slice_before_norm(folded, off, conv1, conv2, conv3):
    """Fold in what inactive channels leave behind.

    With masks before the norm, an inactive channel is not zero but the
    constant relu(norm(0)), which is relu of its folded bias. What it adds to
    conv2 is a convolution of a map of ones (so borders come out right), and
    to conv3 a bias.
    """
    inactive = off.nonzero()[:, 0]
    constant1, constant2 = (F.relu(c.bias.index_select(0, inactive))
                    for c in (folded.conv1, folded.conv2))
    taps = conv2.weight.index_select(1, inactive) * constant1[:, None, None]
    weight2 = torch.cat([conv2.weight.index_select(1, (~off).nonzero()[:, 0]),
                         taps.sum(1, keepdim=True)], 1)
    bias3 = conv3.bias + folded.conv3.weight.index_select(1, inactive)[:, :, 0, 0] @ constant2
    return FoldedBottleneck(conv1, FoldedConv(_channels_last(weight2), conv2.bias),
                            FoldedConv(conv3.weight, bias3), ones_channel=True)


def _slice_grouped(folded, on, active):
    """Keep conv2's groups that have an active channel, whole.

    A grouped convolution needs groups of equal width, so conv1's active
    channels are spread over the kept groups, with zeros between them.
    """
    per_group = on.view(folded.conv2.groups, -1)
    read = per_group.any(1).repeat_interleave(per_group.shape[1]).nonzero()[:, 0]
    conv2 = replace(_outputs(folded.conv2, read), groups=len(read) // per_group.shape[1])
    sliced = replace(folded, conv1=_outputs(folded.conv1, active), conv2=conv2,
                     conv3=_inputs(folded.conv3, active), shortcut=None,
                     excitation=_excitation(folded, active))
    if len(read) == len(active):
        return sliced
    # Zeros are read from one more output of conv1, the last, whose weights are zero.
    conv1 = FoldedConv(F.pad(sliced.conv1.weight, (0, 0, 0, 0, 0, 0, 0, 1)),
                       F.pad(sliced.conv1.bias, (0, 1)))
    place = torch.where(on, on.cumsum(0) - 1, len(active))
    return replace(sliced, conv1=conv1, spread=place.index_select(0, read),
                   kept=on.index_select(0, read).nonzero()[:, 0])


def _outputs(conv, channels):
    """The part of a convolution that writes some channels."""
    return FoldedConv(conv.weight.index_select(0, channels), conv.bias.index_select(0, channels))


def _inputs(conv, channels):
    """The part of a convolution that reads some channels."""
    return FoldedConv(_channels_last(conv.weight.index_select(1, channels)), conv.bias)


def _excitation(folded, channels):
    return folded.excitation and folded.excitation.select(channels)


def _channels_last(weight):
    return weight.contiguous(memory_format=torch.channels_last)
