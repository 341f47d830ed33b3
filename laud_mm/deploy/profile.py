"""Profiles: how often every unit of a network was on over a set of images."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laud_mm.utils.files import write_json

FORMAT, VERSION = 'laud_mm profile', 1
ALL = 'all'  # rate of a block whose masks are not told apart
_ROUNDING = 1e-9  # of a mean over many images


@dataclass(frozen=True)
class UnitProfile:
    """Shares of images in which units were on.

    Attributes:
        images (int): Images seen.
        blocks (dict[str, dict[str, tuple[float, ...]]]): By block, by mask ('layer', 'patches',
            'channels'): one rate per unit. Patches, whose number changes with the image, are
            one unit. A report of the latency hook knows blocks only: `ALL`, one rate.
    """
    images: int
    blocks: Mapping[str, Mapping[str, tuple[float, ...]]]

    @classmethod
    def measure(cls, backbone: Any, batches: Iterable[Tensor]) -> UnitProfile:
        """Run images through a LAUD backbone.

        Args:
            backbone (LAUDBackbone): In evaluation.
            batches (Iterable[Tensor]): Images (N, C, H, W).

        Raises:
            ValueError: If there is no image, or the backbone is in training mode.
        """
        if backbone.training:
            raise ValueError('backbone must be in evaluation to be profiled: call eval()')
        images = 0
        sums: dict[str, dict[str, Any]] = {}
        for x in batches:
            with torch.no_grad():
                backbone(x)
            images += len(x)
            for name, decision in backbone.record.decisions.items():
                own = sums.setdefault(name, {})
                for mask, value in decision.masks().items():
                    share = value.double().flatten(1)
                    share = share.mean(1, keepdim=True) if mask == 'patches' else share
                    own[mask] = own.get(mask, 0) + share.sum(0).cpu()
        if not images:
            raise ValueError('a profile needs at least one image, got none')
        return cls(images, {name: {mask: tuple((total / images).tolist())
                                   for mask, total in own.items()} for name, own in sums.items()})

    def save(self, path: str | Path) -> None:
        """Write the profile, complete or not at all."""
        write_json(dict(format=FORMAT, version=VERSION, images=self.images, blocks=self.blocks),
                   path)

    def rates(self, block: str, mask: str, units: int) -> tuple[float, ...] | None:
        """How often each unit of a mask was on; None: not known.

        Raises:
            ValueError: If the profile is of a block of another shape.
        """
        own = self.blocks.get(block)
        if own is None:
            raise ValueError(f'profile must have every block of the net, got none of {block}')
        found = own.get(mask)
        if found is not None and len(found) != units:
            raise ValueError(f'profile must have {units} {mask} of {block}, got {len(found)}')
        return found


def load_profile(path: str | Path) -> UnitProfile:
    """Read a file of `UnitProfile.save`, or a report of the latency hook.

    Raises:
        ValueError: If it is neither.
    """
    wanted = 'profile must be a file of UnitProfile.save or a report of LatencyHook'
    try:
        content = json.loads(Path(path).read_text())
        if content.get('format') == FORMAT:
            if content['version'] != VERSION:
                raise ValueError(f'version must be {VERSION}, got {content["version"]!r}')
            blocks = {name: {mask: tuple(map(_rate, rates)) for mask, rates in own.items()}
                      for name, own in content['blocks'].items()}
        else:
            blocks = {block['name']: {ALL: (_rate(block['rate']),)}
                      for block in content['blocks']}
        return UnitProfile(int(content['images']), blocks)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'{wanted}, got {str(path)!r}: {error!r}') from error


def _rate(value):
    if not isinstance(value, (int, float)) or not 0 <= value <= 1 + _ROUNDING:
        raise ValueError(f'rates must be from 0 to 1, got {value!r}')
    return float(value)


def always(rate: float, tolerance: float) -> bool:
    """Whether a unit counts as on for every image."""
    return rate >= 1 - tolerance - _ROUNDING


def never(rate: float, tolerance: float) -> bool:
    """Whether a unit counts as on for no image."""
    return rate <= tolerance + _ROUNDING * (tolerance > 0)
