"""Single steps of a solver, as stages that start from exact states: rows of plans.

The stages of a step depend on its two ends, on the points before it that the solver looks back on, and on whether another step
follows. How many points these are is found by comparing plans; then one plan holds every step whose points it has: the steps of
ddim that follow one another, and of a multistep method those with equal steps before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array
from solvers.plan import Plan, Stage, value

LOOK_BACK = 3  # previous steps, the most that any solver here uses
PROBE = 9  # points of the plans that are compared

Planner = Callable[[Array], Plan]  # a grid -> the plan of one solver
Points = tuple[int, ...]  # increasing indices of λ
Window = tuple[Points, int]  # the points that a step looks back on and its start; its end


@dataclass(frozen=True)
class StepStage:
    """A stage of a step: its λ, its coefficient x of x*(λ_i), and its coefficients c of predictions: `known` of those at known λ,
    (index of λ, c), and `within` of those evaluated within the step, (number of the evaluation, c)."""

    lam: float
    x: float
    known: tuple[tuple[int, float], ...]
    within: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LocalStep:
    """The step i → j. All stages but the last, whose result is u, are evaluated."""

    i: int
    j: int
    prediction: str
    stages: tuple[StepStage, ...]

    @property
    def shape(self) -> tuple[str, int]:
        """Steps of the same shape can be computed in one batch."""
        return self.prediction, len(self.stages)


@dataclass(frozen=True)
class StepPlanner:
    """planner: a grid -> the solver's plan. lams: the λ that points are indices of. denoise: after the last λ comes the step to
    σ = 0."""

    planner: Planner
    lams: Array
    denoise: bool

    def plan_steps(self, steps: Sequence[tuple[int, int, int]]) -> list[LocalStep]:
        """The steps (i, j, number of steps before). Those before are as long as this one, or, if there is no room for them since
        the start, divide the way since the start evenly.

        InputError for a solver that draws noise, leaves its grid, or uses evaluations within earlier steps.
        """
        memory, windows = self._memory(), [_window(*step) for step in steps]
        if memory is None:
            found = {window: next(self._on([*window[0], window[1]], len(window[0]) - 1))[1] for window in set(windows)}
            return [found[window] for window in windows]
        windows = [(points[-memory - 1 :], j) for points, j in windows]
        found = {}
        for first, grid in _chains(windows, memory):
            for at, step in self._on(grid, first):
                found[tuple(grid[max(at - memory, 0) : at + 1]), grid[at + 1]] = step
        return [found[window] for window in windows]

    def _memory(self) -> int | None:
        """How many points before its start a step depends on; None if it depends on anything else, so that each step needs a plan
        of its own."""
        last = len(self.lams) - 1
        points = np.unique(np.linspace(0, last, PROBE + 2).round().astype(int)[1:-1]).tolist()
        if len(points) < PROBE:
            return None

        def step(before: int, after: int) -> LocalStep:
            """The step from the fourth point, with so many points before it and after it."""
            return next(self._on(points[LOOK_BACK - before : LOOK_BACK + 1 + after], before))[1]

        try:
            expected = step(LOOK_BACK, 1)
            if step(LOOK_BACK, PROBE - LOOK_BACK - 1) != expected:
                return None
            return next((before for before in range(LOOK_BACK) if step(before, 1) == expected), LOOK_BACK)
        except InputError:
            return None

    def _on(self, points: Sequence[int], first: int) -> Iterator[tuple[int, LocalStep]]:
        """The steps of a grid from the first-th point on, each with its place in the grid; the last of them is followed by
        another."""
        i, j = points[-2:]
        more = [min(2 * j - i, len(self.lams) - 1)] if j < len(self.lams) - 1 else []
        known = [*points, *more]
        lams = [*self.lams[known].tolist(), *[np.inf] * (self.denoise and not more)]
        plan = self.planner(np.array(lams))
        if plan.stochastic or plan.grid != lams:
            raise InputError(f"{plan.solver} draws noise or leaves its grid, so it has no optimal grid: take a solver of the ODE")
        index = dict(zip(lams, known, strict=False))
        evaluated_at = [stage.lam for stage in plan.stages if stage.evaluate]
        for at, (made, stages) in enumerate(_by_step(plan)[: len(points) - 1]):
            if at < first:
                continue
            try:
                yield (
                    at,
                    LocalStep(
                        points[at],
                        points[at + 1],
                        plan.prediction,
                        tuple(
                            _from_exact(stage, made, index, evaluated_at) for stage in stages if stage.evaluate or stage.commit
                        ),
                    ),
                )
            except KeyError:
                raise InputError(f"{plan.solver} uses evaluations within earlier steps, which are not known exactly") from None


def _window(i: int, j: int, before: int) -> Window:
    """The points of a step after so many others; see plan_steps."""
    count = min(before, LOOK_BACK, i)
    apart = min(j - i, i / count) if count == LOOK_BACK else i / max(count, 1)
    return (*(i - round(apart * back) for back in range(count, 0, -1)), i), j


def _chains(windows: Sequence[Window], memory: int) -> Iterator[tuple[int, list[int]]]:
    """Grids that hold all windows, each with the place of the start of its first step: a grid goes on as long as there is a
    window whose points are its last. Only a grid's beginning has fewer points before a step than the solver looks back on."""
    ends: dict[Points, list[int]] = {}
    for points, j in sorted(set(windows)):
        ends.setdefault(points, []).append(j)
    continued = {(*points, j)[-memory - 1 :] for points, js in ends.items() for j in js}
    for points in sorted(ends, key=lambda points: (points in continued, points)):
        while ends[points]:
            grid, latest = list(points), points
            while ends.get(latest):
                grid.append(ends[latest].pop(0))
                latest = tuple(grid[-memory - 1 :])
            yield len(points) - 1, grid


def _by_step(plan: Plan) -> list[tuple[int, list[Stage]]]:
    """The stages of each step of a plan, and how many evaluations are made before them."""
    steps: list[tuple[int, list[Stage]]] = []
    evaluations, stages = int(plan.stages[0].evaluate), list[Stage]()
    made = evaluations
    for stage in plan.stages[1:]:
        stages.append(stage)
        evaluations += stage.evaluate
        if stage.commit:
            steps.append((made, stages))
            made, stages = evaluations, []
    return steps


def _from_exact(stage: Stage, made: int, index: dict[float, int], evaluated_at: Sequence[float]) -> StepStage:
    """A stage of a step before which `made` evaluations were made; KeyError if one of them was not at a known λ."""
    c = {k: value(number) for k, number in stage.c.items()}
    known = tuple((index[evaluated_at[k]], c[k]) for k in c if k < made)
    return StepStage(stage.lam, value(stage.x), known, tuple((k - made, c[k]) for k in c if k >= made))
