"""verify: what every solver claims, measured where it runs.

The truth is a Gaussian mixture, one class of the shipped one at 7 × 7 pixels: its ε is exact at a tenth of a millisecond. Each
function of CLAIMS takes a solver and returns a Check; together they are a line of the table:

    order       errors against the accurate trajectory fall as h^p, on two grids and two paths; of a stochastic solver the error
                of the variance on Gaussian data (weak order); of an adaptive one the error follows the tolerance
    as started  so does what the default start of a multistep method adds to a start of full order
    forms       noise, data, velocity and flow networks of the one model give the same images
    round trip  the plan forwards and the plan of the same grid reversed lead back, the better the finer
    batch       sixteen samples at once are twice eight, in float64 and float32
    NFE         evaluations are counted at the network: those of the result, and those declared a step
    σ = 0       one, two and three steps that end there end with the network's x̂0
    α = 0       a data or flow network can begin there (zero terminal SNR), or is refused with a reason
    float32     is float64 but for rounding

Of a plan from a file there is one grid, hence no order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checkpoint, pretrained
from diffode import grid as grids
from diffode import schedule as schedules
from diffode.errors import InputError
from diffode.mixture import ALPHA, Mixture
from diffode.model import EpsModel
from diffode.noise import SeededNoise
from diffode.ode import accurate
from diffode.prediction import PREDICTIONS
from diffode.schedule import Array, Schedule
from solvers.entries import Adaptive, BlackBox, Entry, Planned, Solver
from solvers.execute import Result
from solvers.gaussian import exact, variance
from solvers.registry import SOLVERS, find

SCHEDULES = {"vp": schedules.vp_linear(), "flow": schedules.flow()}
SPACINGS = ("logsnr", "karras")
SAMPLES, TOLERANCE = 16, 1e-4
LABEL, POOLED = 9, 4  # ankle boots; three components, 24 + 1 variances each, whose trajectories are as smooth as any class's
NOISIEST = -12.0  # the mixture divides by α: where that is 0 it is seen from here, where e^λ = 6e-6


@dataclass(frozen=True)
class Check:
    """A claim and what was measured, both as they are shown, and whether it holds."""

    measured: str
    claimed: str = ""
    ok: bool = True


class Network:
    """The mixture as a network that predicts `predicts`. rows: how many samples it has been asked about, one by one."""

    def __init__(self, mixture: Mixture, predicts: str) -> None:
        self.mixture, self.predicts, self.rows = mixture, predicts, 0

    def __call__(self, x: Tensor, lam: Tensor) -> Tensor:
        self.rows += len(x)
        lam = lam.clamp(min=NOISIEST)
        tangent = self.mixture(x, lam)  # α ε − σ x0
        if self.predicts == "tangent":
            return tangent
        alpha = ALPHA[self.mixture.path](lam).view(-1, 1, 1, 1)
        sigma = alpha * torch.exp(-lam).view(-1, 1, 1, 1)
        p0, p1 = PREDICTIONS[self.predicts](alpha, sigma)  # type: ignore[arg-type]
        return (p0 * (alpha * x - sigma * tangent) + p1 * (sigma * x + alpha * tangent)) / (alpha**2 + sigma**2)


@cache
def mixture(path: str, dtype: torch.dtype) -> Mixture:
    """Small in every product, so that an evaluation costs about what its calls into torch do."""
    tensors, card = checkpoint.read(pretrained.WEIGHTS / "mixture.safetensors")
    kept = tensors["label"] == LABEL
    part = {name: tensor[kept] for name, tensor in tensors.items()}
    return Mixture(part, card["image"], path, dtype, rows=SAMPLES).pooled(POOLED)


def model_of(schedule: Schedule, predicts: str = "tangent", dtype: torch.dtype = torch.float64) -> EpsModel:
    """The mixture on a schedule, behind a network that predicts `predicts`."""
    return EpsModel(Network(mixture(schedule.path.name, dtype), predicts), schedule, predicts, clock="lam")


def states(schedule: Schedule, lam: float) -> Tensor:
    """Exact samples at λ, (SAMPLES, 1, 7, 7), float64."""
    x0 = mixture(schedule.path.name, torch.float64).sample(SAMPLES, seed=0)
    z = torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(0))
    return float(schedule.alpha(lam)) * x0 + float(schedule.sigma(lam)) * z


def between(schedule: Schedule, lam_s: float, lam_t: float) -> Schedule:
    """The schedule with the ends of its clock at λ_s and λ_t: no model on it can be called outside."""
    return replace(schedule, t_noisy=float(schedule.t(lam_s)), t_clean=float(schedule.t(lam_t)))


@cache
def trajectories(path: str) -> tuple[EpsModel, Tensor, Tensor]:
    """(the model on λ from −1 to 1, exact states at its noisy end, where their trajectories end)."""
    schedule = between(SCHEDULES[path], -1.0, 1.0)
    model, x = model_of(schedule), states(schedule, schedule.lam_min)
    return model, x, accurate(model, x, schedule.lam_min, schedule.lam_max, 3e-14)


def solve(entry: Entry, model: EpsModel, x: Tensor, lams: Array, seed: int = 0, **options: Any) -> Result:
    """The entry's own way to run; with tolerances, if it takes them, and the noise of seeds from `seed` on."""
    tolerances = {"rtol": TOLERANCE, "atol": TOLERANCE} if entry.adaptive else {}
    return entry.solve(model, x, lams, noise=SeededNoise(range(seed, seed + len(x))), **{**tolerances, **options})


