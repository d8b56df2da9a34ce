"""Exact trajectories of a model, the error that one step of a solver makes on them, and how that error grows until the end.

The trajectories x*(λ) of n samples are known at M + 1 equally spaced λ. The local error of a step i → j is

    e(i, j) = ‖u − x*(λ_j)‖

where u is the result of the solver's step from the exact x*(λ_i), with the exact predictions at the earlier λ that it uses. So
the steps of a multistep method cost no evaluation, and those of other methods only the evaluations within the step. The steps
that a multistep method looks back on are taken to be as long as this one, or, if there is no room for them since the start, to
divide the way since the start evenly.

On the way to the end an error at λ_j grows by a factor g(λ_j). It is measured on local errors of ddim, because these point in the
directions in which the model makes detail, as those of other solvers do.

‖·‖ is the root mean square over pixels, and its geometric mean over samples: a few trajectories pass close to a boundary between
two images, and would dominate any other mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode.model import EpsModel
from diffode.prediction import convert
from diffode.schedule import Array
from experiments.common.progress import progress
from experiments.comparison.local_steps import LocalStep, Planner, StepPlanner
from experiments.comparison.problem import Problem, Settings
from experiments.sampling.recipe import flat
from solvers.execute import refuse_nonfinite, run
from solvers.hooks import Hooks
from solvers.plan import Plan
from solvers.registry import find

SAMPLES, FIRST_SEED = 16, 2**31  # seeds that no comparison uses
KNOWN_AT = 256  # M; with so many steps unipc3 errs by 1e-5
STEPS_AT_A_TIME = 64  # whose local errors are computed in one batch


@dataclass(frozen=True)
class Trajectories:
    """lams: (M + 1,). x: the states there, m: the model's native predictions, both (M + 1, n, *shape). end: where a solver should
    arrive, (n, *shape): the last state, or its x̂0 if contenders `denoise`."""

    problem: Problem
    model: EpsModel
    lams: Array
    x: Tensor
    m: Tensor
    end: Tensor
    _forms: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def provenance(self) -> dict[str, Any]:
        """The settings and the model that the trajectories belong to."""
        problem = self.problem
        return {
            **flat(problem.settings),
            "sha256": problem.loaded.sha256,
            "labels": problem.labels,
            "known_at": len(self.lams) - 1,
        }

    def end_error(self, plan: Plan) -> Array:
        """Where a plan arrives minus where it should, (n, pixels)."""
        return _host(run(plan, self.model, self.x[0]).x - self.end, 1)

    def local_errors(self, planner: Planner, steps: Sequence[tuple[int, int, int]]) -> Array:
        """e of steps (i, j, number of steps before), (len(steps),)."""
        planned = self._plan_steps(planner, steps)
        found: dict[LocalStep, float] = {}
        with progress(len(set(planned)), "local errors", "steps", leave=False) as bar:
            for _, group in groupby(sorted(set(planned), key=lambda step: step.shape), lambda step: step.shape):
                alike = list(group)
                for first in range(0, len(alike), STEPS_AT_A_TIME):
                    batch = alike[first : first + STEPS_AT_A_TIME]
                    found.update(zip(batch, geometric_mean(rms(_host(self._errors(batch), 2))).tolist(), strict=True))
                    bar.update(len(batch))
        return np.array([found[step] for step in planned])

    @cached_property
    def growth(self) -> Array:
        """g at every λ, (M + 1,), interpolated from 16 of them."""
        ddim, last = find("ddim"), len(self.lams) - 1
        known = np.linspace(last // 12, last, 16).astype(int)
        steps = [(j - last // 12, j, 0) for j in known.tolist()]
        planned = self._plan_steps(lambda lams: ddim.plan(lams, self.problem.schedule), steps)
        g = []
        with progress(len(planned), "growth of errors", "steps", leave=False) as bar:
            for step in planned:
                (error,) = self._errors([step])
                exact = self.x[step.j]
                with_error, without = self._to_end(torch.cat([exact + error, exact]), step.j).chunk(2)
                g.append(geometric_mean(rms(_host(with_error - without, 1))) / geometric_mean(rms(_host(error, 1))))
                bar.update()
        return np.exp(np.interp(np.arange(last + 1), known, np.log(g)))

    def _to_end(self, x: Tensor, j: int) -> Tensor:
        """States (2 n, *shape) at λ_j integrated to the end in 12 steps, which is enough for their differences."""
        way = self.lams[np.unique(np.linspace(j, len(self.lams) - 1, 13).round().astype(int))].tolist()
        way += [np.inf] * self.problem.settings.denoise
        if len(way) == 1:
            return x
        plan = find("dpmpp2m").plan(np.array(way), self.problem.schedule)
        return run(plan, self.model.taking([*range(len(self.end))] * 2), x).x

    def _plan_steps(self, planner: Planner, steps: Sequence[tuple[int, int, int]]) -> list[LocalStep]:
        return StepPlanner(planner, self.lams, self.problem.settings.denoise).plan_steps(steps)

    def _errors(self, steps: Sequence[LocalStep]) -> Tensor:
        """u − x* of steps of the same shape, (steps, n, *shape)."""
        known, within = self._known(steps[0].prediction), list[Tensor]()
        for stages in zip(*(step.stages for step in steps), strict=True):
            u = torch.stack([stage.x * self.x[step.i] for step, stage in zip(steps, stages, strict=True)])
            for at, stage in enumerate(stages):
                for k, c in stage.known:
                    u[at].add_(known[k], alpha=c)
                for k, c in stage.within:
                    u[at].add_(within[k][at], alpha=c)
            if len(within) < len(steps[0].stages) - 1:
                lams = [stage.lam for stage in stages]
                within.append(evaluate(self.model, u, lams, steps[0].prediction, self.problem.settings.batch))
        return u - self.x[[step.j for step in steps]]

    def _known(self, form: str) -> Tensor:
        """The exact predictions in this form ("noise", "data", ...), (M + 1, n, *shape)."""
        if form not in self._forms:
            ends = zip(self.problem.schedule.alpha(self.lams), self.problem.schedule.sigma(self.lams), strict=True)
            pairs = (convert(self.model.predicts, form, float(alpha), float(sigma)) for alpha, sigma in ends)
            self._forms[form] = torch.stack([a * x + b * m for (a, b), x, m in zip(pairs, self.x, self.m, strict=True)])
        return self._forms[form]


@torch.no_grad()
def follow_trajectories(
    settings: Settings, *, n: int = SAMPLES, seed: int = FIRST_SEED, known_at: int = KNOWN_AT
) -> Trajectories:
    """The trajectories of n samples of a model, with seeds seed, seed + 1, ...: other samples than those of `settings`.

    One call serves all solvers and budgets. A network in half precision is run in float32, since its rounding would hide the
    local errors. InputError for a model whose output is not finite, and as for Problem.
    """
    recipe = replace(settings.recipe, dtype="float64" if settings.recipe.dtype == "float64" else "float32")
    problem, rows = Problem(replace(settings, n=n, seed=seed, batch=max(n, settings.batch), recipe=recipe)), slice(0, n)
    model, lams = problem.labelled(problem.model, rows), grids.make("logsnr", problem.schedule, known_at)
    states: list[Tensor] = []
    x = problem.initial_state(rows, recipe.state_dtype, recipe.device)
    with progress(known_at, "trajectories", "steps", leave=False) as bar:
        watched = model.watched(refuse_nonfinite).watched(lambda evaluation, lam, m: bar.update())
        run(find("unipc3").plan(lams, problem.schedule), watched, x, Hooks(on_step=lambda step: states.append(step.x.clone())))
    x = torch.stack(states)
    m = evaluate(model, x, lams, model.predicts, problem.settings.batch)
    end = model(x[-1], lams[-1], "data") if settings.denoise else x[-1]
    return Trajectories(problem, model, lams, x, m, end)


@torch.no_grad()
def evaluate(model: EpsModel, x: Tensor, lams: Sequence[float] | Array, form: str, batch: int) -> Tensor:
    """The model's predictions for x (k, n, *shape), n samples at k different λ, about `batch` states at a time."""
    n, most = x.shape[1], max(batch // x.shape[1], 1)
    parts = []
    for states, at in zip(x.split(most), np.split(np.asarray(lams), range(most, len(x), most)), strict=True):
        parts.append(model.at(states.flatten(0, 1), np.repeat(at, n), form, rows=[*range(n)] * len(states)))
    return torch.cat(parts).view(x.shape)


def rms(errors: Array) -> Array:
    """The root mean square over pixels of errors (..., n, pixels)."""
    return np.sqrt(np.mean(errors**2, -1))


def geometric_mean(errors: Array) -> Array:
    """The geometric mean over samples of errors (..., n); an error of 0 counts as 1e-300."""
    return np.exp(np.mean(np.log(np.maximum(errors, 1e-300)), -1))


def _host(x: Tensor, samples: int) -> Array:
    """States as float64 on the host, the dimensions from `samples` on flattened to one."""
    return x.flatten(samples).cpu().double().numpy()
