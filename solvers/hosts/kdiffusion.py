"""Any solver as a sampler of k-diffusion: sampler("unipc3")(model, x, sigmas), with the face of k_diffusion.sampling.sample_*.

k-diffusion's model is a denoiser, model(x, sigma) = x̂0 with sigma of shape (batch,), and its grid is a falling list of σ. So it
is an EpsModel that predicts data and whose clock is σ, and solvers are planned on the λ of these σ (sigmas.py); the last σ = 0 is
λ = +∞, the denoising step. The model and the callback may keep what they are given: its memory is not used again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffode import checks, schedules
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import Noise
from diffode.schedule import PATHS, Array, Schedule
from solvers.ddim import ddim
from solvers.execute import is_finite, run
from solvers.hooks import Hooks
from solvers.hosts.sigmas import NAMES, distinct, fitting, grid_of, lams_of, path_of, sigmas_of
from solvers.intervals import intervals
from solvers.options import Options, check
from solvers.plan import Plan
from solvers.registry import find
from solvers.solver import Solver

__all__ = ["Sampler", "path_of", "sampler", "sigmas_of"]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]  # (σ, next σ) -> N(0, I)
OWN_FIRST_STEP = "ddim", "ddpm"  # in noise form, but from λ = −∞ in data form


def sampler(solver: str | Plan, *, path: str | None = None, **options: Any) -> Sampler:
    """A solver as a sampler of k-diffusion.

        sample = sampler("dpmpp2m")
        x = sample(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None)

    solver: what `find` knows, with `options` of its own; or a Plan of any path, which takes the sigmas of its own grid alone
    (sigmas_of). path: "ve", x = x0 + σ ε, or "flow", x = (1 − σ) x0 + σ ε; None is flow for a model of ComfyUI whose
    model_sampling is CONST, else ve. InputError for a solver, a path or an option that there is not. What it is called with:

    model(x, sigma, **extra_args): x̂0. x: the state (batch, *shape) at sigmas[0]; that at the last is returned, in its dtype (the
    loop in float32, if that is half precision). sigmas: falling, to 0 or another end; or rising, which leads from data to noise.
    Neighbours are one if their σ/α are within 1e-5; of fewer than two, x is returned. callback: given a dict of x, i, sigma,
    sigma_hat and denoised by the evaluation that begins step i (of a solver without plan: by each). disable: of the bar, as tqdm
    has it. noise_sampler(sigma, sigma_next): called once per draw of a stochastic solver, in order, with the σ of its step; up to
    the last draw that is used, also for those that are not, as k-diffusion has it. Without it torch draws, by its global
    generator, or by one of extra_args["seed"], a whole number, as ComfyUI does (seed + 1 on the CPU).

    From σ = 1 of a flow, λ = −∞, solvers in data form step, and ddim and ddpm; the others leave the first step to ddim (Euler's
    method in σ, one evaluation) and begin at sigmas[1]. InputError for sigmas that the solver cannot take, and for a result that
    is not finite.
    """
    found = find(solver)
    if path is not None:
        checks.choice("path", path, NAMES)
    return Sampler(found, check(found.name, found.options, options), path)


@dataclass(frozen=True)
class Sampler:
    """sample(model, x, sigmas, ...), as k_diffusion.sampling.sample_* is called; see `sampler`."""

    solver: Solver
    options: Options
    path: str | None

    @property
    def __name__(self) -> str:
        """As that of a function of k-diffusion: sample_diffode_unipc3."""
        return "sample_diffode_" + re.sub(r"\W+", "_", self.solver.name)

    @torch.no_grad()
    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        """From the state x (batch, *shape) at sigmas[0] to that at sigmas[-1]; see `sampler`."""
        sampling = _sampling_of(model)
        path = PATHS[self.path or path_of(sampling)]
        taken = distinct(sigmas, path)
        wide = check_state("x", x).to(torch.promote_types(x.dtype, torch.float32))
        if len(taken) < 2:
            return x
        checks.function("model", model, "a function (x, sigma, **extra_args), which returns x̂0")
        checks.instance("extra_args", extra_args, Mapping | None, "a dict, or None")
        for name, given in (("callback", callback), ("noise_sampler", noise_sampler)):
            if given is not None:
                checks.function(name, given, "a function, or None")
        args = dict(extra_args or {})
        schedule = schedules.flow(0.0, 1.0) if path.name == "flow" else schedules.edm(0.0, float(taken.max()))
        lams = lams_of(taken, path)
        plans = self._plans(lams, schedule)
        steps = _beginnings(plans)
        with tqdm(total=len(steps) or None, disable=disable) as bar:
            host = EpsModel(_Host(model, args, taken, steps, callback, bar), schedule, "data", clock="sigma")
            if not plans:
                return self._integrated(host, wide, lams).to(x.dtype)
            fresh = noise_sampler or _noise_sampler(wide, args.get("seed"))
            for plan in plans:  # differentiable, so that no memory is used again
                noise = _in_order(plan, fresh, float(getattr(sampling, "noise_scale", 1.0)))
                wide = run(plan, host, wide, Hooks(noise), differentiable=True).x
        if not is_finite(wide):
            raise InputError(f"the state of {self.solver.name} is not finite: look at what the model was given and returned")
        return wide.to(x.dtype)

    def _plans(self, lams: Array, schedule: Schedule) -> list[Plan]:
        """The plans that are run one after the other; none of a solver without plan."""
        if self.solver.fixed_plan is not None:
            return [fitting(self.solver.fixed_plan, self.solver.name, lams, schedule.path)]
        if not self.solver.has_plan:
            return []
        if lams[0] > -np.inf:
            return [self.solver.plan(lams, schedule, **self.options)]
        rest = self.solver.plan(lams[1:] if len(lams) > 2 else [0.0, np.inf], schedule, **self.options)  # which checks options
        if rest.prediction == "data" or (self.solver.alias_of or self.solver.name) in OWN_FIRST_STEP:
            return [self.solver.plan(lams, schedule, **self.options)]
        return [ddim(lams[:2], schedule), *[rest] * (len(lams) > 2)]

    def _integrated(self, host: EpsModel, x: Tensor, lams: Array) -> Tensor:
        """By a solver without plan, between the two ends if it chooses its own steps."""
        if not (self.solver.accepts_denoise or np.isfinite(lams).all()):
            raise InputError(
                f"{self.solver.name} takes no step from σ = 1 of a flow, nor to σ = 0: give `sigmas` without these ends, as "
                "sigmas[:-1], or take a planned solver"
            )
        if not self.solver.supported_hooks and len(x) > 1:
            raise InputError(
                f"{self.solver.name} steps every sample by itself, and the model of a host is called for its whole batch of "
                f"{len(x)}: give one sample at a time, or take a planned solver"
            )
        if self.solver.chooses_steps:
            lams = np.array(list(dict.fromkeys([lams[0], *lams[np.isfinite(lams)][-1:], lams[-1]])))
        return self.solver.on(lams, host.schedule, **self.options).solve(host, x).x


@dataclass
class _Host:
    """The host's model as a network. steps: evaluation -> the step that it begins; empty where each is one."""

    model: Callable[..., Tensor]
    args: Mapping[str, Any]
    sigmas: Tensor
    steps: Mapping[int, int]
    callback: Callable[[dict[str, Any]], Any] | None
    bar: tqdm
    evaluations: int = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.model(x, sigma, **self.args)
        step = self.steps.get(self.evaluations) if self.steps else self.evaluations
        self.evaluations += 1
        if step is not None:
            self.bar.update()
            if self.callback is not None:
                begun = self.sigmas[step] if self.steps else sigma[0]
                self.callback({"x": x, "i": step, "sigma": begun, "sigma_hat": sigma[0], "denoised": denoised})
        return denoised


