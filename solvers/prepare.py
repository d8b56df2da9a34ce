"""prepare: from a solver and a budget to the grid and the plan, each made once.

n finite steps cost a n + b evaluations: a is declared by the solver; b, what a start or an end costs besides, is 0 for most, and
is read off the first plan for the others. So a budget takes one plan, or two, and no search; only near a start, where steps do
not cost what later ones do, is their number found by bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diffode import grid as grids
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.budget import DEFAULT_NFE, Budget, Prepared
from solvers.options import Options

if TYPE_CHECKING:
    from solvers.solver import Solver


def prepare(
    solver: Solver, budget: Budget, schedule: Schedule, options: Options, *, labels_only: bool = False, backwards: bool = False
) -> Prepared:
    """See Solver.prepare."""
    if backwards and budget.strength is not None:
        raise InputError("strength is of a run that begins with data, noised: to encode to a λ give from_lam")
    prepared = _whole(solver, budget, schedule, options, labels_only, backwards)
    if len(lams := budget.rest(prepared.grid)) < len(prepared.grid):
        prepared = solver.on(lams, schedule, **prepared.options)
    return replace(prepared, noised=budget.noised and not backwards)


def _whole(solver: Solver, budget: Budget, schedule: Schedule, options: Options, labels_only: bool, backwards: bool) -> Prepared:
    """On the whole grid of the budget, whatever its strength."""
    if solver.fixed_plan is not None:
        return _ready(solver, budget, schedule, options)
    _refuse(solver, budget)
    request = _Request(solver, budget, schedule, options, labels_only, backwards)
    if budget.values is not None:
        return request.with_values()
    if budget.nfe is None:
        least = 1 + budget.denoise if solver.chooses_steps else math.ceil(DEFAULT_NFE / max(solver.nfe_per_step, 1))
        return request.with_steps(least if budget.steps is None else budget.steps)
    if solver.split_nfe is not None and budget.nfe > 0:
        steps, decided = solver.split_nfe(budget.nfe, budget.denoise)
        if both := [name for name, value in decided.items() if options.get(name, value) != value]:
            raise InputError(f"nfe decides the option {both[0]} of {solver.name}: leave one of them out")
        return replace(request, options={**options, **decided}).with_steps(steps)
    return request.with_nfe(budget.nfe)


@dataclass(frozen=True)
class _Request:
    """What is asked of a solver that makes a plan, or takes steps, for any grid."""

    solver: Solver
    budget: Budget
    schedule: Schedule
    options: Options
    labels_only: bool
    backwards: bool

    def on(self, lams: Array) -> Prepared:
        """On this grid, in the direction that is asked for."""
        if self.backwards and not np.isfinite(lams).all():
            raise InputError(
                f"{self.solver.name} cannot be run backwards from λ = {lams[-1]:g} to {lams[0]:g}: give a grid with finite ends, "
                "as [-5, -2, 0, 2, 4.6]"
            )
        return self.solver.on(lams[::-1] if self.backwards else lams, self.schedule, **self.options)

    def with_steps(self, steps: int | None) -> Prepared:
        """So many steps; None for a grid that is given by its values."""
        return self.on(self.budget.lams(self.schedule, steps, labels_only=self.labels_only))

    def with_values(self) -> Prepared:
        """The λ that are given; InputError if they cost another number of evaluations than was asked for."""
        prepared = self.with_steps(self.budget.steps)
        if self.budget.nfe not in (None, prepared.nfe):
            raise InputError(
                f"{self.solver.name} spends {prepared.nfe or 'no fixed number of'} evaluations on the grid given, not "
                f"{self.budget.nfe}: leave nfe out"
            )
        return prepared

    def with_nfe(self, nfe: int) -> Prepared:
        """Exactly so many evaluations."""
        a = self.solver.nfe_per_step
        steps = max(math.ceil((nfe - self.budget.denoise) / a), 0) + self.budget.denoise
        for _ in range(2):  # with b = 0, and with b as the first plan has it
            try:
                prepared = self.with_steps(steps)
            except InputError:  # this number of steps cannot be, but it may be the wrong one
                break
            assert prepared.nfe is not None
            if prepared.nfe == nfe:
                return prepared
            if (nfe - prepared.nfe) % a:
                break
            steps += (nfe - prepared.nfe) // a
        return self.with_steps(self._search(nfe))

    def _search(self, nfe: int) -> int:
        """The number of steps by bisection, since more steps cost more; InputError, with the nearest costs, if there is none."""
        low, high = 0, max(nfe, 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cost(middle) < nfe else (low, middle)
        if self._cost(high) == nfe:
            return high
        nearest = sorted((abs(n - nfe), n) for n in (self._cost(steps) for steps in (low, high) if steps))
        raise InputError(
            f"{self.solver.name} cannot spend exactly {nfe} evaluations: the nearest it can is "
            f"{' or '.join(str(n) for _, n in nearest)}"
        )

    def _cost(self, steps: int) -> int:
        """The evaluations of so many steps, on a grid of which any number can be made."""
        any_steps = replace(self.budget, grid="time") if self.budget.grid in grids.TAUS else self.budget
        return self.on(any_steps.lams(self.schedule, steps)).nfe or 0


def _refuse(solver: Solver, budget: Budget) -> None:
    """InputError for a budget that this kind of solver cannot have."""
    if budget.denoise and not solver.accepts_denoise:
        raise InputError(
            f"{solver.name} integrates over finite λ only, not to λ = inf: leave denoise out, or take a planned solver"
        )
    if budget.nfe is not None and solver.chooses_steps:
        raise InputError(
            f"{solver.name} is adaptive and chooses its own number of evaluations: leave nfe out and give rtol and atol"
        )
    if budget.nfe is not None and not solver.nfe_per_step:
        raise InputError(f"{solver.name} does not spend the same number of evaluations on each step: give steps instead of nfe")
    if budget.strength is not None and solver.chooses_steps:
        raise InputError(f"{solver.name} chooses its own steps, so `strength` is no part of them: give `from_lam`")
    if solver.chooses_steps:
        inner = budget.values is not None and int(np.isfinite(budget.values).sum()) > 2
        dense = "trajectory" in solver.supported_hooks  # inner values are then where its trajectory is given
        if budget.grid in grids.TAUS or (not dense and (budget.steps is not None or inner)):
            raise InputError(
                f"{solver.name} chooses its own steps: leave steps, τ and inner values of the grid out, and give rtol and atol"
            )


def _ready(solver: Solver, budget: Budget, schedule: Schedule, options: Options) -> Prepared:
    """A ready plan; InputError for any other grid or number of evaluations than its own."""
    assert solver.fixed_grid is not None
    if not (budget.nfe is budget.steps is None) or isinstance(budget.grid, str) or (budget.values is None and budget.denoise):
        raise InputError(f"{solver.name} is a plan with its own grid: leave nfe, steps, grid and denoise out")
    first = solver.fixed_grid[0]
    if budget.strength is not None or abs((first if budget.from_lam is None else budget.from_lam) - first) > 1e-9:
        raise InputError(
            f"{solver.name} is a plan that begins at λ = {first!r}: give that as `from_lam`, or the name of a solver"
        )
    values = solver.fixed_grid if budget.values is None else [*budget.values, *[np.inf] * budget.denoise]
    return solver.on(values, schedule, **options)
