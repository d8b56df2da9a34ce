"""Solvers: tables of numbers (Plan), the loop that runs them, adaptive pairs, and torchdiffeq beside them.

result = sample(model, solver="dpmpp2m", nfe=10, shape=(16, 1, 28, 28), seed=0)
"""

from solvers.budget import Budget, Prepared
from solvers.execute import run
from solvers.hooks import Committed, Hooks
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
    "run",
    "sample",
]
