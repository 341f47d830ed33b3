"""Compare deployed networks with the skipping network that they were made of."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from laud_mm.models.backbones import LAUDBackbone


def compare(backbone: LAUDBackbone, deployed: Any, batches: Iterable[Tensor],
            decided: bool = False, run: Callable | None = None) -> dict:
    """How much a deployed backbone differs from the one that skips.

    Args:
        backbone (LAUDBackbone): In evaluation.
        deployed (DeployedBackbone): What `deploy` made of it.
        batches (Iterable[Tensor]): Images (N, C, H, W).
        decided (bool): Whether the backbone too takes for decided what `deployed` does. Else
            the result shows what specialisation changed.
        run (Callable, optional): An artefact of `deployed`, images to what it returns.

    Returns:
        dict: `images`; `largest_difference` of the outputs, relative to the largest value of
        each; `mean_difference`, the mean over images and outputs of the error's norm over the
        output's; `decisions_equal`, None where none were returned, and how many `decisions` of
        units there were and how many are `decisions_flipped`; `rate`, the mean rate of the
        blocks of `backbone`.
    """
    found: dict[str, Any] = dict(images=0, largest_difference=0.0, mean_difference=0.0,
                                 decisions_equal=None, decisions=0, decisions_flipped=0, rate=0.0)
    kept = {block.shape.name: block.kept for block in deployed.blocks()}
    fixed = {block.shape.name: block.fixed for block in deployed.blocks()}

    def override(name, decision):
        return replace(decision, **{mask: _fix(getattr(decision, mask), values)
                                    for mask, values in fixed[name].items()})

    for x in batches:
        with torch.no_grad(), torch.autocast(x.device.type, deployed.dtype,
                                             enabled=deployed.dtype != torch.float32):
            with backbone.executing(override=override if decided else None):
                expected = backbone(x)
        record: Any = backbone.record
        outputs = (run or deployed)(x)
        if deployed.with_decisions:
            outputs, own = outputs
            equal = True
            for key, mask in own.items():
                name, _, kind = key.rpartition('.')
                wanted = getattr(record.decisions[name], kind)
                if kind == 'channels' and kept[name] is not None:
                    wanted = wanted[:, list(kept[name])]
                flipped = int((mask != wanted).sum())
                found['decisions'] += mask.numel()
                found['decisions_flipped'] += flipped
                equal &= not flipped
            found['decisions_equal'] = equal and found['decisions_equal'] is not False
        found['images'] += len(x)
        found['rate'] += record.cost().mean_rate.item() * len(x)
        for y, e in zip(outputs, expected):
            e = e.to(y.dtype)
            difference = float((y - e).abs().max() / e.abs().max().clamp(min=1e-12))
            if not difference <= found['largest_difference']:  # NaN stays
                found['largest_difference'] = difference
            error, size = ((t.float().flatten(1).norm(dim=1)) for t in (y - e, e))
            found['mean_difference'] += float((error / size.clamp(min=1e-12)).sum()) / len(outputs)
    for key in ('rate', 'mean_difference'):
        found[key] /= max(found['images'], 1)
    return found


def _fix(mask, values):
    """A mask with the units that were decided for good."""
    value = mask.new_tensor([bool(v) for v in values])
    known = mask.new_tensor([v is not None for v in values])
    if len(values) == 1 and mask.dim() == 3:  # patches
        value, known = value[0], known[0]
    return torch.where(known, value, mask)
