"""verify: what every solver claims, measured on the machine it runs on.

The truth is a Gaussian mixture: one class of the shipped one at 7 × 7 pixels, so that its exact ε costs a tenth of a millisecond.
Each function in CLAIMS takes a solver and returns a Check, a cell of its line in the table:

    order       errors fall as h^order, on two grids and two paths; if stochastic, the error of the variance on Gaussian data does
                (weak order); if adaptive, errors follow the tolerance
    as started  what the default start of a multistep method adds to a start of full order falls as said
    forms       noise, data, velocity and flow networks of one model give the same images
    round trip  the plan of the reversed grid and the plan lead back, the closer the finer
    batch       sixteen images at once are twice eight, in float64 and in float32
    NFE         evaluations, counted at the network, are those of the result, and those declared a step
    σ = 0       one, two and three steps to there end with the network's last x̂0 (methods that step in σ̄: are finite)
    α = 0       networks that are finite there, data and flow, can begin there (zero terminal SNR), or are refused with a reason
    float32     gives the images of float64

A plan has one grid, and no order to be measured. Orders up to 5 can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode import schedule as schedules
from diffode.errors import InputError
from diffode.mixture import ALPHA, Mixture
from diffode.model import EpsModel
from diffode.models import checkpoint, pretrained
from diffode.noise import SeededNoise
from diffode.ode import accurate
from diffode.prediction import PREDICTIONS
from diffode.schedule import Array, Schedule
from solvers.entries import Adaptive, BlackBox, Entry, Options, Planned, Solver
from solvers.execute import Result
from solvers.gaussian import exact, variance
from solvers.registry import SOLVERS, find

LABEL, POOLED, SAMPLES = 9, 4, 16  # ankle boots: three components; averages of 4 × 4 pixels; images, and rows of a product
STEPS, TOLERANCE = 12, 1e-2  # where neither is the point; rtol and atol
NOISIEST = -18.0  # the mixture divides by α, so α = 0 is seen from here, where α = 1.5e-8
SCHEDULES = {"vp": schedules.vp_linear(), "flow": schedules.flow()}
SETTINGS = (("vp", "logsnr", 0.5), ("flow", "karras", 2.0))  # path, grid, standard deviation of Gaussian data


@dataclass(frozen=True)
class Check:
    """A claim: what was measured, what was claimed, and whether it holds. Nothing is measured where nothing is claimed."""

    measured: str = "–"
    claimed: str = ""
    ok: bool = True

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.measured}" if self.claimed else self.measured


class Network:
    """The mixture as a network that predicts `predicts`. rows: how many images it has been asked about; last: what about last."""

    def __init__(self, mixture: Mixture, predicts: str) -> None:
        self.mixture, self.predicts, self.rows = mixture, predicts, 0

    def __call__(self, x: Tensor, lam: Tensor) -> Tensor:
        lam = lam.clamp(min=NOISIEST)
        tangent = self.mixture(x, lam)
        self.rows, self.last = self.rows + len(x), (x.clone(), lam, tangent)
        if self.predicts == "tangent":
            return tangent
        alpha, sigma, x0, eps = self.split()
        p0, p1 = PREDICTIONS[self.predicts](alpha, sigma)  # type: ignore[arg-type]
        return p0 * x0 + p1 * eps

    def split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(α, σ, x̂0, ε) where it was asked last."""
        x, lam, tangent = self.last
        alpha = ALPHA[self.mixture.path](lam).view(-1, 1, 1, 1)
        sigma = alpha * torch.exp(-lam).view(-1, 1, 1, 1)
        size = alpha**2 + sigma**2
        return alpha, sigma, (alpha * x - sigma * tangent) / size, (sigma * x + alpha * tangent) / size


