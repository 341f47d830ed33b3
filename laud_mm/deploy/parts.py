"""What deploying shares between families."""
from __future__ import annotations

from typing import Any

from .modules import DeployedMasker


def deploy_maskers(maskers: Any) -> dict[str, DeployedMasker]:
    """The maskers of a block, by paradigm; none where it has none."""
    made = {}
    differences = {} if maskers is None else maskers.differences()
    for name, (weight, bias) in differences.items():
        weight, bias, masker = weight.clone(), bias.clone(), getattr(maskers, name)
        inner = masker.inner() if name == 'channel' else None
        made[name] = DeployedMasker(
            weight, bias, getattr(masker, 'window', None), getattr(masker, 'kind', None),
            inner and tuple(t.detach().clone() for t in inner))
    return made


def check_plain(name: str, reason: str | None) -> None:
    """Refuse modules that are not as they were built.

    Raises:
        ValueError: If there is a reason to.
    """
    if reason is not None:
        raise ValueError(f'{name} must be as it was built, in evaluation and without hooks, to '
                         f'be deployed: {reason}')
