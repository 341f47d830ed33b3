"""Exact work: how much a decision makes a block's program compute."""
from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from laud_mm.specs import Case, Work
from laud_mm.specs.bottleneck_program import MASKS, BottleneckRoute, lists_maps, patch_side
from laud_mm.specs.convnext_program import ConvNeXtRoute, listed_work
from laud_mm.specs.program import WHOLE
from laud_mm.specs.transformer_program import ATTENTION, MLP, TransformerRoute

from .decision import Decision, TransformerDecision, expand_patches, halo
from .transformer.run import BRANCHES, pack_tokens


def bottleneck_work(case: Case, route: BottleneckRoute,
                    decision: Decision) -> dict[str, tuple[Work, ...]]:
    """The work of a decision, as `Program.calls` takes it. Synchronises.

    Args:
        case (Case): The block's case.
        route (BottleneckRoute): The route of its program.
        decision (Decision): What it decided.
    """
    shape, batch = case.shape, case.batch
    if route.compute == 'dense':
        return {WHOLE: (Work(batch, channels=shape.width),)}
    decision = decision.map(lambda mask: mask.bool().cpu())
    patches, channels = decision.patches, decision.channels
    if patches is None:
        patches = torch.ones(batch, 1, 1, dtype=torch.bool)
    if decision.layer is not None:
        patches = patches & decision.layer[:, :, None]
    if channels is None or route.channels is None:
        channels = torch.ones(batch, shape.channel_groups if shape.channel_skipping else 1,
                              dtype=torch.bool)
    if route.channels != 'sliced':
        return {WHOLE: (_part(case, patches, channels),)}
    masks, which = channels.unique(dim=0, return_inverse=True)
    parts = []
    for i, mask in enumerate(masks):
        part = _part(case, patches[which == i], mask[None])
        sliced = not mask.all()
        parts.append(replace(
            part, sliced=float(sliced), taken=float(len(masks) > 1),
            ones=float(sliced and shape.mask_before_norm),
            spread=float(sliced and shape.groups > 1 and part.read_channels != part.channels)))
    return {WHOLE: (Work(batch),), MASKS: tuple(parts)}


def _part(case: Case, patches: Tensor, channels: Tensor) -> Work:
    """The work of listed patches (n, Hm, Wm) with channel masks (n or 1, groups)."""
    shape, side = case.shape, patch_side(case)
    positions = expand_patches(patches.float(), shape.out_size(case.in_size), side)
    mid_size = shape.mid_size(case.in_size)
    needed = int((halo(positions, mid_size, shape.stride2, shape.dilation) > 0).sum())
    if lists_maps(case):
        needed = int(patches.sum()) * math.prod(mid_size)
    active = channels.float().mean().item() * shape.width
    read = active
    if shape.groups > 1:
        groups = channels.repeat_interleave(shape.width // channels.shape[1], 1)
        read = groups.unflatten(1, (shape.groups, -1)).any(2).float().mean().item() * shape.width
    return Work(
        len(patches), patches=int(patches.sum()), computing=int(patches.flatten(1).any(1).sum()),
        positions=needed, channels=active, read_channels=read,
        some_on=float(active > 0))


def convnext_work(case: Case, route: ConvNeXtRoute,
                  decision: Decision) -> dict[str, tuple[Work, ...]]:
    """The work of a decision, see `bottleneck_work`."""
    grid = case.shape.grid_size(case.in_size) if case.shape.spatial_skipping else (1, 1)
    patches = torch.ones(case.batch, *grid, dtype=torch.bool)
    if route.compute == 'listed':
        if decision.patches is not None:
            patches &= decision.patches.bool().cpu()
        if decision.layer is not None:
            patches &= decision.layer.bool().cpu()[:, :, None]
    kept = int(patches.flatten(1).any(1).sum())
    return {WHOLE: (listed_work(case, route, kept, int(patches.sum())),)}


def whole_batch(case: Case) -> dict[str, tuple[Work, ...]]:
    """The work of a block that decides nothing and has one route."""
    return {WHOLE: (Work(case.batch),)}


def transformer_work(case: Case, route: TransformerRoute,
                     decision: TransformerDecision) -> dict[str, tuple[Work, ...]]:
    """The work of a decision, see `bottleneck_work`."""
    tokens, heads = case.in_size[0], case.shape.num_heads
    if route.compute == 'dense':
        dense = (Work(case.batch, rows=case.batch * tokens, longest=tokens, heads=heads,
                      padded=float('tokens' in route.masks)),)
        return {WHOLE: (Work(case.batch),), ATTENTION: dense, MLP: dense}
    work: dict[str, tuple[Work, ...]] = {WHOLE: (Work(case.batch),)}
    for loop, column in BRANCHES.items():
        passes = []
        for pack in pack_tokens(decision, column, (case.batch, tokens)):
            own = heads if pack.heads is None else len(pack.heads)
            rows = case.batch * tokens if pack.index is None else len(pack.index)
            longest = rows // pack.samples if pack.present is None else pack.present.shape[1]
            passes.append(Work(
                pack.samples, rows=rows, longest=longest, heads=own, some_on=float(own > 0),
                picked=float(pack.heads is not None), everything=float(pack.index is None),
                listed=float(pack.index is not None), padded=float(pack.present is not None)))
        work[loop] = tuple(passes)
    return work

