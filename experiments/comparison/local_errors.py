"""Exact trajectories of a model, the error that one step of a solver makes on them, and how it grows on the way to the end.

The trajectories x*(λ) of n samples are known at M + 1 equally spaced λ. The local error of a step i → j is

    e(i, j) = ‖u − x*(λ_j)‖

with u what the solver makes of the exact x*(λ_i) and of the exact predictions at those λ before it that it uses. So the steps of
a multistep method cost no evaluation, and those of others what is evaluated within them. The steps that a multistep method looks
back on are taken to be as long as this one, or to divide evenly what there is since the start, if that is less.

On the way to the end an error at λ_j grows by a factor g(λ_j). It is measured on the local errors of ddim, which are in the
directions in which the model makes detail, as those of other solvers are.

‖·‖ is the root mean square over pixels, and its geometric mean over samples: a few trajectories pass close to where two images
part, and would decide any other mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffode import grid as grids
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.prediction import convert
from diffode.schedule import Array
from experiments.comparison.problem import Problem, Settings
from solvers.execute import refuse_nonfinite, run
from solvers.plan import Plan, value
from solvers.registry import find

SAMPLES, FIRST_SEED = 16, 2**31  # seeds that nobody compares
KNOWN_AT = 256  # M; in so many steps unipc3 is right to 1e-5
TOGETHER = 64  # steps that are taken at a time
LOOK_BACK = 3  # steps, the most of any solver here

Planner = Callable[[Array], Plan]  # a grid -> the plan of one solver


@dataclass(frozen=True)
class Row:
    """A stage of a step: where it is, its factor of x*(λ_i), and its coefficients of predictions at known λ, (index, c), and of
    those made within the step, (number, c)."""

    lam: float
    x: float
    known: tuple[tuple[int, float], ...]
    within: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Step:
    """The step i → j. All rows but the last, which is u, are evaluated."""

    i: int
    j: int
    prediction: str
    rows: tuple[Row, ...]

    @property
    def shape(self) -> tuple[str, int]:
        """Steps of one shape are taken together."""
        return self.prediction, len(self.rows)


@dataclass(frozen=True)
class Trajectories:
    """lams: (M + 1,). x: the states there, m: the model's native predictions, both (M + 1, n, *shape). end: where a solver is to
    arrive, (n, *shape): the last state, or its x̂0 where all `denoise`."""

    problem: Problem
    model: EpsModel
    lams: Array
    x: Tensor
    m: Tensor
    end: Tensor
    _forms: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def off(self, plan: Plan) -> Array:
        """Where a plan arrives less where it should, (n, pixels)."""
        return _host(run(plan, self.model, self.x[0]).x - self.end, 1)

    def local_errors(self, planner: Planner, steps: Sequence[tuple[int, int, int]]) -> Array:
        """e of steps (i, j, how many steps come before), (len(steps),)."""
        taken = [self._step(planner, *step) for step in steps]
        found: dict[Step, float] = {}
        with tqdm(total=len(set(taken)), desc="local errors", disable=None, leave=False) as bar:
            for _, group in groupby(sorted(set(taken), key=lambda step: step.shape), lambda step: step.shape):
                alike = list(group)
                for some in (alike[first : first + TOGETHER] for first in range(0, len(alike), TOGETHER)):
                    found.update(zip(some, typical(sizes(_host(self._errors(some), 2))).tolist(), strict=True))
                    bar.update(len(some))
        return np.array([found[step] for step in taken])

    @cached_property
    def growth(self) -> Array:
        """g at every λ, (M + 1,), from 16 of them."""
        ddim, last = find("ddim"), len(self.lams) - 1
        known = np.linspace(last // 12, last, 16).astype(int)
        g = []
        for j in tqdm(known.tolist(), desc="growth of errors", disable=None, leave=False):
            step = self._step(lambda lams: ddim.plan(lams, self.problem.schedule), j - last // 12, j, 0)
            (error,) = self._errors([step])
            moved, unmoved = self._carried(torch.cat([self.x[j] + error, self.x[j]]), j).chunk(2)
            g.append(typical(sizes(_host(moved - unmoved, 1))) / typical(sizes(_host(error, 1))))
        return np.exp(np.interp(np.arange(last + 1), known, np.log(g)))

    def _carried(self, x: Tensor, j: int) -> Tensor:
        """States (2 n, *shape) at λ_j carried to the end by a dozen steps, which is enough for their differences."""
        way = self.lams[np.unique(np.linspace(j, len(self.lams) - 1, 13).round().astype(int))].tolist()
        way += [np.inf] * self.problem.settings.denoise
        if len(way) == 1:
            return x
        plan = find("dpmpp2m").plan(np.array(way), self.problem.schedule)
        return run(plan, self.model.taking([*range(len(self.end))] * 2), x).x

    def _step(self, planner: Planner, i: int, j: int, before: int) -> Step:
        """The step's rows in the plan of a short grid, of what it looks back on, the step itself, and one more after it."""
        last, count = len(self.lams) - 1, min(before, LOOK_BACK, i)
        apart = min(j - i, i / count) if count == LOOK_BACK else i / max(count, 1)
        knots = [*(i - round(apart * back) for back in range(count, 0, -1)), i, j, *[min(2 * j - i, last)] * (j < last)]
        lams = [*self.lams[knots].tolist(), *[np.inf] * (j == last and self.problem.settings.denoise)]
        plan = planner(np.array(lams))
        if plan.stochastic or plan.grid != lams:
            raise InputError(f"{plan.solver} draws noise or leaves its grid, so no grid is optimal: take a solver of the ODE")
        try:
            return Step(i, j, plan.prediction, tuple(_rows(plan, count, dict(zip(lams, knots, strict=False)))))
        except KeyError:
            raise InputError(f"{plan.solver} uses evaluations within earlier steps, which are not known exactly") from None

    def _errors(self, steps: Sequence[Step]) -> Tensor:
        """u − x* of steps of one shape, (steps, n, *shape)."""
        known, within = self._known(steps[0].prediction), list[Tensor]()
        for rows in zip(*(step.rows for step in steps), strict=True):
            u = torch.stack([row.x * self.x[step.i] for step, row in zip(steps, rows, strict=True)])
            for place, row in enumerate(rows):
                for k, c in row.known:
                    u[place].add_(known[k], alpha=c)
                for k, c in row.within:
                    u[place].add_(within[k][place], alpha=c)
            if len(within) < len(steps[0].rows) - 1:
                lams, most = [row.lam for row in rows], self.problem.settings.batch
                within.append(evaluate(self.model, u, lams, steps[0].prediction, most))
        return u - self.x[[step.j for step in steps]]

    def _known(self, form: str) -> Tensor:
        """The predictions at the known λ in this form, (M + 1, n, *shape)."""
        if form not in self._forms:
            ends = zip(self.problem.schedule.alpha(self.lams), self.problem.schedule.sigma(self.lams), strict=True)
            pairs = (convert(self.model.predicts, form, float(alpha), float(sigma)) for alpha, sigma in ends)
            self._forms[form] = torch.stack([a * x + b * m for (a, b), x, m in zip(pairs, self.x, self.m, strict=True)])
        return self._forms[form]