@cache
def mixture(path: str, dtype: torch.dtype) -> Mixture:
    """The shipped mixture's class LABEL, POOLED, on a path."""
    tensors, card = checkpoint.read(pretrained.WEIGHTS / "mixture.safetensors")
    kept = tensors["label"] == LABEL
    one = {name: tensor[kept] for name, tensor in tensors.items()}
    return Mixture(one, card["image"], path, dtype, rows=SAMPLES).pooled(POOLED)


def model_of(schedule: Schedule, predicts: str = "tangent", dtype: torch.dtype = torch.float64) -> EpsModel:
    """The mixture on a schedule, as a network that predicts `predicts`."""
    return EpsModel(Network(mixture(schedule.path.name, dtype), predicts), schedule, predicts, clock="lam")


def network_of(model: EpsModel) -> Network:
    """The Network of a model of model_of."""
    assert isinstance(model.network, Network)
    return model.network


def states(schedule: Schedule, lam: float) -> Tensor:
    """Exact samples at λ, (SAMPLES, 1, 7, 7), float64."""
    x0 = mixture(schedule.path.name, torch.float64).sample(SAMPLES)
    z = torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(0))
    return float(schedule.alpha(lam)) * x0 + float(schedule.sigma(lam)) * z


def within(path: str, end: float) -> Schedule:
    """The path's schedule from λ = −end to end alone: a model on it cannot be called outside."""
    schedule = SCHEDULES[path]
    return replace(schedule, t_noisy=float(schedule.t(-end)), t_clean=float(schedule.t(end)))


@cache
def trajectories(path: str) -> tuple[EpsModel, Tensor, Tensor]:
    """(the model from λ = −1 to 1, exact samples at its noisy end, the same trajectories at its clean end)."""
    schedule = within(path, 1.0)
    model, x = model_of(schedule), states(schedule, schedule.lam_min)
    return model, x, accurate(model, x, schedule.lam_min, schedule.lam_max, 3e-14)


def solve(entry: Entry, model: EpsModel, x: Tensor, lams: Array, *, seed: int = 0, **options: Any) -> Result:
    """Run it from x with the noise of seeds seed, seed + 1, ..., at TOLERANCE unless `options` say otherwise."""
    tolerances = {"rtol": TOLERANCE, "atol": TOLERANCE} if "rtol" in entry.options else {}
    return entry.solve(model, x, lams, noise=SeededNoise(range(seed, seed + len(x))), **{**tolerances, **options})


def case(entry: Entry, steps: int = STEPS) -> tuple[Schedule, Array]:
    """A schedule and a grid over all of it, of an adaptive solver its ends; of a plan its own, on a clock that is λ itself."""
    if isinstance(entry, Planned):
        lams = np.array(entry.grid)
        own = Schedule("λ", entry.made.path, lams.min(), lams.max(), np.asarray, np.asarray, np.ones_like)
        return own, lams
    return SCHEDULES["vp"], grids.make("logsnr", SCHEDULES["vp"], 1 if entry.adaptive else steps)


def slope(coarse: Tensor, fine: Tensor) -> float:
    """log2 of the ratio of two errors (batch, *shape), the median of the samples; ∞ if there is no error.

    Some samples go from one component over to another too fast for a grid that suits all others. A mean would tell of them alone.
    """
    coarse, fine = (error.flatten(1).norm(dim=1) for error in (coarse, fine))
    return float(torch.log2(coarse / fine).median()) if coarse.any() else np.inf


def difference(x: Tensor, y: Tensor) -> float:
    """The largest |x − y| in units of the largest |y|."""
    return float((x.double() - y.double()).abs().max() / y.double().abs().max())


def order(entry: Entry) -> Check:
    """Within 0.15 of the one declared."""
    if isinstance(entry, Planned):
        return Check("one grid")
    if entry.adaptive:
        return _follows(entry)
    values = np.array([*(_weak if entry.stochastic else _strong)(entry)])
    worst = values[np.argmax(abs(values - entry.order))]
    return Check(f"{entry.order}: {worst:.2f}", f"{entry.order} ± 0.15", bool(abs(worst - entry.order) <= 0.15))


