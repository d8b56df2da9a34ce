"""Solver: what a name in SOLVERS stands for, as one value.

A planned solver has `build`, which makes its table from a grid; a solver that chooses its own steps, or is somebody else's
integrator, has `integrate`. All else that distinguishes solvers is data on this class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from diffode.checks import instance, numbers
from diffode.errors import InputError, shown
from diffode.grid import MOST_STEPS
from diffode.schedule import Array, Schedule, require
from solvers.budget import Budget, Prepared, naming
from solvers.options import Options, check, keywords
from solvers.plan import Plan
from solvers.prepare import prepare
from solvers.result import Result

ALL_HOOKS = frozenset({"on_commit", "on_step", "trajectory"})


@dataclass(frozen=True, repr=False)
class Solver:
    """A solver.

    build: (grid, schedule, **options) -> Plan. order: of the global error for h → 0, in distribution (weak) if it is stochastic
    by default. nfe_per_step: evaluations, 0 where they are not known beforehand. source: paper and equation.
    ramp_order: the order that its default start leaves, if less: a ramp of orders 1, 2, ... costs multistep methods all beyond 2.
    unic_order: its order with UniC on top, as NAME+unic, if it can be had.
    chooses_steps: it takes the ends of a grid only. accepts_denoise: it can take the last step to σ = 0. equal_steps: it needs
    steps of equal length. fixed_plan: the plan that it is, on one grid only.
    split_nfe: (nfe, denoise) -> (steps, options), where the budget decides more than the number of steps.
    integrate: (model, x, grid, hooks, **options) -> Result, of a solver without plan, and the types of its options.
    alias_of: the solver whose table this is, under another name.
    """

    name: str
    build: Callable[..., Plan] | None
    order: int
    nfe_per_step: int
    source: str
    ramp_order: int = 0
    unic_order: int = 0
    stochastic: bool = False
    chooses_steps: bool = False
    accepts_denoise: bool = True
    equal_steps: bool = False
    fixed_plan: Plan | None = None
    split_nfe: Callable[[int, bool], tuple[int, Options]] | None = None
    integrate: Callable[..., Result] | None = None
    option_types: Mapping[str, type] | None = None
    supported_hooks: frozenset[str] = ALL_HOOKS
    alias_of: str = ""

    def __repr__(self) -> str:
        cost = f"{self.nfe_per_step} NFE per step" if self.nfe_per_step else "its own steps"
        return f"Solver({self.name}: order {self.order}{' weak' * self.stochastic}, {cost}, {self.source})"

    @property
    def has_plan(self) -> bool:
        """Whether it is a table of numbers that is known before it is run."""
        return self.build is not None

    @property
    def fixed_grid(self) -> list[float] | None:
        """The only grid of a ready plan."""
        return None if self.fixed_plan is None else self.fixed_plan.grid

    @cached_property
    def options(self) -> dict[str, type]:
        """Its options, and the type of each."""
        return dict(keywords(self.build) if self.option_types is None and self.build is not None else self.option_types or {})

    def plan(self, grid: Sequence[float] | Array, schedule: Schedule, **options: Any) -> Plan:
        """The table; InputError for an option that this solver does not have, for a grid that it cannot take, and for a solver
        without plan."""
        options = check(self.name, self.options, options)
        if self.build is None:
            has_steps = self.chooses_steps and not self.supported_hooks  # a pair of ours, whose result has the plans it took
            raise InputError(f"{self.name} has no plan{' before it is run: its result has that which it took' * has_steps}")
        grid, schedule = numbers("grid", grid, MOST_STEPS + 2, least=2), require(schedule)
        monotone = np.all(grid[1:] > grid[:-1]) or np.all(grid[1:] < grid[:-1])
        if self.fixed_plan is None and not (len(grid) >= 2 and monotone):
            raise InputError(
                f"{self.name} takes a grid of two or more λ, all increasing or all decreasing, not {shown(grid.tolist())}"
            )
        with naming(self.name), np.errstate(all="ignore"):  # a number that overflows is refused by the plan itself
            plan = self.build(grid, schedule, **options)
        return replace(plan, solver=self.name) if self.alias_of else plan

    def on(self, grid: Sequence[float] | Array, schedule: Schedule, **options: Any) -> Prepared:
        """Prepared for this very grid, increasing or, to encode, decreasing; InputError as `plan`."""
        options, grid = check(self.name, self.options, options), numbers("grid", grid, MOST_STEPS + 2, least=2)
        return Prepared(self, grid, options, self.plan(grid, schedule, **options) if self.has_plan else None)

    def prepare(
        self, budget: Budget, schedule: Schedule, *, labels_only: bool = False, backwards: bool = False, **options: Any
    ) -> Prepared:
        """The grid on which this solver spends the budget, and its plan; each is made once.

        labels_only: for a network that takes whole labels only, whose grids are snapped to them. backwards: from clean to noisy.
        InputError names the nearest numbers of evaluations if `budget.nfe` cannot be spent exactly.
        """
        instance("budget", budget, Budget, "a Budget")
        options = check(self.name, self.options, options)
        return prepare(self, budget, require(schedule), options, labels_only=labels_only, backwards=backwards)


def ready(plan: Plan, name: str) -> Solver:
    """A plan as a solver: one grid, no options."""

    def build(grid: Array, schedule: Schedule) -> Plan:
        if grid.tolist() != plan.grid or schedule.path != plan.path:
            raise InputError(
                f"{name} is a plan for its own grid on the path {plan.path.name}: leave nfe, steps, grid and denoise out, and "
                f"take a model on that path (this one is on {schedule.path.name})"
            )
        return plan

    return Solver(name, build, 0, 0, "a plan", stochastic=plan.stochastic, fixed_plan=plan)
