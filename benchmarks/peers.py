"""diffusers' schedulers on our models and grids. diffusers is not needed to install or run diffode.

A scheduler of diffusers lives on the labels of a table of β and cannot be
given a grid; but it can be given the table whose labels are the grid, so on any grid it takes the very steps that we take. Those
whose last step always goes to σ = 0 are given one label more and stopped at the grid's end. `double` has
their own code run in float64, so that what differs is the method.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.special import log_expit
from torch import Tensor

from diffode import EpsModel, InputError
from diffode.noise import Noise
from diffode.schedule import Array

PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}
IN_SIGMA_BAR = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete")  # their state is x/α
TO_ZERO = (*IN_SIGMA_BAR, "DDIM", "DDPM", "PNDM")  # their last step goes to σ = 0
TWO_CALLS, NEVER, BELOW_15, ALWAYS = ("HeunDiscrete", "KDPM2Discrete"), 0, 15, sys.maxsize  # two calls per step; lowers


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers, XScheduler for `scheduler` = X, and ours of the same method: `ours` with `options`.

    step: further arguments of its step(). lowers: below how many steps it lowers the order of the last ones; where it does, ours
    has lower_final. inner: where in a step it needs labels besides the grid's. same: whether the two agree to rounding.
    """

    scheduler: str
    ours: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    lowers: int = NEVER
    inner: tuple[float, ...] = ()
    same: bool = True

    @property
    def name(self) -> str:
        settings = {**self.config, **self.step}
        return self.scheduler + (f"({', '.join(f'{name}={value}' for name, value in settings.items())})" if settings else "")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        sde = str(self.config.get("algorithm_type", "")).startswith("sde") or self.step.get("eta", 0) > 0
        return sde or self.scheduler in ("DDPM", "EulerAncestralDiscrete")

    def ours_on(self, grid: Array) -> dict[str, Any]:
        """The options that make ours the same method on this grid."""
        return {**self.options, "lower_final": True} if len(grid) - 1 < self.lowers else dict(self.options)

    @property
    def to_zero(self) -> bool:
        """Whether it can end at σ = 0; where UniPC is not finite there is a test's to say."""
        if self.scheduler == "UniPCMultistep":
            return self.lowers > 0 and self.config["solver_type"] == "bh2" and self.config.get("predict_x0", True)
        if self.scheduler == "DPMSolverMultistep":
            return self.config["algorithm_type"] != "dpmsolver"
        return self.scheduler not in ("DEISMultistep", "DPMSolverSinglestep", "PNDM")

    def steps_for(self, nfe: int, to_zero: bool = False) -> int | None:
        """The steps on which it spends exactly nfe evaluations; None if there are none."""
        if self.scheduler == "PNDM":
            return nfe - 9 if nfe > 12 else None
        if self.scheduler in TWO_CALLS:
            return None if (nfe + to_zero) % 2 else (nfe + to_zero) // 2
        steps, rest = divmod(nfe, len(self.inner) + 1)
        return None if rest else steps


def _dpm(ours: str, order: int, algorithm: str, heun: bool = False, lowers: int = BELOW_15) -> Peer:
    variant = {"variant": "taylor" if heun else "midpoint"} if order == 2 else {}
    config = {"solver_order": order, "algorithm_type": algorithm, **({"solver_type": "heun"} if heun else {})}
    config |= {"lower_order_final": False} if not lowers else {}
    return Peer("DPMSolverMultistep", ours, variant, config, lowers=lowers)


def _unipc(order: int, variant: str, data: bool = True, lowers: int = ALWAYS) -> Peer:
    config = {"solver_order": order, "solver_type": variant, **({} if data else {"predict_x0": False})}
    config |= {} if lowers else {"lower_order_final": False}
    options = {"variant": variant, "prediction": "data" if data else "noise"}
    return Peer("UniPCMultistep", f"unipc{order}", options, config, lowers=lowers)


PEERS: tuple[Peer, ...] = (
    Peer("DDPM", "ddpm"),
    Peer("DDPM", "ddpm", {"variance": "large"}, {"variance_type": "fixed_large"}),
    *(Peer("DDIM", "ddim", {"eta": eta}, step={"eta": eta}) for eta in (0.0, 0.5, 1.0)),
    Peer("EulerDiscrete", "euler"),
    Peer("EulerAncestralDiscrete", "euler-ancestral"),
    Peer("HeunDiscrete", "heun"),
    Peer("KDPM2Discrete", "kdpm2"),
    Peer("LMSDiscrete", "lms"),
    Peer("IPNDM", "ipndm"),
    Peer("PNDM", "pndm"),
    *(
        _dpm(ours, 2, algorithm, heun, lowers)
        for ours, algorithm in (("dpmpp2m", "dpmsolver++"), ("dpm2m", "dpmsolver"), ("sde-dpmpp2m", "sde-dpmsolver++"))
        for heun in (False, True)
        for lowers in (BELOW_15, NEVER)
    ),
    *(_dpm("dpmpp3m-published", 3, "dpmsolver++", lowers=lowers) for lowers in (BELOW_15, NEVER)),
    *(_dpm("dpm3m-published", 3, "dpmsolver", lowers=lowers) for lowers in (BELOW_15, NEVER)),
    *(_unipc(order, variant) for order in (1, 2, 3) for variant in ("bh2", "bh1")),
    *(_unipc(order, "bh2", lowers=NEVER) for order in (2, 3)),
    *(_unipc(order, "bh2", data=False) for order in (2, 3)),
    *(
        Peer(
            "DPMSolverSinglestep",
            ours,
            config={"solver_order": order, "algorithm_type": algorithm},
            inner=(1 / 2,) if order == 2 else (1 / 3, 2 / 3),
            same=order == 2,  # of order 3, ours has the exact weight for its second stage, as the paper has
        )
        for order, ours, algorithm in ((2, "dpmpp2s", "dpmsolver++"), (2, "dpm2", "dpmsolver"), (3, "dpmpp3s", "dpmsolver++"))
    ),
    *(Peer("DEISMultistep", "deis-lambda", {"order": order}, {"solver_order": order}, lowers=BELOW_15) for order in (2, 3)),
)