def _strong(entry: Entry) -> Iterator[float]:
    """Between numbers of steps where h^order is what is left of the error and rounding, 1e-14, is far: single steps of several
    evaluations are soon exact; multistep methods of order 4 and 5 take long to show it."""
    options: Options = {"start": "single"} if "start" in entry.options else {}
    options |= {"rtol": 1e-5, "atol": 1e-5} if "rtol" in entry.options else {}
    equal = isinstance(entry, BlackBox) and entry.method.max_order > 0  # torchdiffeq's Adams methods take equal steps only
    steps = (50 if entry.order <= 3 else 100) if entry.evaluations <= 1 else 20 if entry.order <= 3 else 30
    for path, spacing, _ in SETTINGS:
        model, x, truth = trajectories(path)
        lams = [grids.make("logsnr" if equal else spacing, model.schedule, n) for n in (steps, 2 * steps)]
        yield slope(*(solve(entry, model, x, each, **options).x - truth for each in lams))


def _weak(entry: Entry) -> Iterator[float]:
    """In distribution: of the variance of N(0, s²), by exact arithmetic. A window of σ̄ in which there is noise, were it to end
    within the grid, would end with a step, and the model that is solved would change with the grid."""
    everywhere = {"s_tmin": 0.0, "s_tmax": np.inf} if "s_tmin" in entry.options else {}
    for path, spacing, s in SETTINGS:
        schedule = within(path, 2.0)
        plans = [entry.plan(grids.make(spacing, schedule, n), schedule, **everywhere) for n in (400, 800)]
        coarse, fine = (abs(variance(plan, s) / exact(plan, schedule.lam_max, s) - 1) for plan in plans)
        yield float(np.log2(coarse / fine))


def _follows(entry: Entry) -> Check:
    """Error against tolerance, from 1e-3 to 1e-5. Ours stay below it; torchdiffeq's fehlberg2 estimates 1/512 of its error."""
    model, x, truth = trajectories("vp")
    ends, errors = grids.make("logsnr", model.schedule, 1), []
    most = 1 if isinstance(entry, Adaptive) else 1000
    for tolerance in (1e-3, 1e-5):
        off = solve(entry, model, x, ends, rtol=tolerance, atol=tolerance).x - truth
        errors.append(float(off.square().mean().sqrt()) / tolerance)
    power = 1 + np.log10(errors[0] / errors[1]) / 2
    ok = power >= 0.5 and np.max(errors) <= most
    return Check(f"tol^{power:.1f}, {np.max(errors):.1g} tol", f"tol^0.5 or faster, {most} tol or less", bool(ok))


def started(entry: Entry) -> Check:
    """The order that the default start leaves: that of the difference from a start of full order, or the full order if less."""
    if "start" not in entry.options or entry.stochastic or not isinstance(entry, Solver):
        return Check()
    (model, x, _), claim = trajectories("vp"), entry.started or entry.order
    added = []
    for steps in (50, 100):
        lams = grids.make("logsnr", model.schedule, steps)
        added.append(solve(entry, model, x, lams).x - solve(entry, model, x, lams, start="single").x)
    left = min(slope(*added), float(entry.order))
    return Check(f"{claim}: {left:.2f}", f"{claim} ± 0.15", abs(left - claim) <= 0.15)


def forms(entry: Entry) -> Check:
    """But for rounding, which changes the steps of adaptive solvers a little, and NOISIEST, where a plan begins at α = 0."""
    schedule, lams = case(entry)
    x, most = states(schedule, lams[0]), 1e-6 if entry.adaptive or lams[0] == -np.inf else 1e-9
    noise = ["noise"] if lams[0] > -np.inf else []  # there it says nothing of x0
    velocity = ["velocity"] if schedule.path.name == "vp" else []
    first, *others = (solve(entry, model_of(schedule, name), x, lams).x for name in ("data", "flow", *velocity, *noise))
    off = np.max([difference(other, first) for other in others])
    return Check(f"{off:.0e}", f"below {most:.0e}", bool(off < most))


