"""The run table: for every kind of step, the call that runs it.

A function takes a run (what the steps of one block on one input read and write) and the step.
Executors and profilers call through this table; families add their own kinds to it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from laud_mm.specs import Step
from laud_mm.specs.steps import register_kinds

RUN_TABLE: dict[str, Callable[[Any, Step], None]] = {'block': lambda run, step: None}


def runs(*kinds: str) -> Callable:
    """Register what runs some kinds of step, see `register_kinds`."""
    return register_kinds(RUN_TABLE, kinds)
