"""The run table: for every kind of step, the call that runs it.

A function takes a run (what the steps of one block on one input read and write) and the step.
Executors and profilers call through this table; families add their own kinds to it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laud_mm.specs import STEP_KINDS, Step

RUN_TABLE: dict[str, Callable[[Any, Step], None]] = {'block': lambda run, step: None}


def runs(*kinds: str) -> Callable:
    """Register what runs some kinds of step.

    Raises:
        ValueError: If `STEP_KINDS` knows no such kind.
    """
    def register(function):
        for kind in kinds:
            if kind not in STEP_KINDS:
                raise ValueError(f'kind must be one of STEP_KINDS, got {kind!r}')
            RUN_TABLE[kind] = function
        return function
    return register
