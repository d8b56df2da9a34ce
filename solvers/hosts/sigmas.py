"""λ and plans for a host that counts by σ, as k-diffusion and ComfyUI do. Two paths are called by it:

ve      x = x0 + σ ε            λ = −log σ       of models that predict ε or v, behind the wrappers of these programs
flow    x = (1 − σ) x0 + σ ε    λ = −logit σ     of flow models (CONST in ComfyUI)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checks
from diffode.errors import InputError
from diffode.grid import MOST_STEPS
from diffode.schedule import PATHS, Array, ProbabilityPath
from solvers.plan import Plan, Stage

NAMES = "ve", "flow"
SAME = 1e-5  # of σ/α, relative: what is nearer is one, as the sigmas of a plan and those given, in float32


def path_of(model_sampling: Any) -> str:
    """The path of a ComfyUI model by its model_sampling: flow for a CONST, else ve; by name, since ComfyUI is not imported."""
    return "flow" if any(kind.__name__ == "CONST" for kind in type(model_sampling).__mro__) else "ve"


def sigmas_of(grid: Plan | Sequence[float] | Array, path: str = "ve") -> Tensor:
    """The σ of a plan's grid, or of a list of λ, on a path: (steps + 1,) in float32, what a sampler of k-diffusion is given.

    σ = e^(−λ) on ve, sigmoid(−λ) on flow; 0 where λ = +∞. InputError on ve where λ = −∞, and for what is no grid.
    """
    found = PATHS[checks.choice("path", path, NAMES)]
    lams = grid_of(grid) if isinstance(grid, Plan) else checks.numbers("grid", grid, MOST_STEPS + 2, least=2)
    if path == "ve" and lams.min() == -np.inf:
        raise InputError("a grid that begins at λ = −∞ has an infinite σ on the path ve: take one that begins at a finite λ")
    return torch.tensor(found.sigma(lams), dtype=torch.float32)


def lams_of(sigmas: Tensor | Array, path: ProbabilityPath) -> Array:
    """λ of σ on ve and flow, and of σ/α on vp, in float64."""
    sigma = np.asarray(sigmas.detach().cpu().double() if isinstance(sigmas, Tensor) else sigmas)
    with np.errstate(divide="ignore"):  # at the ends λ is ±∞
        return np.asarray((np.log1p(-sigma) if path.name == "flow" else 0.0) - np.log(sigma))


def distinct(sigmas: Any, path: ProbabilityPath) -> Tensor:
    """The sigmas that are taken: all but those whose λ is within SAME of the one before. InputError for what is no list of them,
    for one out of range, and unless they fall, or rise between ends with data and noise."""
    given = sigmas if isinstance(sigmas, Tensor) else torch.tensor(checks.array("sigmas", sigmas, "a tensor of one axis"))
    values = checks.array("sigmas", given.detach().cpu().double(), "a tensor of one axis")
    if values.ndim != 1 or len(values) > MOST_STEPS + 2:
        raise checks.wrong("sigmas", f"a tensor of one axis and at most {MOST_STEPS + 2} numbers", sigmas)
    if not len(values):
        return given
    if not np.isfinite(values).all():
        raise checks.wrong("sigmas", "finite numbers", sigmas)
    low, high, most = values.min(), values.max(), 1.0 if path.name == "flow" else 1e30
    if low < 0 or high > most:
        raise InputError(
            f"`sigmas` on the path {path.name} are from 0 to {most:g}, and those given from {low:g} to {high:g}: give others, or "
            "say which path it is, 've' or 'flow'"
        )
    with np.errstate(invalid="ignore"):  # two ends, ∞ − ∞, are one
        kept = np.flatnonzero(np.append(True, np.abs(np.diff(lams_of(given, path))) > SAME))
    step = np.diff(values)
    rises = (step >= 0).all()
    if len(kept) > 1 and (not (rises or (step <= 0).all()) or values[0] == 0 or (rises and path.name == "flow" and high == 1)):
        raise InputError(
            "`sigmas` must fall, to 0 or another end, or rise between two ends with data and noise in them, not begin with "
            f"{checks.shown(values[kept][:4].tolist())} and end with {values[-1]:g}: take a schedule of one direction"
        )
    return given[torch.from_numpy(kept).to(given.device)]


def grid_of(plan: Plan) -> Array:
    """The λ of a plan's steps, without those that churn or a jump goes back to."""
    lams = np.array(plan.grid)
    sign = 1 if lams[-1] > lams[0] else -1
    return np.asarray(sign * np.unique(np.maximum.accumulate(sign * lams)))


def fitting(plan: Plan, name: str, lams: Array, path: ProbabilityPath) -> Plan:
    """A plan for states of this path; InputError unless these λ are those of its grid."""
    own, given = (np.asarray(path.sigma(each)) for each in (grid_of(plan), lams))
    if len(own) != len(given) or not np.allclose(own, given, rtol=SAME, atol=0):
        raise InputError(
            f"{name} is a plan of {len(own) - 1} steps from σ = {own[0]:.6g} to {own[-1]:.6g}, and the sigmas given are other "
            f"{len(given) - 1} steps, from {given[0]:.6g} to {given[-1]:.6g}: give diffode.kdiffusion.sigmas_of(plan)"
        )
    return on_path(plan, path)


def on_path(plan: Plan, path: ProbabilityPath) -> Plan:
    """The same steps for states of another path, whose x is a multiple of the plan's at each λ: by the ratio of α, and of σ."""
    if plan.path == path:
        return plan

    def ratio(lam: float) -> float:
        (alpha, sigma), (new_alpha, new_sigma) = plan.path.at(lam), path.at(lam)
        return new_alpha / alpha if lam > 0 else new_sigma / sigma  # whichever is not small

    stages, anchor = list[Stage](), plan.stages[0].lam
    for stage in plan.stages:
        to = ratio(stage.lam)
        c = {j: to * value for j, value in stage.c.items()}
        stages.append(replace(stage, x=stage.x * to / ratio(anchor), c=c, noise=to * stage.noise))
        anchor = stage.lam if stage.commit else anchor
    return replace(plan, path=path, stages=tuple(stages))
