"""The checks: what is measured of each claim, and what makes it hold; see solvers/verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode import schedules
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.execute import is_finite
from solvers.gaussian import exact, variance
from solvers.options import Options
from solvers.solver import Solver
from solvers.verify.problem import (
    SAMPLES,
    SCHEDULES,
    SETTINGS,
    STEPS,
    case,
    model_of,
    network_of,
    solve,
    states,
    trajectories,
    within,
)


@dataclass(frozen=True)
class Check:
    """A claim: what was measured, what was claimed, and whether it holds. Nothing is measured where nothing is claimed."""

    measured: str = "–"
    claimed: str = ""
    ok: bool = True

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.measured}" if self.claimed else self.measured


def slope(coarse: Tensor, fine: Tensor) -> float:
    """log2 of the ratio of two errors (batch, *shape), the median of the samples; ∞ if there is no error.

    Some samples go from one component over to another too fast for a grid that suits all others. A mean would tell of them alone.
    """
    coarse, fine = (error.reshape(len(error), -1).norm(dim=1) for error in (coarse, fine))
    return float(torch.log2(coarse / fine).median()) if coarse.any() else np.inf


def difference(x: Tensor, y: Tensor) -> float:
    """The largest |x − y| in units of the largest |y|."""
    return float((x.double() - y.double()).abs().max() / y.double().abs().max())


def order(solver: Solver) -> Check:
    """Within 0.15 of the one declared."""
    if solver.fixed_plan is not None:
        return Check("one grid")
    if solver.chooses_steps:
        return _follows(solver)
    values = np.array([*(_weak if solver.stochastic else _strong)(solver)])
    worst = values[np.argmax(abs(values - solver.order))]
    return Check(f"{solver.order}: {worst:.2f}", f"{solver.order} ± 0.15", bool(abs(worst - solver.order) <= 0.15))


def _strong(solver: Solver) -> Iterator[float]:
    """Between numbers of steps where h^order is what is left of the error and rounding, 1e-14, is far: single steps of several
    evaluations are soon exact; multistep methods of order 4 and 5 take long to show it."""
    options: Options = {"start": "single"} if "start" in solver.options else {}
    options |= {"rtol": 1e-5, "atol": 1e-5} if "rtol" in solver.options else {}
    steps = (50 if solver.order <= 3 else 100) if solver.nfe_per_step <= 1 else 20 if solver.order <= 3 else 30
    for path, spacing, _ in SETTINGS:
        model, x, truth = trajectories(path)
        lams = [grids.make("logsnr" if solver.equal_steps else spacing, model.schedule, n) for n in (steps, 2 * steps)]
        yield slope(*(solve(solver, model, x, each, **options).x - truth for each in lams))


def _weak(solver: Solver) -> Iterator[float]:
    """In distribution: of the variance of N(0, s²), by exact arithmetic. A window of σ̄ in which there is noise, were it to end
    within the grid, would end with a step, and the model that is solved would change with the grid."""
    everywhere = {"s_tmin": 0.0, "s_tmax": np.inf} if "s_tmin" in solver.options else {}
    for path, spacing, s in SETTINGS:
        schedule = within(path, 2.0)
        plans = [solver.plan(grids.make(spacing, schedule, n), schedule, **everywhere) for n in (400, 800)]
        coarse, fine = (abs(variance(plan, s) / exact(plan, schedule.lam_max, s) - 1) for plan in plans)
        yield float(np.log2(coarse / fine))


def _follows(solver: Solver) -> Check:
    """Error against tolerance, from 1e-3 to 1e-5. Ours stay below it; torchdiffeq's fehlberg2 estimates 1/512 of its error."""
    model, x, truth = trajectories("vp")
    ends, errors = grids.make("logsnr", model.schedule, 1), []
    most = 1000 if solver.source == "torchdiffeq" else 1
    for tolerance in (1e-3, 1e-5):
        off = solve(solver, model, x, ends, rtol=tolerance, atol=tolerance).x - truth
        errors.append(float(off.square().mean().sqrt()) / tolerance)
    power = 1 + np.log10(errors[0] / errors[1]) / 2
    ok = power >= 0.5 and np.max(errors) <= most
    return Check(f"tol^{power:.1f}, {np.max(errors):.1g} tol", f"tol^0.5 or faster, {most} tol or less", bool(ok))


