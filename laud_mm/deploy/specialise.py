"""Specialise a block: what a profile says of a unit holds for good, the rest stays dynamic."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from laud_mm.models.dynamic import FoldedBottleneck
from laud_mm.models.dynamic.slicing import slice_channels
from laud_mm.specs import BottleneckShape
from laud_mm.specs.bottleneck import MASKS

from .modules import DeployedMasker
from .profile import ALL, UnitProfile, always, never


@dataclass(frozen=True)
class BlockParts:
    """What a deployed block is made of.

    Attributes:
        shape (BottleneckShape): Geometry, and what it still decides.
        folded (FoldedBottleneck): Its weights.
        maskers (dict[str, DeployedMasker]): By paradigm.
        removed (bool): Whether only the shortcut is left.
        kept (tuple[int, ...] | None): Channel groups that are left; None: all.
        fixed (dict[str, tuple]): What was decided for good: by mask, for each unit 1 for on, 0
            for off, None for what is still decided.
    """
    shape: BottleneckShape
    folded: FoldedBottleneck
    maskers: dict[str, DeployedMasker]
    removed: bool = False
    kept: tuple[int, ...] | None = None
    fixed: dict[str, tuple] = field(default_factory=dict)


def specialise(parts: BlockParts, profile: UnitProfile, tolerance: float) -> BlockParts:
    """Fix the units of a block that a profile saw always or never on.

    Args:
        parts (BlockParts): The block as trained.
        profile (UnitProfile): How often its units were on.
        tolerance (float): Share of images that may be missed: a unit that is on for at most
            this share is off for good, one that is off for at most this share on.

    Raises:
        ValueError: If the profile is of another net.
    """
    shape, name = parts.shape, parts.shape.name
    for paradigm in shape.paradigms:
        mask = MASKS[paradigm]
        units = shape.channel_groups if paradigm == 'channel' else 1
        rates = profile.rates(name, mask, units) or _by_block(profile, shape, units, tolerance)
        if rates is None:
            continue
        if paradigm == 'channel':
            parts = _fix_channels(parts, rates, tolerance)
        elif always(rates[0], tolerance):
            parts = _decided(parts, paradigm, (1,))
        elif never(rates[0], tolerance):
            return replace(_decided(parts, paradigm, (0,)), removed=True, maskers={},
                           shape=replace(parts.shape, paradigms=()))
    return parts


def _by_block(profile, shape, units, tolerance):
    """Rates of every unit where a report has one of the block: it tells if all are on, or off."""
    found = profile.rates(shape.name, ALL, 1)
    if found is None or not (always(found[0], tolerance) or
                             never(found[0], tolerance) and len(shape.paradigms) == 1):
        return None
    return found * units


def _decided(parts, paradigm, how):
    """A paradigm is decided for good."""
    left = tuple(p for p in parts.shape.paradigms if p != paradigm)
    return replace(parts, shape=replace(parts.shape, paradigms=left),
                   maskers={p: m for p, m in parts.maskers.items() if p != paradigm},
                   fixed={**parts.fixed, MASKS[paradigm]: how})


def _fix_channels(parts, rates, tolerance):
    on = torch.tensor([always(rate, tolerance) for rate in rates])
    off = torch.tensor([never(rate, tolerance) for rate in rates]) & ~on
    if not (on | off).any():
        return parts
    fixed = tuple(1 if a else 0 if b else None for a, b in zip(on.tolist(), off.tolist()))
    shape = parts.shape
    if bool(off.any()):
        if shape.groups > 1 or shape.mask_before_norm:
            # Their convolutions have no room for fewer channels: zeros stay.
            parts = replace(parts, folded=_silence(parts, off))
            kept = torch.arange(len(off))
        else:
            parts, kept = _prune(parts, off)
    else:
        kept = torch.arange(len(off))
    on, off = on[kept], off[kept]
    if bool((on | off).all()):
        return _decided(parts, 'channel', fixed)
    own = parts.maskers['channel']
    weight, bias = own.weight[kept].clone(), own.bias[kept].clone()
    for groups, decided in ((on, torch.inf), (off, -torch.inf)):
        weight[groups], bias[groups] = 0, decided
    return replace(parts, fixed={**parts.fixed, 'channels': fixed},
                   maskers={**parts.maskers, 'channel': own.with_difference(weight, bias)})


def _silence(parts, off):
    """Channels that are off for good write what the masks would leave there."""
    channels = off.repeat_interleave(parts.shape.channel_granularity)

    def silent(conv):
        weight, bias = conv.weight.clone(), conv.bias.clone()
        weight[channels] = 0
        if not parts.shape.mask_before_norm:
            bias[channels] = 0
        return replace(conv, weight=weight, bias=bias)
    return replace(parts.folded, conv1=silent(parts.folded.conv1),
                   conv2=silent(parts.folded.conv2))


def _prune(parts, off):
    """Leave out channels that are off for good; one group stays where all are."""
    shape = parts.shape
    if bool(off.all()):
        parts = replace(parts, folded=_silence(parts, off))
    kept = (~off).nonzero()[:, 0] if not bool(off.all()) else torch.zeros(1, dtype=torch.long)
    groups = torch.zeros(len(off), dtype=torch.bool).index_fill_(0, kept, True)
    on: Tensor = groups.repeat_interleave(shape.channel_granularity)
    whole = parts.folded
    folded = slice_channels(whole, on.to(whole.conv1.weight.device))
    return replace(parts, shape=replace(shape, width=int(on.sum())),
                   folded=replace(folded, shortcut=whole.shortcut),
                   kept=tuple(kept.tolist())), kept