@torch.no_grad()
def follow(settings: Settings, *, n: int = SAMPLES, seed: int = FIRST_SEED, known_at: int = KNOWN_AT) -> Trajectories:
    """The trajectories of n samples of a model, of seeds seed, seed + 1, ...: of other samples than those of `settings`.

    They are made once for all solvers and budgets. A network in half precision is taken in float32, since its rounding would hide
    the errors. InputError for a model whose output is not finite, and as Problem.
    """
    dtype = settings.dtype if settings.dtype == "float64" else "float32"
    problem, rows = Problem(replace(settings, n=n, seed=seed, batch=max(n, settings.batch), dtype=dtype)), slice(0, n)
    model, lams = problem.of(problem.model, rows), grids.make("logsnr", problem.schedule, known_at)
    states: list[Tensor] = []
    x = problem.start(rows, problem.settings.state, settings.device)
    with tqdm(total=known_at, desc="trajectories", disable=None, leave=False) as bar:
        watched = model.watched(refuse_nonfinite).watched(lambda evaluation, lam, m: bar.update())
        run(find("unipc3").plan(lams, problem.schedule), watched, x, on_step=lambda step: states.append(step.x.clone()))
    x = torch.stack(states)
    m = evaluate(model, x, lams, model.predicts, problem.settings.batch)
    end = model(x[-1], lams[-1], "data") if settings.denoise else x[-1]
    return Trajectories(problem, model, lams, x, m, end)


@torch.no_grad()
def evaluate(model: EpsModel, x: Tensor, lams: Sequence[float] | Array, form: str, batch: int) -> Tensor:
    """The predictions of a model of n samples for x (k, n, *shape) at k different λ, about `batch` samples at a time."""
    n, most = x.shape[1], max(batch // x.shape[1], 1)
    parts = []
    for some, at in zip(x.split(most), np.split(np.asarray(lams), range(most, len(x), most)), strict=True):
        parts.append(model.at(some.flatten(0, 1), np.repeat(at, n), form, rows=[*range(n)] * len(some)))
    return torch.cat(parts).view(x.shape)


def sizes(off: Array) -> Array:
    """The root mean square over pixels, for off (..., n, pixels)."""
    return np.sqrt(np.mean(off**2, -1))


def typical(size: Array) -> Array:
    """The geometric mean over samples, for size (..., n); not quite zero."""
    return np.exp(np.mean(np.log(np.maximum(size, 1e-300)), -1))


def _host(x: Tensor, samples: int) -> Array:
    """States as float64 on the host, the dimensions from `samples` on as one."""
    return x.flatten(samples).cpu().double().numpy()


def _rows(plan: Plan, before: int, index: dict[float, int]) -> Iterator[Row]:
    """The rows of the plan's step after `before` others; index: of its known λ."""
    at: list[float] = []  # of each evaluation
    fresh: dict[int, int] = {}  # evaluations within the step -> their number
    committed = -1
    for stage in plan.stages:
        if committed == before and (stage.evaluate or stage.commit):
            c = {k: value(number) for k, number in stage.c.items()}
            known = tuple((index[at[k]], c[k]) for k in c if k not in fresh)
            yield Row(stage.lam, value(stage.x), known, tuple((fresh[k], c[k]) for k in c if k in fresh))
            fresh[len(at)] = len(fresh)
        at += [stage.lam] * stage.evaluate
        committed += stage.commit
        if committed > before:
            return