def case(entry: Entry, steps: int = 10, path: str = "vp") -> tuple[Schedule, Array]:
    """A whole schedule and a grid of so many steps on it; of a plan its own."""
    if isinstance(entry, Planned):
        lams = np.array(entry.grid)
        clock = Schedule("λ", entry.made.path, lams.min(), lams.max(), lambda t: t, lambda lam: lam, np.ones_like)
        return clock, lams
    return SCHEDULES[path], grids.make("logsnr", SCHEDULES[path], steps)


def slope(coarse: Tensor, fine: Tensor) -> float:
    """log2 of the ratio of two errors (batch, *shape), the median of the samples: any single one may pass from component to
    component too fast for a grid that suits the others, and would be all that a mean tells of. Infinite where nothing is left."""
    coarse, fine = (error.flatten(1).norm(dim=1) for error in (coarse, fine))
    return float(torch.log2(coarse / fine).median()) if coarse.any() else np.inf


def worst(values: Sequence[float], wanted: float) -> float:
    return values[int(np.argmax(np.abs(np.array(values) - wanted)))]


def order(entry: Entry) -> Check:
    if isinstance(entry, Planned):
        return Check("one grid")
    if entry.adaptive:
        return _follows_tolerance(entry)
    values = [*(_weak if entry.stochastic else _strong)(entry)]
    value = worst(values, entry.order)
    return Check(f"{entry.order}: {value:.2f}", f"{entry.order} ± 0.15", abs(value - entry.order) <= 0.15)


def _strong(entry: Entry) -> Iterator[float]:
    """On both paths and grids. The steps are where h^p is what is left of the error, and rounding (1e-14) not yet: single steps
    of many evaluations are soon exact, multistep methods of order 4 and 5 are late to show it."""
    start = {"start": "single"} if "start" in entry.options else {}
    steps = 30 if entry.evaluations > 1 else 50 if entry.order <= 3 else 100
    equal = isinstance(entry, BlackBox) and entry.method.max_order  # Adams of torchdiffeq: equal steps only
    for path, spacing in product(SCHEDULES, SPACINGS[:1] if equal else SPACINGS):
        model, x, truth = trajectories(path)
        lams = (grids.make(spacing, model.schedule, n) for n in (steps, 2 * steps))
        yield slope(*(solve(entry, model, x, each, **start).x - truth for each in lams))


