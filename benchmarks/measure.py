"""What the benchmarks share: a network that costs nothing, what a plan's rows touch, clocks, and rows as a Markdown table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from diffode import EpsModel, schedules
from solvers import SOLVERS, Plan

STEPS = 30


def setting(name: str, steps: int) -> tuple[Plan, EpsModel]:
    """A plan, and a model whose network costs nothing and predicts what the plan wants."""
    schedule = schedules.ddpm_linear()
    plan = SOLVERS[name].plan(np.linspace(schedule.lam_min, schedule.lam_max, steps + 1), schedule)
    return plan, EpsModel(lambda x, t: x, schedule, plan.prediction)


def touched(plan: Plan) -> float:
    """Tensors of the state's size that an evaluation must read or write: a term of a row is one read, a row one write; storing
    an evaluation is a read and a write, since the network of `setting` returns memory that the loop will write to."""
    reads = sum(bool(stage.x) + len(stage.c) for stage in plan.stages[1:])
    return (reads + len(plan.stages) - 1 + 2 * plan.nfe) / plan.nfe


def seconds(function: Callable[[], object], device: str) -> float:
    """Seconds of one call, until the device has finished."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def median_seconds(function: Callable[[], object], device: str, repeats: int, warm_up: int = 2) -> float:
    """Median seconds of a call, after calls that warm up."""
    for _ in range(warm_up):
        function()
    return statistics.median(seconds(function, device) for _ in range(repeats))


def size(shape: Sequence[int]) -> str:
    """A shape as text."""
    return "×".join(map(str, shape))


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a table; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("_", " ") for cell in line) + " |" for line in lines) + "\n"
