"""Solvers: tables of numbers (Plan), the loop that runs them, adaptive pairs, and torchdiffeq beside them.

    result = sample(model, solver="dpmpp2m", nfe=10, shape=(16, 1, 28, 28), seed=0)

The function that makes a solver's table is an attribute of its name, so that help(solvers.dpmpp2m) teaches it.
"""

import functools
from collections.abc import Callable
from typing import Any

from solvers.budget import Budget, Prepared
from solvers.execute import run
from solvers.hooks import Committed, Hooks
from solvers.inpainting import inpaint
from solvers.log_p import sample_with_log_p
from solvers.plan import Plan, Stage
from solvers.registry import ALIASES, SOLVERS, find
from solvers.result import Result
from solvers.sampling import encode, sample
from solvers.solver import Solver

__all__ = [
    "ALIASES",
    "SOLVERS",
    "Budget",
    "Committed",
    "Hooks",
    "Plan",
    "Prepared",
    "Result",
    "Solver",
    "Stage",
    "encode",
    "find",
    "inpaint",
    "run",
    "sample",
    "sample_with_log_p",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """The function that makes the table of a planned solver: solvers.dpmpp2m, solvers.sde_dpmpp2m, ..."""
    solver = SOLVERS.get(name.replace("_", "-"))
    if solver is None or solver.build is None:
        raise AttributeError(f"module 'solvers' has no attribute {name!r}")

    def plan(grid: Any, schedule: Any, **options: Any) -> Plan:
        return solver.plan(grid, schedule, **options)

    functools.update_wrapper(plan, solver.build)
    plan.__module__, plan.__qualname__ = __name__, name  # where pickle finds it
    globals()[name] = plan
    return plan


def __dir__() -> list[str]:
    planned = (name.replace("-", "_") for name, solver in SOLVERS.items() if solver.has_plan and ":" not in name)
    return sorted({*globals(), *planned})
