"""Solvers: tables of numbers (Plan), the loop that runs them, and torchdiffeq beside them.

result = sample(model, solver="dpmpp2m", nfe=10, shape=(16, 1, 28, 28), seed=0)
"""

from solvers.entries import BlackBox, Solver
from solvers.execute import Result, run
from solvers.plan import Plan, Stage
from solvers.registry import SOLVERS
from solvers.sampling import encode, sample

__all__ = ["SOLVERS", "BlackBox", "Plan", "Result", "Solver", "Stage", "encode", "run", "sample"]
