"""Timetable: what a host has to know of a plan before it runs: where each evaluation is, with which clock, how to begin later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from diffode.clocks import clocks_at
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from diffode.scheduler_config import TrainedAs
from solvers.options import Options
from solvers.plan import Plan
from solvers.solver import Solver


@dataclass(frozen=True)
class Timetable:
    """A solver with these options on a grid, for a network trained so; made once for each run."""

    solver: Solver
    options: Options
    grid: Array
    trained: TrainedAs

    @property
    def schedule(self) -> Schedule:
        return self.trained["schedule"]

    @cached_property
    def plan(self) -> Plan:
        """InputError for a grid that the solver cannot take, and for a plan that adds noise before its first evaluation, whose
        state a host does not know."""
        try:
            plan = self.solver.plan(self.grid, self.schedule, **self.options)
        except InputError as error:
            beside = "; or begin beside it: from_config(..., offset=1e-4)" if self.grid[0] == -np.inf else ""
            raise InputError(f"{error}{beside}") from error
        if not plan.stages[0].evaluate:
            raise InputError(
                f"{plan.solver} does not evaluate the state that it begins with: take another solver, or another grid"
            )
        return plan

    @cached_property
    def lams(self) -> list[float]:
        """λ of every evaluation."""
        return [stage.lam for stage in self.plan.stages if stage.evaluate]

    @cached_property
    def begins(self) -> list[int]:
        """The evaluations that a run can begin with: the first, and the last at each λ of the grid, which begins a step."""
        last = {lam: index for index, lam in enumerate(self.lams)}
        return [0, *(last[lam] for lam in self.grid[1:-1].tolist() if lam in last)]

    @cached_property
    def clocks(self) -> Array:
        """The network's clock at every evaluation, exactly."""
        return clocks_at(self.schedule, self.trained["clock"], self.lams, 1, torch.float64)[:, 0].numpy()

    def clocks_of(self, listed: Array, whole: bool) -> Array:
        """Those of a host that calls its network with `listed` at all λ of the grid but the last, and between these with clocks
        rounded down, if it takes `whole` ones."""
        known = dict(zip(self.grid.tolist(), listed.tolist(), strict=False))
        between = np.floor(self.clocks + 1e-6) if whole else self.clocks
        found = np.array([known.get(lam, np.nan) for lam in self.lams])
        return np.where(np.isnan(found), between, found)

    @cached_property
    def levels(self) -> Array:
        """σ/α at every evaluation and at the end; for flow matching σ, or 1 − σ for a network whose time grows to data."""
        lams = np.array([*self.lams, self.grid[-1]])
        if self.schedule.path.name != "flow":
            return np.exp(-lams)
        return self.schedule.alpha(lams) if self.trained["predicts"] == "reverse-flow" else self.schedule.sigma(lams)

    def beginning_at(self, index: int) -> Plan:
        """The plan that begins with this evaluation, which is the first of a step, and goes on as this one does; InputError where
        there is none."""
        if index == 0:
            return self.plan
        if 0 < index < len(self.lams) and self.solver.fixed_plan is None:
            rest = Timetable(self.solver, self.options, self.grid[self.grid >= self.lams[index]], self.trained)
            if len(rest.grid) > 1 and rest.lams == self.lams[index:]:
                return rest.plan
        raise InputError(
            f"{self.solver.name} cannot begin with evaluation {index} of {len(self.lams)}, which is not the first of a step like "
            "the others: take a solver with one evaluation per step, as unipc3 or dpmpp2m, or another strength"
        )