def started(solver: Solver) -> Check:
    """The order that the default start leaves: that of the difference from a start of full order, or the full order if less."""
    if "start" not in solver.options or solver.stochastic:
        return Check()
    (model, x, _), claim = trajectories("vp"), solver.ramp_order or solver.order
    added = []
    for steps in (50, 100):
        lams = grids.make("logsnr", model.schedule, steps)
        added.append(solve(solver, model, x, lams).x - solve(solver, model, x, lams, start="single").x)
    left = min(slope(*added), float(solver.order))
    return Check(f"{claim}: {left:.2f}", f"{claim} ± 0.15", abs(left - claim) <= 0.15)


def forms(solver: Solver) -> Check:
    """But for rounding, which changes the steps of adaptive solvers a little, and NOISIEST, where a plan begins at α = 0."""
    schedule, lams = case(solver)
    x, most = states(schedule, lams[0]), 1e-6 if solver.chooses_steps or lams[0] == -np.inf else 1e-9
    noise = ["noise"] if lams[0] > -np.inf else []  # there it says nothing of x0
    velocity = ["velocity"] if schedule.path.name == "vp" else []
    first, *others = (solve(solver, model_of(schedule, name), x, lams).x for name in ("data", "flow", *velocity, *noise))
    off = np.max([difference(other, first) for other in others])
    return Check(f"{off:.0e}", f"below {most:.0e}", bool(off < most))


def round_trip(solver: Solver) -> Check:
    """Errors may cancel on the way back, and then fall faster than h^order."""
    if not solver.has_plan or solver.fixed_plan or solver.stochastic:
        return Check()
    (model, x, _), least = trajectories("vp"), (solver.ramp_order or solver.order) - 0.5
    off = []
    for steps in (20, 40):
        lams = grids.make("logsnr", model.schedule, steps)
        encoded = solve(solver, model, x, lams[::-1]).x
        if not is_finite(encoded):
            return Check("not finite", "a state to come back from", False)
        off.append(solve(solver, model, encoded, lams).x - x)
    power = slope(*off)
    return Check(f"h^{power:.1f}", f"h^{least} or faster, or below 1e-9", power >= least or float(off[1].abs().max()) < 1e-9)


