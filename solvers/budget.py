"""Budget: how much a solver may spend, and where. Prepared: a solver with its budget settled.

A budget is settled once: `solver.prepare(budget, schedule)` chooses the number of steps, makes the grid and, of a solver that has
one, the plan; what it returns is handed down, to be run on any batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from diffode import grid as grids
from diffode.checks import flag, number, numbers, whole
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.schedule import Array, Schedule
from solvers.execute import guarded, run
from solvers.hooks import NO_HOOKS, Hooks
from solvers.options import Options
from solvers.plan import Plan
from solvers.result import Result

if TYPE_CHECKING:
    from solvers.solver import Solver

DEFAULT_NFE = 50
SAME = 1e-6  # in λ; the coefficients of multistep methods after a shorter step are rounding


@dataclass(frozen=True)
class Budget:
    """nfe: exactly so many evaluations of ε(x, λ) per sample; or steps, whatever they cost; else about 50 evaluations.

    grid: a name in diffode.grid, or increasing values of λ; None is logsnr, or time where the schedule begins or ends at λ = ±∞,
    and the plan's own for a ready plan. denoise: the last of the steps ends at λ = +∞, σ = 0.
    from_lam, strength: of a run that begins with data, noised to the first λ of its grid. from_lam: that λ; the grid, and the
    evaluations, are of the rest. strength: the last int(strength · steps) steps of the whole grid, at least one, as in diffusers.
    InputError for values that are none of these.
    """

    nfe: int | None = None
    steps: int | None = None
    grid: str | Sequence[float] | None = None
    denoise: bool = False
    from_lam: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.nfe is not None and self.steps is not None:
            raise InputError("give either nfe or steps, not both")
        if self.from_lam is not None and self.strength is not None:
            raise InputError("give either `from_lam` or `strength`, not both")
        for name in ("nfe", "steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 1, grids.MOST_STEPS))
        if self.grid is not None and not isinstance(self.grid, str):
            values = numbers("grid", self.grid, grids.MOST_STEPS + 1, kind="a name, or a list of")
            object.__setattr__(self, "grid", tuple(values.tolist()))
        object.__setattr__(self, "denoise", flag("denoise", self.denoise))
        if self.from_lam is not None:
            object.__setattr__(self, "from_lam", number("from_lam", self.from_lam, finite=False))
        if self.strength is not None:
            object.__setattr__(self, "strength", number("strength", self.strength, 0, 1, positive=True))

    @property
    def values(self) -> Sequence[float] | None:
        """The λ of a grid that is given by its values."""
        return None if self.grid is None or isinstance(self.grid, str) else self.grid

    @property
    def noised(self) -> bool:
        """Whether the run begins with data, noised to the first λ of its grid."""
        return self.from_lam is not None or self.strength is not None

    def lams(self, schedule: Schedule, steps: int | None = None, *, labels_only: bool = False) -> Array:
        """The grid, of so many steps, from from_lam on if that is given; the whole grid of a strength, see `rest`.

        labels_only: snapped to whole labels. InputError as grid.make and grid.snap, and if nothing lies after from_lam.
        """
        if self.from_lam is not None:
            return self._from(self.from_lam, schedule, steps, labels_only)
        spacing = grids.default(schedule) if self.grid is None else self.grid
        lams = grids.make(spacing, schedule, steps, denoise=self.denoise)
        return grids.snap(lams, schedule) if labels_only else lams

    def _from(self, lam: float, schedule: Schedule, steps: int | None, labels_only: bool) -> Array:
        """The grid from λ on: a named one of the schedule whose noisy end is λ, or those of a list that are larger."""
        check_start("from_lam", lam, schedule)
        if self.grid in grids.TAUS:
            raise InputError(f"{self.grid} begins where its labels do, not at λ = {lam:.6g}: give `strength`, or another `grid`")
        if labels_only:
            nearest = float(grids.snap(np.array([lam]), schedule)[0])
            if nearest == schedule.lam_max:
                raise InputError(f"λ = {lam:.6g} is nearest to label 0, after which there is no step: choose a smaller λ")
            lam = nearest
        if self.values is not None:
            values = grids.check(self.values)
            after = values[values > lam + SAME]
            if not (len(after) or self.denoise):
                raise InputError(
                    f"no λ of the grid is above {lam:.6g}, where it is to begin: choose a smaller λ, or another `grid`"
                )
            return replace(self, grid=[lam, *after], from_lam=None).lams(schedule, steps, labels_only=labels_only)
        lams = replace(self, from_lam=None).lams(schedule.starting_at(lam), steps)
        lams[0] = lam  # exactly, whatever the clock's rounding
        return grids.snap(lams, schedule) if labels_only else lams

    def rest(self, lams: Array) -> Array:
        """The part of a whole grid that a strength leaves; all of it without one."""
        steps = len(lams) - 1 if self.strength is None else max(int(self.strength * (len(lams) - 1)), 1)
        return lams[-1 - steps :]


@dataclass(frozen=True)
class Prepared:
    """A solver, its grid, its options (with what the budget decides of them), and its plan, if it has one.

    noised: whether it begins with data, noised to the first λ of the grid.
    """

    solver: Solver
    grid: Array
    options: Options
    plan: Plan | None
    noised: bool = False

    @property
    def nfe(self) -> int | None:
        """The evaluations that it spends per sample, None where they are not known beforehand."""
        if self.plan is not None:
            return self.plan.nfe
        return (len(self.grid) - 1) * self.solver.nfe_per_step or None

    def solve(self, model: EpsModel, x: Tensor, hooks: Hooks = NO_HOOKS, *, differentiable: bool = False) -> Result:
        """Run it from the state x (batch, *shape) at the first λ of the grid; differentiable: see `run`. InputError for hooks
        that it has no use for, and for gradients of a solver without plan."""
        if unsupported := hooks.used - self.solver.supported_hooks:
            raise InputError(
                f"{self.solver.name} has no committed states of a whole batch to hand to {', '.join(sorted(unsupported))}: "
                "use a planned solver"
            )
        if self.plan is not None:
            return run(self.plan, model, x, hooks, differentiable=differentiable)
        if differentiable:
            raise InputError(
                f"{self.solver.name} takes no gradients: take a planned solver, as dpm3, or leave differentiable out"
            )
        if self.solver.chooses_steps and int(np.isfinite(self.grid).sum()) > 2 and not hooks.trajectory:
            raise InputError(
                f"{self.solver.name} chooses its own steps: leave steps and inner values of the grid out, or set trajectory=True"
            )
        with naming(self.solver.name):
            return guarded(self.solver.name, self._integrate, model, x, hooks)

    def _integrate(self, model: EpsModel, x: Tensor, hooks: Hooks) -> Result:
        assert self.solver.integrate is not None
        return self.solver.integrate(model, x, self.grid, hooks, **self.options)


def check_start(name: str, lam: float, schedule: Schedule) -> None:
    """InputError for a λ from which, or to which, there is no way on the schedule."""
    if not schedule.lam_min - 1e-9 <= lam < schedule.lam_max:
        raise InputError(
            f"`{name}` of {lam:.6g} is outside the schedule {schedule.name}, which leads from λ = {schedule.lam_min:.6g} to "
            f"{schedule.lam_max:.6g}: choose one between them"
        )


@contextmanager
def naming(solver: str) -> Iterator[None]:
    """An InputError raised within says which solver it was."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if solver in str(error) else f"{solver}: {error}") from error