def versions() -> dict[str, str]:
    """Of those that are installed."""
    return {
        name: metadata.version(name) for name in ("diffusers", "k-diffusion") if importlib.util.find_spec(name.replace("-", "_"))
    }


class Double:
    """A module in which float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


def module_of(scheduler: str) -> ModuleType:
    """The module of XScheduler; InputError without diffusers."""
    try:
        return sys.modules[getattr(importlib.import_module("diffusers"), f"{scheduler}Scheduler").__module__]
    except ImportError as error:
        raise InputError(f"diffusers is not installed ({error}): pip install diffusers, or leave its schedulers out") from error


@contextmanager
def double(scheduler: str) -> Iterator[None]:
    """Within it, the code of a scheduler means float64 where it says float32."""
    module = module_of(scheduler)
    with ExitStack() as stack:
        for name, library in (("torch", torch), ("np", np)):
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, Double(library)))
        yield


def make(scheduler: str, steps: int, **config: Any) -> Any:
    """XScheduler(**config), set to take `steps` steps; without clipping."""
    kind = getattr(module_of(scheduler), f"{scheduler}Scheduler")
    if scheduler in ("DDIM", "DDPM"):
        config = {"clip_sample": False, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some settings are deprecated
        made = kind(**config)
    made.set_timesteps(steps)
    return made


def on_grid(peer: Peer, grid: Array, model: EpsModel) -> tuple[Any, Array]:
    """(scheduler, the λ of its evaluations), made for a finite grid or one whose last value is +∞."""
    n, config = len(grid) - 1, dict(peer.config)
    if peer.scheduler == "IPNDM":  # its "betas" are σ
        return make("IPNDM", n, trained_betas=model.schedule.sigma(grid).tolist()), grid[:-1]
    to_zero = grid[-1] == np.inf
    lams = labels(peer, grid[: n + 1 - to_zero], model)
    if to_zero:
        config |= {"timestep_spacing": "trailing"}
    elif peer.scheduler in TO_ZERO:
        config |= {"timestep_spacing": "leading"}
    elif peer.scheduler != "DEISMultistep":  # which ends there always
        config |= {"final_sigmas_type": "sigma_min"}
    betas = -np.expm1(np.diff(log_expit(2 * lams), prepend=0.0))
    calls = n * (len(peer.inner) + 1)
    steps = n + 1 - to_zero if peer.scheduler in TO_ZERO else calls
    if peer.scheduler in TWO_CALLS:
        calls = 2 * n - to_zero
    elif peer.scheduler == "PNDM":
        calls = n + 9
    scheduler = make(peer.scheduler, steps, num_train_timesteps=len(lams), trained_betas=betas.tolist(), **config)
    return scheduler, np.interp(scheduler.timesteps[:calls].double().numpy(), np.arange(len(lams)), lams)


def labels(peer: Peer, grid: Array, model: EpsModel) -> Array:
    """The λ of the labels 0, 1, ..., falling: the grid's, and those that the scheduler needs between."""
    lams = grid[::-1]
    if peer.scheduler == "PNDM":  # whose first steps have their middle at the middle label, and want an even number of labels
        t = model.schedule.t(lams)
        lams = np.insert(lams, np.arange(1, len(lams)), model.schedule.lam((t[1:] + t[:-1]) / 2))
        return np.append(lams, lams[-1] - 1)
    between = [lams[1:] + r * (lams[:-1] - lams[1:]) for r in reversed(peer.inner)]
    return np.append(np.stack([lams[:-1], *between], 1).ravel(), lams[-1])


def drive(
    scheduler: Any, model: EpsModel, x: Tensor, lams: Sequence[float] | Array, end: float, noise: Noise | None = None, **step: Any
) -> Tensor:
    """The loop that users of diffusers write: from x at lams[0] to the state at λ = `end`, by evaluations at `lams`."""
    name = type(scheduler).__name__.removesuffix("Scheduler")
    predicts = PREDICTS[scheduler.config.get("prediction_type", "v_prediction")]
    scaled, alpha, draws = name in IN_SIGMA_BAR, model.schedule.alpha, itertools.count(1)
    module = module_of(name)

    def draw(shape: Sequence[int], **_: Any) -> Tensor:
        assert noise is not None, f"{name} draws noise"
        return noise(next(draws), x)

    with ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            stack.enter_context(patch.object(module, "randn_tensor", draw))
        x = x / float(alpha(lams[0])) if scaled else x
        for t, lam in zip(scheduler.timesteps, lams, strict=False):
            m = model(scheduler.scale_model_input(x, t), float(lam), predicts)
            x = scheduler.step(m, t, x, **step).prev_sample
    return x * float(alpha(end)) if scaled else x


def run_peer(peer: Peer, model: EpsModel, x: Tensor, grid: Array, noise: Noise | None = None) -> Tensor:
    """What the scheduler makes of x (batch, *shape) on the grid, in the float64 of its own code."""
    with double(peer.scheduler), torch.no_grad():
        scheduler, lams = on_grid(peer, grid, model)
        return drive(scheduler, model, x, lams, float(grid[-1]), noise, **peer.step)