def _sampling_of(model: Any) -> Any:
    """The model_sampling of ComfyUI's model, which a sampler is given within a guider and a mask; None of any other."""
    return getattr(getattr(getattr(model, "inner_model", None), "inner_model", None), "model_sampling", None)


def _beginnings(plans: list[Plan]) -> dict[int, int]:
    """Evaluation -> the step that it begins: that of the committed state, or, where a corrector keeps the evaluation of its
    prediction, the one before it."""
    found, evaluations, steps = dict[int, int](), 0, 0
    for plan in plans:
        grid, step = grid_of(plan), -1
        for stage in plan.stages:
            step += bool(stage.commit and stage.lam in grid[step + 1 : step + 2])
            if stage.commit and stage.evaluate:
                found[steps + step] = evaluations
            elif stage.commit:
                found.setdefault(steps + step, evaluations - 1)
            evaluations += stage.evaluate
        steps += len(grid) - 1
        del found[steps]  # where it ends
    return {evaluation: step for step, evaluation in found.items()}


def _noise_sampler(x: Tensor, seed: Any) -> NoiseSampler:
    """Noise as ComfyUI draws it for a seed, and k-diffusion without one."""
    generator = None
    if seed is not None:
        seed = checks.whole('the seed in "extra_args"', seed, 0, 2**64 - 1)
        generator = torch.Generator(x.device).manual_seed((seed + (x.device.type == "cpu")) % 2**64)
    return lambda *_: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _in_order(plan: Plan, fresh: NoiseSampler, scale: float) -> Noise:
    """noise(draw, like), of which draw k is the k-th that `fresh` makes, whatever the order of asking, times `scale`: the
    standard deviation of the noise in the host's states, 1 but for a few models of ComfyUI."""
    steps = dict(enumerate(pairwise(grid_of(plan)), 1))  # of draws that are not used: draw k of our solvers is that of step k
    ends = steps | {draw: interval[:2] for draw, interval in intervals(plan).items()}
    uses, waiting, count = Counter(stage.draw for stage in plan.stages), dict[int, Tensor](), 0

    def noise(draw: int, like: Tensor) -> Tensor:
        nonlocal count
        while count < draw:
            count += 1
            lams = np.array(ends.get(count, (plan.grid[0], plan.grid[-1])))
            z = fresh(*torch.tensor(plan.path.sigma(lams)).to(like))
            if not isinstance(z, Tensor) or z.shape != like.shape:
                raise checks.wrong("what `noise_sampler` returns", f"a tensor of shape {tuple(like.shape)}", z)
            if uses[count]:
                waiting[count] = z.to(like) * scale
        uses[draw] -= 1
        return waiting[draw] if uses[draw] else waiting.pop(draw)

    return noise