def batch(solver: Solver) -> Check:
    """The methods of torchdiffeq that have a tolerance have it for all images together; per_sample is their promise. On some
    processors the rounding of a row of a matrix product depends on its place, and where a solver chooses its steps by an error,
    these follow the rounding."""
    single = 1e-4 if solver.chooses_steps else 1e-5
    alone = {"per_sample": True} if "per_sample" in solver.options else {}
    (schedule, lams), images, off = case(solver), 2 if alone else SAMPLES, []
    for dtype in (torch.float64, torch.float32):
        model, x = model_of(schedule, dtype=dtype), states(schedule, lams[0])[:images].to(dtype)
        halves = [solve(solver, model, half, lams, seed=i * images // 2, **alone).x for i, half in enumerate(x.chunk(2))]
        off.append(difference(torch.cat(halves), solve(solver, model, x, lams, **alone).x))
    shown = ", ".join(f"{value:.0e}" if value else "0" for value in off)
    return Check(shown, f"below 1e-12, {single:.0e} in float32", off[0] < 1e-12 and off[1] < single)


def nfe(solver: Solver) -> Check:
    """n more steps cost n times what is declared a step; there may be a constant besides, as of pndm."""
    counted, agree = [], True
    for steps in (STEPS, 2 * STEPS):
        schedule, lams = case(solver, steps)
        model = model_of(schedule)
        result = solve(solver, model, states(schedule, lams[0]), lams)
        said = sum(result.adaptive.nfe) if result.adaptive else result.nfe * SAMPLES
        agree &= said == network_of(model).rows and solver.on(lams, schedule).nfe in (None, result.nfe)
        counted.append(network_of(model).rows / SAMPLES)
    if not solver.nfe_per_step:
        return Check(f"{counted[0]:.3g}", "what the result says", agree)
    step = (counted[1] - counted[0]) / STEPS
    rest = f"{counted[0] - STEPS * step:+g}" if counted[0] != STEPS * step else ""
    each, claimed = "" if step == 1 else f"{step:g}", f"{solver.nfe_per_step} a step, and what the result says"
    return Check(f"{each}n{rest}", claimed, agree and step == solver.nfe_per_step)


def clean_end(solver: Solver) -> Check:
    """One of the three numbers of steps may be refused, as by dpm-fast; torchdiffeq's methods refuse an infinite λ."""
    if solver.fixed_plan is not None:
        grids_to_end = [case(solver)] if solver.fixed_plan.grid[-1] == np.inf else []
    else:
        schedule = SCHEDULES["vp"]
        numbers = (2,) if solver.chooses_steps else (1, 2, 3)
        grids_to_end = [(schedule, grids.make("logsnr", schedule, steps, denoise=True)) for steps in numbers]
    off, refused = [], ""
    for schedule, lams in grids_to_end:
        model = model_of(schedule)
        try:
            x = solve(solver, model, states(schedule, lams[0]), lams).x
            off.append(difference(x, x if _extrapolates(solver, schedule, lams) else network_of(model).split()[2]))
        except InputError as error:
            refused = str(error)
    if not grids_to_end:
        return Check()
    if not off or len(off) < len(grids_to_end) - 1:
        return Check("refused", f"the last x̂0, not: {refused}", not solver.accepts_denoise)
    return Check(f"{np.max(off):.0e}", "the last x̂0 to 1e-9", bool(np.max(off) < 1e-9))


def _extrapolates(solver: Solver, schedule: Schedule, lams: Array) -> bool:
    """Whether the last row has several ε: to methods that step in σ̄ the end is a step like any other, and x has to be finite."""
    plan = solver.plan(lams, schedule) if solver.has_plan else None
    return plan is not None and plan.prediction == "noise" and len(plan.stages[-1].c) > 1


def noisy_end(solver: Solver) -> Check:
    """The same from both networks, which α = 1.5e-8 for 0 does not change by more than 1e-6."""
    if solver.fixed_plan is not None:
        return Check()
    schedule = schedules.flow(t_noisy=1.0)
    lams = grids.make("time", schedule, 1 if solver.chooses_steps else 4)
    try:
        x, y = (solve(solver, model_of(schedule, name), states(schedule, lams[0]), lams).x for name in ("data", "flow"))
    except InputError as error:
        return Check("refused", f"finite, or refused with a reason: {error}")
    off = difference(x, y)
    return Check(f"{off:.0e}", "finite, the same below 1e-6", off < 1e-6)


def float32(solver: Solver) -> Check:
    """To 1e-3, an eighth of a grey level of 255: rounding is 6e-8, the responsibilities of a mixture make it 1e-6, and a method
    near the end of its stability, ipndm+unic, 1e-4. Adaptive solvers change steps. The median of the samples, as in slope."""
    schedule, lams = case(solver, 2 * STEPS)
    x, most = states(schedule, lams[0]).float(), 1e-2 if solver.chooses_steps else 1e-3
    tight: Options = {"rtol": 1e-3, "atol": 1e-3} if solver.chooses_steps else {}
    single, double = (
        solve(solver, model_of(schedule, dtype=dtype), x.to(dtype), lams, **tight).x for dtype in (torch.float32, torch.float64)
    )
    off = float(torch.tensor([difference(*pair) for pair in zip(single, double, strict=True)]).median())
    return Check(f"{off:.0e}", f"below {most:.0e}", off < most)


CLAIMS: dict[str, Callable[[Solver], Check]] = {
    "order": order,
    "as started": started,
    "forms": forms,
    "round trip": round_trip,
    "batch": batch,
    "NFE": nfe,
    "σ = 0": clean_end,
    "α = 0": noisy_end,
    "float32": float32,
}