def round_trip(entry: Entry) -> Check:
    """Errors may cancel on the way back, and then fall faster than h^order."""
    if not isinstance(entry, Solver) or entry.stochastic:
        return Check()
    (model, x, _), least = trajectories("vp"), (entry.started or entry.order) - 0.5
    off = []
    for steps in (20, 40):
        lams = grids.make("logsnr", model.schedule, steps)
        off.append(solve(entry, model, solve(entry, model, x, lams[::-1]).x, lams).x - x)
    power = slope(*off)
    return Check(f"h^{power:.1f}", f"h^{least} or faster, or below 1e-9", power >= least or float(off[1].abs().max()) < 1e-9)


def batch(entry: Entry) -> Check:
    """The methods of torchdiffeq that have a tolerance have it for all images together; per_sample is their promise."""
    alone = {"per_sample": True} if isinstance(entry, BlackBox) and "rtol" in entry.options else {}
    (schedule, lams), images, off = case(entry), 2 if alone else SAMPLES, []
    for dtype in (torch.float64, torch.float32):
        model, x = model_of(schedule, dtype=dtype), states(schedule, lams[0])[:images].to(dtype)
        halves = [solve(entry, model, half, lams, seed=i * images // 2, **alone).x for i, half in enumerate(x.chunk(2))]
        off.append(difference(torch.cat(halves), solve(entry, model, x, lams, **alone).x))
    shown = ", ".join(f"{value:.0e}" if value else "0" for value in off)
    return Check(shown, "below 1e-12, 1e-05 in float32", off[0] < 1e-12 and off[1] < 1e-5)


def nfe(entry: Entry) -> Check:
    """n more steps cost n times what is declared a step; there may be a constant besides, as of pndm."""
    counted, agree = [], True
    for steps in (STEPS, 2 * STEPS):
        schedule, lams = case(entry, steps)
        model = model_of(schedule)
        result = solve(entry, model, states(schedule, lams[0]), lams)
        said = sum(result.taken.nfe) if result.taken else result.nfe * SAMPLES
        agree &= said == network_of(model).rows and (not entry.evaluations or entry.nfe(lams, schedule) == result.nfe)
        counted.append(network_of(model).rows / SAMPLES)
    if isinstance(entry, Planned) or not entry.evaluations:
        return Check(f"{counted[0]:.3g}", "what the result says", agree)
    step = (counted[1] - counted[0]) / STEPS
    rest = f"{counted[0] - STEPS * step:+g}" if counted[0] != STEPS * step else ""
    each, claimed = "" if step == 1 else f"{step:g}", f"{entry.evaluations} a step, and what the result says"
    return Check(f"{each}n{rest}", claimed, agree and step == entry.evaluations)


def clean_end(entry: Entry) -> Check:
    """One of the three numbers of steps may be refused, as by dpm-fast; torchdiffeq's methods refuse an infinite λ."""
    if isinstance(entry, Planned):
        grids_to_end = [case(entry)] if entry.grid[-1] == np.inf else []
    else:
        schedule = SCHEDULES["vp"]
        numbers = (2,) if entry.adaptive else (1, 2, 3)
        grids_to_end = [(schedule, grids.make("logsnr", schedule, steps, denoise=True)) for steps in numbers]
    off, refused = [], ""
    for schedule, lams in grids_to_end:
        model = model_of(schedule)
        try:
            x = solve(entry, model, states(schedule, lams[0]), lams).x
            off.append(difference(x, x if _extrapolates(entry, schedule, lams) else network_of(model).split()[2]))
        except InputError as error:
            refused = str(error)
    if not grids_to_end:
        return Check()
    if not off or len(off) < len(grids_to_end) - 1:
        return Check("refused", f"the last x̂0, not: {refused}", isinstance(entry, BlackBox))
    return Check(f"{np.max(off):.0e}", "the last x̂0 to 1e-9", bool(np.max(off) < 1e-9))


def _extrapolates(entry: Entry, schedule: Schedule, lams: Array) -> bool:
    """Whether the last row has several ε: to methods that step in σ̄ the end is a step like any other, and x has to be finite."""
    plan = entry.plan(lams, schedule) if isinstance(entry, Solver | Planned) else None
    return plan is not None and plan.prediction == "noise" and len(plan.stages[-1].c) > 1


def noisy_end(entry: Entry) -> Check:
    """The same from both networks, which α = 1.5e-8 for 0 does not change by more than 1e-6."""
    if isinstance(entry, Planned):
        return Check()
    schedule = schedules.flow(t_noisy=1.0)
    lams = grids.make("time", schedule, 1 if entry.adaptive else 4)
    try:
        x, y = (solve(entry, model_of(schedule, name), states(schedule, lams[0]), lams).x for name in ("data", "flow"))
    except InputError as error:
        return Check("refused", f"finite, or refused with a reason: {error}")
    off = difference(x, y)
    return Check(f"{off:.0e}", "finite, the same below 1e-6", off < 1e-6)


def float32(entry: Entry) -> Check:
    """To 1e-3, an eighth of a grey level of 255: rounding is 6e-8, the responsibilities of a mixture make it 1e-6, and a method
    near the end of its stability, ipndm+unic, 1e-4. Adaptive solvers change steps. The median of the samples, as in slope."""
    schedule, lams = case(entry, 2 * STEPS)
    x, most = states(schedule, lams[0]).float(), 1e-2 if entry.adaptive else 1e-3
    tight: Options = {"rtol": 1e-3, "atol": 1e-3} if entry.adaptive else {}
    single, double = (
        solve(entry, model_of(schedule, dtype=dtype), x.to(dtype), lams, **tight).x for dtype in (torch.float32, torch.float64)
    )
    off = float(torch.tensor([difference(*pair) for pair in zip(single, double, strict=True)]).median())
    return Check(f"{off:.0e}", f"below {most:.0e}", off < most)


CLAIMS: dict[str, Callable[[Entry], Check]] = {
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
WIDTHS = dict(zip(CLAIMS, (18, 10, 7, 10, 14, 7, 9, 9, 7), strict=True))


def everything() -> list[str]:
    """The names in SOLVERS, and those with UniC."""
    return [*SOLVERS, *(f"{name}+unic" for name, entry in SOLVERS.items() if isinstance(entry, Solver) and entry.unic)]


def verify(names: Sequence[str], report: Callable[[str], None]) -> bool:
    """Measure the claims of the solvers named (names as in registry.find; none: all there are), and report a table line by line.

    Returns whether every claim holds. InputError, before anything is measured, for a name that is not known.
    """
    entries, began, made = [find(name) for name in names or everything()], time.perf_counter(), []
    name_width = max(len(entry.name) for entry in entries)
    report("  ".join(["solver".ljust(name_width), *(f"  {claim}".ljust(width + 2) for claim, width in WIDTHS.items())]).rstrip())
    for entry in entries:
        checks = {claim: _tried(measure, entry) for claim, measure in CLAIMS.items()}
        cells = (str(check).ljust(WIDTHS[claim] + 2) for claim, check in checks.items())
        report("  ".join([entry.name.ljust(name_width), *cells]).rstrip())
        for claim, check in checks.items():
            if not check.ok:
                report(f"  ✗ {claim} of {entry.name}: claimed {check.claimed}, measured {check.measured}")
        made += [check.ok for check in checks.values() if check.claimed]
    report(f"{sum(made)} of {len(made)} claims hold, {time.perf_counter() - began:.0f} s")
    return all(made)


def _tried(measure: Callable[[Entry], Check], entry: Entry) -> Check:
    """A claim that cannot be measured, the solver refusing to run, is broken."""
    try:
        return measure(entry)
    except InputError as error:
        return Check("refused", f"to run, not: {error}", False)