def _weak(entry: Entry) -> Iterator[float]:
    """In distribution, by exact arithmetic on data N(0, s²). A window of σ̄ that opens within the grid is a window of whole
    steps; order is for one that does not move."""
    options = {"s_tmin": 0.0, "s_tmax": np.inf} if "s_tmin" in entry.options else {}
    for (path, s), spacing in product(zip(SCHEDULES, (0.5, 2.0), strict=True), SPACINGS):
        schedule = between(SCHEDULES[path], -2.0, 2.0)
        plans = [entry.plan(grids.make(spacing, schedule, n), schedule, **options) for n in (400, 800)]
        coarse, fine = (abs(variance(plan, s) / exact(plan, schedule.lam_max, s) - 1) for plan in plans)
        yield float(np.log2(coarse / fine))


def _follows_tolerance(entry: Entry) -> Check:
    """Error against tolerance over two powers of ten."""
    model, x, truth = trajectories("vp")
    ends, errors = np.array([model.schedule.lam_min, model.schedule.lam_max]), []
    for tolerance in (1e-3, 1e-5):
        off = solve(entry, model, x, ends, rtol=tolerance, atol=tolerance).x - truth
        errors.append(float(off.flatten(1).square().mean(1).sqrt().median()) / tolerance)
    power = 1 + float(np.log10(errors[0] / errors[1])) / 2
    return Check(f"{entry.order}: tol^{power:.2f}, {max(errors):.1g}×", "tol^0.7 or faster, 10× at most", power >= 0.7 and max(errors) <= 10)


def started(entry: Entry) -> Check:
    claim = getattr(entry, "started", 0) or entry.order
    if "start" not in entry.options or entry.stochastic:
        return Check("")
    model, x, _ = trajectories("vp")
    added = []
    for steps in (100, 200):
        lams = grids.make("logsnr", model.schedule, steps)
        ramp, single = (solve(entry, model, x, lams, **options).x for options in ({}, {"start": "single"}))
        added.append(ramp - single)
    value = min(slope(*added), float(entry.order))
    return Check(f"{claim}: {value:.2f}", f"{claim} ± 0.15", abs(value - claim) <= 0.15)


def forms(entry: Entry) -> Check:
    off = 0.0
    for path, names in (("vp", ("data", "velocity", "tangent")), ("flow", ("data", "flow", "tangent"))):
        schedule, lams = case(entry, path=path)
        if schedule.path.name == path or not isinstance(entry, Planned):
            x = states(schedule, lams[0])
            first, *others = (solve(entry, model_of(schedule, name), x, lams).x for name in ("noise", *names))
            off = max(off, *(relative(other, first) for other in others))
    return Check(short(off), "the same to 1e-9", off < 1e-9)


