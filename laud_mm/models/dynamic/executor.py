"""The executor: runs the program of a block, step by step, by the run table."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from laud_mm.specs import Loop

from .execution import Execution
from .run_table import RUN_TABLE


def run_program(block: Any, x: Tensor, execution: Execution, weights: Any,
                owns_input: bool = False, sums: Any = None) -> tuple[Tensor, Any, Any]:
    """Decide and compute what a block's program says; nothing that is off is computed.

    Args:
        block (DynamicBlock): In evaluation.
        x (Tensor): Its input.
        execution (Execution): How decisions are made, and the plan that picks programs.
        weights: What the block's `weights()` made of its modules.
        owns_input (bool): Whether `x` may be written over; only done where no gradients are
            recorded.
        sums (MapSums | None): Of `x`, where they are known; they may be written over.

    Returns:
        tuple[Tensor, Masks, MapSums | None]: The output, the decision, and the sums of the
        output.

    Raises:
        RuntimeError: If the block cannot skip exactly what it decides on.
    """
    static = execution.static or block.masker is None
    plan = execution.plan if execution.mode == 'auto' else None
    case, program = block.program(x, static, plan, owns_input)
    run, clock = block.start(x, static, weights), execution.clock
    run.sums = sums
    run_steps(run, program.deciding, clock)
    if not static:
        run.decision = execution.decide(block.shape.name, run.decided())
        if plan is not None:
            program = plan.after_decision(case, program, run.decision, x)
    for item in program.computing:
        if isinstance(item, Loop):
            for part in run.parts(item.name):
                run_steps(part, item.steps, clock)
                run.finish(part)
        else:
            run_steps(run, (item,), clock)
    return run.out, run.decision, run.sums


def run_steps(run: Any, steps: Any, clock: Any = None) -> None:
    """Run steps by the run table; a clock runs them in its own way, to time them."""
    for step in steps:
        if not step.when or getattr(run, step.when):
            if clock is None:
                RUN_TABLE[step.kind](run, step)
            else:
                clock.run(step, run)
