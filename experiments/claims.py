"""What the claims share. A claim is a script whose docstring says what is claimed, how it is measured, and what would refute it.

A cell is what is run (contenders.py) and the settings of the problem that it is run on, under their own names: the model, and
whatever else the claim is about (guidance, threshold, ...). Its row has what was spent, the errors (solution.py), and `known`: the
estimated median error of the solution itself. Times are left out, so that a row is the same whenever it is computed; but for
the script of times.

Errors are medians over samples: now and then a trajectory passes so close to where the flow divides that the error of that one
sample would be the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from torch import Tensor

from diffode import pretrained
from diffode.files import atomic
from experiments import draw, rows
from experiments import solution as solutions
from experiments.contenders import Cell
from experiments.curves import styles
from experiments.markdown import run
from experiments.problem import Problem, Settings
from experiments.rows import Row
from experiments.script import typed
from solvers.registry import find

MODELS = ("fashion", "mixture")
WHAT = ("solver", "grid", "nfe", "rtol")  # of a cell: what is run, and not on what
TIMES = ("seconds", "peak_mib")
BATCH = 16  # in which a solution is found, so that scripts share those of the first samples
Also = Callable[[Tensor], dict[str, float]]


class Bench:
    """The problems of a script's cells, and their solutions, found when they are first needed and kept in `folder`."""

    def __init__(self, folder: Path, tolerance: float, **common: Any) -> None:
        self.folder, self.tolerance, self.common = folder, tolerance, common
        self.problems: dict[Settings, Problem] = {}
        self.solutions: dict[Settings, solutions.Solution] = {}

    def problem(self, cell: Mapping[str, Any]) -> Problem:
        """That of this cell; InputError if there is none."""
        names = {field.name for field in fields(Settings)}
        settings = Settings(**self.common, **{name: value for name, value in cell.items() if name in names})
        return self.problems.setdefault(settings, self.problems.get(settings) or Problem(settings))

    def solution(self, cell: Mapping[str, Any]) -> solutions.Solution:
        """Of this cell's problem."""
        problem = self.problem(cell)
        if problem.settings not in self.solutions:
            self.solutions[problem.settings] = solutions.solve(problem, self.folder, self.tolerance)
        return self.solutions[problem.settings]

    def measure(self, cell: Mapping[str, Any], also: Also = lambda x: {}) -> Row:
        """The row of a cell."""
        solution = self.solution(cell)
        row = solutions.measure(self.problem(cell), solution, {name: cell[name] for name in WHAT}, also)
        row = {name: value for name, value in row.items() if name not in TIMES}
        return row if "skipped" in row else {**row, "known": solution.about["median"]}
