"""Adaptive steps: embedded pairs of the planned single steps, with a controller for each sample, so that an image does not
depend on its batch.

A pair is two methods of orders p − 1 and p whose rows are the same but for the last, so that the difference of the two last rows
estimates the error of the lower and costs no evaluation. With s(λ) = sqrt(α² + σ²), the size of a state, a step from x to u has

    error = rms over the pixels of δ/(atol s_t + rtol max(|x| s_t/s_s, |u|)),    δ = |u − û| + eps |u|

and is accepted, with the u of order p, if that is at most 1. So a tolerance means on every path what it means on vp, where
s = 1; eps is the rounding of the state, below which no step is better than another. How long the next step is, is decided in
step_control.py. A rejected step keeps its first evaluation. All samples on their way are advanced by one network call per stage,
each at a λ of its own; their coefficients are those of the planned solver, in float64 on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffode.checks import number
from diffode.errors import InputError, shown
from diffode.evaluation import Counter, columns
from diffode.guidance import calls_of
from diffode.model import EpsModel
from diffode.schedule import Array, Schedule
from solvers.execute import refuse_nonfinite
from solvers.hooks import NO_HOOKS, Hooks
from solvers.plan import Plan
from solvers.result import AdaptiveSteps, Result
from solvers.singlestep import SIGN, Method, Rows, first, second, single_steps, third
from solvers.step_control import PIController, Walk, tolerances
from solvers.transfer import transfer


@dataclass(frozen=True)
class Pair:
    """An embedded pair. high, of the given order, and low, of one less: z -> rows, the same but for the last."""

    name: str
    prediction: str
    order: int
    low: Method
    high: Method
    source: str

    @property
    def nfe_per_step(self) -> int:
        """Evaluations of a step; one less after a rejection."""
        return len(self.high(1.0))


PAIRS = (
    Pair("dpm12", "noise", 2, first, second, "Lu et al. 2022a, appendix"),
    Pair("dpm23", "noise", 3, partial(second, r1=1 / 3), third, "Lu et al. 2022a, appendix"),
    Pair("dpmpp12", "data", 2, first, second, "dpm12 in data form"),
    Pair("dpmpp23", "data", 3, partial(second, r1=1 / 3), third, "dpm23 in data form"),
)


class _Batch:
    """States x and first evaluations m0, (batch, *shape), and a walk for each sample. Methods take some of the `samples`."""

    def __init__(self, pair: Pair, model: EpsModel, x: Tensor, walks: list[Walk]) -> None:
        self.pair, self.model, self.walks, self.counter = pair, model, walks, Counter()
        self.x, self.m0 = x.clone(), torch.empty_like(x)

    def lams(self, samples: list[int]) -> Array:
        return np.array([self.walks[i].lam for i in samples])

    def evaluate(self, samples: list[int], x: Tensor, lams: Array) -> Tensor:
        """The predictions at x (samples, *shape) and lams (samples,); InputError where one is not finite."""
        m = self.model.at(x, lams, self.pair.prediction, samples if len(samples) < len(self.walks) else None, self.counter)
        for i, calls in zip(samples, self._calls(samples, lams), strict=True):
            self.walks[i].nfe += 1
            self.walks[i].calls += calls
        if not torch.isfinite(m).all():
            for i, lam, m_i in zip(samples, lams, m, strict=True):
                refuse_nonfinite(self.walks[i].nfe, lam, m_i, of=self.model)
        return m

    def _calls(self, samples: list[int], lams: Array) -> list[int]:
        """How many network calls each would take by itself, as a weight of guidance may be 1 for some of them only."""
        of_all = np.full(len(self.walks), lams[0])
        of_all[samples] = lams
        calls = calls_of(self.model.guidance, of_all[None], len(of_all))[0]
        return np.broadcast_to(calls, len(of_all))[samples].tolist()

    def leap(self, samples: list[int], lam_t: float) -> None:
        """The first-order step from or to an infinite λ, which has no length to control; all samples are at one λ."""
        if samples:
            lams = self.lams(samples)
            keep, gain = transfer(self.model.schedule.path, self.pair.prediction, lams[0], lam_t)
            self.x[samples] = keep * self.x[samples] + gain * self.evaluate(samples, self.x[samples], lams)
            for i in samples:
                self.walks[i].grid.append(lam_t)

    def attempt(self, samples: list[int], rtol: float, atol: float) -> None:
        """Try the next step of each."""
        if new := [i for i in samples if not self.walks[i].was_rejected]:
            self.m0[new] = self.evaluate(new, self.x[new], self.lams(new))
        lam_s, lam_t = self.lams(samples), np.array([self.walks[i].target() for i in samples])
        u, difference = self._step(samples, lam_s, lam_t)
        s_s, s_t = (np.hypot(self.model.schedule.alpha(lam), self.model.schedule.sigma(lam)) for lam in (lam_s, lam_t))
        least, ratio = columns(np.stack([atol * s_t, s_t / s_s]), u)
        tolerance = least + rtol * torch.maximum(self.x[samples].abs() * ratio, u.abs())
        delta = (difference.abs() + torch.finfo(u.dtype).eps * u.abs()) / tolerance
        # One norm per sample: in one for all, the order of summation may depend on the batch.
        errors = torch.stack([row.norm() for row in delta]) / math.sqrt(u[0].numel())
        for i, u_i, lam, error in zip(samples, u, lam_t.tolist(), errors.tolist(), strict=True):
            if self.walks[i].judge(lam, error):
                self.x[i] = u_i

    def _step(self, samples: list[int], lam_s: Array, lam_t: Array) -> tuple[Tensor, Tensor]:
        """The state of the higher order at λ_t, and its difference from that of the lower."""
        path, prediction, h = self.model.schedule.path, self.pair.prediction, lam_t - lam_s
        high, low = ([method(SIGN[prediction] * step) for step in h.tolist()] for method in (self.pair.high, self.pair.low))
        x, m = self.x[samples], [self.m0[samples]]
        for stage, (r, _) in enumerate(high[0]):  # r is the same for all samples
            lams = lam_t if r == 1 else lam_s + r * h
            keep, gain = np.array([transfer(path, prediction, *ends) for ends in zip(lam_s, lams, strict=True)]).T
            w = _weights(high, stage, len(m))
            u = _sum(np.stack([keep, *gain * w]), [x, *m])
            if stage < len(high[0]) - 1:
                m.append(self.evaluate(samples, u, lams))
        return u, _sum(gain * (w - _weights(low, -1, len(m))), m)


@torch.no_grad()
def integrate(
    pair: Pair,
    model: EpsModel,
    x: Tensor,
    grid: Array,
    hooks: Hooks = NO_HOOKS,
    *,
    rtol: float = 0.005,
    atol: float = 0.005,
    max_nfe: int = 100_000,
    first_step: float = 0.05,
) -> Result:
    """Integrate x (batch, *shape) from the first to the last λ of the grid; only these two are used.

    If the last is +∞, one first-order step goes there from the last finite λ. From a first λ of −∞ (zero terminal SNR, for pairs
    in data form) one first-order step leads to the λ where e^(2λ) = atol/10; its error is about e^(2λ). λ may also fall.

    rtol, atol: at the default the exact images of a mixture are met to about one grey level of 255, rms, for some 45 evaluations.
    max_nfe: what a sample may spend. One that would need more stops, and its last accepted state is returned, with its λ in
    Result.adaptive.lam. first_step: the length that is tried first, in λ. hooks: none is supported; the ODE draws no noise.

    Result.nfe is the most of any sample. Result.adaptive has the steps and evaluations of each, and the plan with which run()
    takes the same way (None for one that never moved); leaps to or from infinity are steps there.

    InputError for ends and options that are not possible, for a network output that is not finite, and where no step is short
    enough, with λ, sample and evaluation; tolerances below the rounding of the dtype lead there.
    """
    rtol, atol, max_nfe = tolerances(rtol, atol, max_nfe)
    first_step = number("first_step", first_step, positive=True)
    begin, end = _ends(pair, np.asarray(grid, np.float64), atol)
    shortest = max(1e-10 * abs(end - begin), 8 * np.spacing(max(abs(begin), abs(end))))  # float64 resolves no less
    controller = PIController(pair.order)
    batch = _Batch(pair, model, x, [Walk([float(grid[0])], end, max(first_step, shortest), controller) for _ in x])
    if begin != grid[0]:
        batch.leap([*range(len(x))], begin)

    def moves(walk: Walk) -> bool:
        return walk.lam != end and walk.nfe + pair.nfe_per_step - walk.was_rejected <= max_nfe

    while rows := [i for i, walk in enumerate(batch.walks) if moves(walk)]:
        batch.attempt(rows, rtol, atol)
        for i in rows:
            _refuse_stuck(pair, i, batch.walks[i], shortest, (rtol, atol))
    if grid[-1] == np.inf:
        batch.leap([i for i, walk in enumerate(batch.walks) if walk.lam == end and walk.nfe < max_nfe], np.inf)
    steps = AdaptiveSteps(
        accepted=tuple(len(walk.grid) - 1 for walk in batch.walks),
        rejected=tuple(walk.rejections for walk in batch.walks),
        nfe=tuple(walk.nfe for walk in batch.walks),
        calls=tuple(walk.calls for walk in batch.walks),
        grids=tuple(tuple(walk.grid) for walk in batch.walks),
        make_plan=partial(_plan, pair, model.schedule),
    )
    finished = set(steps.lam) <= {float(grid[-1])}
    return Result(batch.x, max(steps.nfe, default=0), batch.counter.calls, adaptive=steps, finished=finished)


def _refuse_stuck(pair: Pair, sample: int, walk: Walk, shortest: float, tolerances: tuple[float, float]) -> None:
    """InputError for a sample whose next step would be shorter than float64 resolves."""
    if walk.h < shortest and walk.lam != walk.end:
        raise InputError(
            f"{pair.name} cannot meet rtol = {tolerances[0]:g} and atol = {tolerances[1]:g} at λ = {walk.lam:.6g}, "
            f"sample {sample}, evaluation {walk.nfe}, with steps down to {walk.h:.1e}: loosen them, or use float64"
        )


def _plan(pair: Pair, schedule: Schedule, grid: tuple[float, ...]) -> Plan | None:
    """The accepted steps as a plan, if there are any."""
    if len(grid) < 2:
        return None
    sign = SIGN[pair.prediction]
    return single_steps(pair.name, np.array(grid), schedule, pair.prediction, lambda h: pair.high(sign * h))


def _ends(pair: Pair, grid: Array, atol: float) -> tuple[float, float]:
    """The finite λ between which steps are controlled; InputError if there are no two."""
    finite = grid[np.isfinite(grid)].tolist()
    wrong = np.isnan(grid).any() or grid[0] == np.inf or grid[-1] == -np.inf
    if wrong or not finite or finite[-1] == grid[0]:
        raise InputError(
            f"{pair.name} goes from one finite λ, or from −∞, to another finite one, and on to +∞ if asked, not along "
            f"{shown(grid.tolist())}: give both ends, as in [-inf, 6, inf]"
        )
    end = finite[-1]
    return (finite[0] if np.isfinite(grid[0]) else min(0.5 * math.log(0.1 * atol), end)), end


def _weights(methods: list[Rows], stage: int, evaluations: int) -> Array:
    """The weights of one stage of each method, (evaluations, methods)."""
    return np.array([[rows[stage][1].get(j, 0.0) for rows in methods] for j in range(evaluations)])


def _sum(coefficients: Array, terms: list[Tensor]) -> Tensor:
    """Σ coefficient · term for coefficients (terms, rows) and terms (rows, *shape); 0 · NaN is NaN, so zeros are left out.

    Products and sums apart: fused, the bits of a pixel may depend on its place in memory, and so on the batch.
    """
    total, *rest = [
        c * term for c, term, row in zip(columns(coefficients, terms[0]), terms, coefficients, strict=True) if row.any()
    ]
    for product in rest:
        total.add_(product)
    return total
