"""benchmarks.overhead: what `sample` costs outside the network, and what two of its parts cost alone.

In processor time of this process, the median of many calls: on a machine that others use, the wall clock measures the others.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import setting
from diffode import EpsModel, schedules
from solvers import SOLVERS, Budget, run, sample

Row = dict[str, object]


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        began = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times[2:])


def of_sample(nfe: int, repeats: int) -> Row:
    """sample(solver="unipc3") of 1×4×8×8 numbers with a network that costs nothing: one planning, run(), and the rest (the grid,
    the noise, the check of the result). at_most: what is asked on a quiet machine, 3 ms, or twice the planning and run()."""
    schedule, solver, x = schedules.ddpm_linear(), SOLVERS["unipc3"], torch.zeros(1, 4, 8, 8)
    model = EpsModel(lambda x, t: x, schedule, "data")
    plan = solver.prepare(Budget(nfe), schedule).plan
    assert plan is not None
    planning = milliseconds(lambda: solver.plan(plan.grid, schedule), repeats)
    running = milliseconds(lambda: run(plan, model, x), repeats)
    whole = milliseconds(lambda: sample(model, solver="unipc3", nfe=nfe, shape=(1, 4, 8, 8)), repeats)
    return {
        "nfe": nfe,
        "sample_ms": round(whole, 2),
        "planning_ms": round(planning, 2),
        "run_ms": round(running, 2),
        "rest_ms": round(whole - planning - running, 2),
        "at_most_ms": 3.0 if nfe <= 10 else round(2 * planning + running, 2),
    }


def of_adaptive(batch: int, repeats: int) -> Row:
    """dpm23 on a batch, with a network that costs little: its time outside the network, and with the plans of all samples, which
    are made when they are asked for."""
    inside = 0.0

    def network(x: Tensor, lam: Tensor) -> Tensor:
        nonlocal inside
        began = time.process_time()
        out = x * torch.rsqrt(1 + lam.view(-1, 1, 1, 1).square())
        inside += time.process_time() - began
        return out

    model = EpsModel(network, schedules.ddpm_linear(), clock="lam")

    def outside(*, plans: bool) -> float:
        nonlocal inside
        times = []
        for _ in range(repeats):
            inside, began = 0.0, time.process_time()
            result = sample(model, solver="dpm23", shape=(batch, 1, 4, 4), rtol=0.05, atol=0.05)
            assert result.adaptive is not None
            if plans:
                assert len(result.adaptive.plans) == batch
            times.append(1e3 * (time.process_time() - began - inside))
        return statistics.median(times)

    alone, with_plans = outside(plans=False), outside(plans=True)
    return {
        "solver": "dpm23",
        "batch": batch,
        "outside_the_network_ms": round(alone, 1),
        "with_all_plans_ms": round(with_plans, 1),
        "ratio": round(with_plans / alone, 2),
    }


def of_copying(shape: tuple[int, ...], repeats: int) -> Row:
    """run() of ddim where the network's output has memory of its own and is kept, and where it lies in x and must be copied."""
    plan, copied = setting("ddim", 20)
    x = torch.randn(shape)
    outputs = itertools.cycle([torch.randn(shape) for _ in range(plan.memory + 2)])
    kept = copied.replace(network=lambda x, t: next(outputs))
    times = [milliseconds(lambda model=model: run(plan, model, x), repeats) / plan.nfe for model in (kept, copied)]  # type: ignore[misc]
    return {
        "output": "×".join(map(str, shape)),
        "kept_ms_per_nfe": round(times[0], 3),
        "copied_ms_per_nfe": round(times[1], 3),
        "ratio": round(float(np.divide(times[1], times[0])), 2),
    }


def tables(repeats: int, fast: bool) -> dict[str, list[Row]]:
    """The rows of all three, by name."""
    return {
        "sample": [of_sample(nfe, repeats) for nfe in (10, 50)],
        "adaptive": [of_adaptive(4 if fast else 256, 1 if fast else 5)],
        "copying": [of_copying((1, 1, 8, 8) if fast else (16, 3, 256, 256), repeats)],
    }