def relative(x: Tensor, truth: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return float((x.double() - truth.double()).abs().max() / truth.double().abs().max())


def short(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def round_trip(entry: Entry) -> Check:
    if not isinstance(entry, Solver) or entry.stochastic:
        return Check("")
    model, x, _ = trajectories("vp")
    claim, off = entry.started or entry.order, []
    for steps in (40, 80):
        lams = grids.make("logsnr", model.schedule, steps)
        noise = solve(entry, model, x, lams[::-1]).x
        off.append(solve(entry, model, noise, lams).x - x)
    value = slope(*off)
    return Check(f"2^{value:.1f}", f"2^{claim - 0.5} or more", value >= claim - 0.5 or float(off[1].abs().max()) < 1e-9)


def batch(entry: Entry) -> Check:
    schedule, lams = case(entry)
    x, half, off = states(schedule, lams[0]), SAMPLES // 2, []
    for dtype in (torch.float64, torch.float32):
        model, x = model_of(schedule, dtype=dtype), x.to(dtype)
        halves = [solve(entry, model, x[i : i + half], lams, seed=i).x for i in (0, half)]
        off.append(relative(torch.cat(halves), solve(entry, model, x, lams).x))
    together = isinstance(entry, BlackBox) and entry.adaptive  # its error is a norm over the batch
    most = (10 * TOLERANCE, 10 * TOLERANCE) if together else (1e-12, 1e-5)
    return Check(" ".join(map(short, off)), "the same to {:.0e}, and {:.0e} in float32".format(*most), off[0] <= most[0] and off[1] <= most[1])


def nfe(entry: Entry) -> Check:
    counted, ok = [], True
    for steps in (10, 20):
        schedule, lams = case(entry, steps)
        model = model_of(schedule)
        result = solve(entry, model, states(schedule, lams[0]), lams)
        said = sum(result.taken.nfe) if result.taken else result.nfe * SAMPLES
        ok = ok and model.network.rows == said and (not entry.evaluations or entry.nfe(lams, schedule) == result.nfe)
        counted.append(model.network.rows / SAMPLES)
    once = counted[0] - 10 * entry.evaluations
    if isinstance(entry, Planned) or not entry.evaluations:
        return Check(f"{counted[0]:.3g}", "as in the result", ok)
    return Check(f"{entry.evaluations}n{once:+g}".replace("+0", ""), "as in the result, and as declared a step", ok and counted[1] == 20 * entry.evaluations + once)


def clean_end(entry: Entry) -> Check:
    off = []
    for steps in (1, 2, 3):
        schedule, lams = case(entry) if isinstance(entry, Planned) else (SCHEDULES["vp"], grids.make("logsnr", SCHEDULES["vp"], steps, denoise=True))
        model = model_of(schedule)
        x = states(schedule, lams[0])
        try:
            if isinstance(entry, Adaptive):
                last, (lam, before) = solve(entry, model, x, lams[[0, -2, -1]]).x, (lams[-2], solve(entry, model, x, lams[[0, -2]]).x)
            else:
                result = solve(entry, model, x, lams, trajectory=True)
                last, (lam, before) = result.x, result.trajectory[-2]
        except InputError as error:
            continue
        off.append(relative(last, model(before, lam, "data")))
    return Check(short(max(off)) if off else "refused", "", not isinstance(entry, Solver) or bool(off) and max(off) < 1e-9)


def noisy_end(entry: Entry) -> Check:
    schedule = schedules.flow(t_noisy=1.0)
    lams = grids.make("time", schedule, 4)
    said = []
    for predicts in ("data", "flow"):
        try:
            x = solve(entry, model_of(schedule, predicts), states(schedule, lams[0]), lams).x
            said.append("finite" if x.isfinite().all() else "not finite")
        except InputError as e:
            said.append("refused" + str(e))
    return Check(" ".join(said), "", "not finite" not in said)


def float32(entry: Entry) -> Check:
    schedule, lams = case(entry)
    x = states(schedule, lams[0]).float()
    double, single = (solve(entry, model_of(schedule, dtype=dtype), x.to(dtype), lams).x for dtype in (torch.float64, torch.float32))
    off = relative(single, double)
    return Check(short(off), "1e-4", off < 1e-4)


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


def everything() -> list[str]:
    """The names in SOLVERS, and those that can be had with UniC."""
    return [*SOLVERS, *(f"{name}+unic" for name, entry in SOLVERS.items() if isinstance(entry, Solver) and entry.unic)]


def verify(names: Sequence[str], report: Callable[[str], None]) -> bool:
    """Measure the claims of the solvers named (names as in registry.find; none: all there are), and report a table line by line.

    Returns whether every claim holds. InputError, before anything is measured, for a name that is not known.
    """
    entries = [find(name) for name in names or everything()]
    ok = True
    for entry in entries:
        cells=[]
        for name, claim in CLAIMS.items():
            t=time.process_time()
            try:
                c = claim(entry)
            except InputError as e:
                c = Check(str(e), "", False)
            dt=time.process_time()-t
            TIMES[name]=TIMES.get(name,0)+dt
            cells.append(f"{' ' if c.ok else '✗'} {c.measured}")
            ok = ok and c.ok
        report(f"{entry.name:24}" + " | ".join(cells))
    report(str(TIMES))
    return ok
TIMES={}
