"""What claims are measured on: one class of the shipped mixture at 7 × 7 pixels, whose exact ε costs a tenth of a millisecond."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode import schedules
from diffode.mixture import ALPHA, Mixture
from diffode.model import EpsModel
from diffode.models import checkpoint, pretrained
from diffode.noise import SeededNoise
from diffode.ode import accurate
from diffode.prediction import PREDICTIONS
from diffode.schedule import Array, Schedule
from solvers.hooks import Hooks
from solvers.result import Result
from solvers.solver import Solver

LABEL, POOLED, SAMPLES = 9, 4, 16  # ankle boots: three components; averages of 4 × 4 pixels; images, and rows of a product
STEPS, TOLERANCE = 12, 1e-2  # where neither is the point; rtol and atol
NOISIEST = -18.0  # the mixture divides by α, so α = 0 is seen from here, where α = 1.5e-8
SCHEDULES = {"vp": schedules.vp_linear(), "flow": schedules.flow()}
SETTINGS = (("vp", "logsnr", 0.5), ("flow", "karras", 2.0))  # path, grid, standard deviation of Gaussian data


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
        p0, p1 = PREDICTIONS[self.predicts].pair(alpha, sigma)  # type: ignore[arg-type]
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
    tensors, card = checkpoint.read(pretrained.ASSETS / "weights" / "mixture.safetensors")
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


def solve(solver: Solver, model: EpsModel, x: Tensor, lams: Array, *, seed: int = 0, **options: Any) -> Result:
    """Run it from x with the noise of seeds seed, seed + 1, ..., at TOLERANCE unless `options` say otherwise."""
    tolerances = {"rtol": TOLERANCE, "atol": TOLERANCE} if "rtol" in solver.options else {}
    prepared = solver.on(lams, model.schedule, **{**tolerances, **options})
    return prepared.solve(model, x, Hooks(noise=SeededNoise(range(seed, seed + len(x)))))


def case(solver: Solver, steps: int = STEPS) -> tuple[Schedule, Array]:
    """A schedule and a grid over all of it, of an adaptive solver its ends; of a plan its own, on a clock that is λ itself."""
    if solver.fixed_plan is not None:
        lams = np.array(solver.fixed_plan.grid)
        own = Schedule("λ", solver.fixed_plan.path, lams.min(), lams.max(), np.asarray, np.asarray, np.ones_like)
        return own, lams
    return SCHEDULES["vp"], grids.make("logsnr", SCHEDULES["vp"], 1 if solver.chooses_steps else steps)
