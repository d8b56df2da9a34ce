"""The noise schedules that networks are trained with, each a path and the clock t of its paper (schedule.py).

    ddpm_linear   discrete, Ho et al. (2020): labels t = 999 ... 0           vp_linear   Song et al. (2021b): t from 1 to 0.001
    cosine        Nichol and Dhariwal (2021): t from 0.999 to 0.001          edm         Karras et al. (2022): t = σ, 80 to 0.002
    flow          Lipman et al. (2023): t = σ, 0.999 to 0.001                ddpm_table  any β_1 ... β_T

Both directions of every clock are written without cancellation. All of it is float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit

from diffode.errors import InputError
from diffode.schedule import PATHS, Array, Schedule

P = ParamSpec("P")


def vp_lam(log_alpha: Any) -> Any:
    """λ of log α on the vp path: log α − ½ log(1 − α²)."""
    return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))


def vp_log_alpha(lam: Any) -> Any:
    """log α = ½ log sigmoid(2λ), the inverse of vp_lam."""
    return 0.5 * log_expit(2 * lam)


def vp_rate(log_alpha: Any) -> Any:
    """dλ/d log α on the vp path: 1/σ² = 1/(1 − α²)."""
    return -1 / np.expm1(2 * log_alpha)


def ddpm_table(betas: ArrayLike, name: str = "ddpm_table") -> Schedule:
    """The discrete schedule of DDPM (Ho et al., 2020) from its β_1 ... β_T, shape (T,): α(t) = sqrt(Π_{s ≤ t} (1 − β_s)).

    t is the label that such networks are called with, 0 for β_1 to T − 1 for β_T. Between labels log α is linear in t, as
    in DPM-Solver (Lu et al., 2022a), so fractional labels and λ follow one map. At a label dλ/dt is that of the noisier side.
    InputError unless there are two β or more, all between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or not np.all((betas > 0) & (betas < 1)):
        raise InputError("the β of a DDPM table must be at least two numbers between 0 and 1")
    slope = 0.5 * np.log1p(-betas)  # d log α/dt from the label before
    log_alpha = np.cumsum(slope)
    labels = np.arange(len(betas), dtype=np.float64)

    def rate(t: Array) -> Array:
        after = np.minimum(np.floor(t).astype(int) + 1, len(labels) - 1)
        return slope[after] * vp_rate(np.interp(t, labels, log_alpha))

    return Schedule(
        name,
        PATHS["vp"],
        t_noisy=labels[-1],
        t_clean=0.0,
        to_lam=lambda t: vp_lam(np.interp(t, labels, log_alpha)),
        to_t=lambda lam: np.interp(-vp_log_alpha(lam), -log_alpha, labels),
        rate=rate,
        knots=vp_lam(log_alpha)[::-1].copy(),
    )


def _named(function: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """`function`, whose schedule remembers its name and the arguments it was called with, defaults included."""

    @wraps(function)
    def make_named(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        options = tuple(bound.arguments.items())
        return replace(function(*args, **kwargs), name=function.__name__, options=options, factory=make_named)

    return make_named


@_named
def ddpm_linear(beta_first: float = 1e-4, beta_last: float = 0.02, steps: int = 1000) -> Schedule:
    """The table of DDPM and of the DDIM paper: `steps` values of β, equally spaced from 1e-4 to 0.02."""
    return ddpm_table(np.linspace(beta_first, beta_last, steps))


@_named
def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0, t_clean: float = 1e-3) -> Schedule:
    """The continuous VP schedule of Song et al. (2021b), t from 1 (noisy) to `t_clean`:

    log α = −t² (β_max − β_min)/4 − t β_min/2.
    """

    def log_alpha(t: Array) -> Array:
        return -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2

    def to_t(lam: Array) -> Array:
        loss = -2 * vp_log_alpha(lam)
        return 2 * loss / (beta_min + np.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * loss))

    def rate(t: Array) -> Array:
        return -(beta_min + t * (beta_max - beta_min)) / 2 * vp_rate(log_alpha(t))

    return Schedule("vp_linear", PATHS["vp"], 1.0, t_clean, lambda t: vp_lam(log_alpha(t)), to_t, rate)


@_named
def cosine(s: float = 0.008, t_clean: float = 1e-3, t_noisy: float = 0.999) -> Schedule:
    """The cosine schedule of Nichol and Dhariwal (2021): α = cos θ(t)/cos θ(0), θ(t) = (π/2)(t + s)/(1 + s).

    At t = 1, α = 0 and λ = −∞; the clock therefore begins at `t_noisy`. With δ = θ(t) − θ(0) both α and
    σ² = sin δ sin(θ(t) + θ(0))/cos² θ(0) are free of cancellation, and so is δ = atan2 of its own sine and cosine; and so
    dλ/dt = −θ' tan θ(t)/σ² with tan θ(t) = cot(θ' (1 − t)).
    """
    turn = np.pi / 2 / (1 + s)  # θ'
    first = turn * s
    sin0, cos0 = np.sin(first), np.cos(first)

    def variance(t: Array) -> Array:
        return np.sin(turn * t) * np.sin(turn * t + 2 * first) / cos0**2

    def to_lam(t: Array) -> Array:
        return np.log(np.sin(turn * (1 - t)) / cos0) - 0.5 * np.log(variance(t))

    def to_t(lam: Array) -> Array:
        cos = np.sqrt(expit(2 * lam)) * cos0
        excess = expit(-2 * lam) * cos0**2  # sin² θ − sin² θ(0)
        sin = np.sqrt(excess + sin0**2)
        return np.arctan2(excess / (sin * cos0 + sin0 * cos), cos * cos0 + sin * sin0) / turn

    def rate(t: Array) -> Array:
        return -turn / (np.tan(turn * (1 - t)) * variance(t))

    return Schedule("cosine", PATHS["vp"], t_noisy, t_clean, to_lam, to_t, rate)


@_named
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """The variance-exploding schedule of EDM (Karras et al., 2022): α = 1, and the clock is σ itself, from 80 to 0.002."""
    return Schedule(
        "edm", PATHS["ve"], sigma_max, sigma_min, lambda t: -np.log(t), lambda lam: np.exp(-lam), rate=lambda t: -1 / t
    )


@_named
def flow(t_clean: float = 1e-3, t_noisy: float = 0.999) -> Schedule:
    """Flow matching and rectified flow (Lipman et al., 2023; Liu et al., 2023): α = 1 − t, σ = t, λ = log((1 − t)/t).

    t = 1 is pure noise, λ = −∞; the clock therefore begins at `t_noisy`.
    """
    return Schedule(
        "flow",
        PATHS["flow"],
        t_noisy,
        t_clean,
        to_lam=lambda t: np.log1p(-t) - np.log(t),
        to_t=lambda lam: expit(-lam),
        rate=lambda t: -1 / (t * (1 - t)),
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ddpm_linear": ddpm_linear,
    "vp_linear": vp_linear,
    "cosine": cosine,
    "edm": edm,
    "flow": flow,
}


def make(name: str, **options: float) -> Schedule:
    """The schedule of that name; InputError for an unknown name or option, with the known ones."""
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}: expected one of {', '.join(SCHEDULES)}")
    known = inspect.signature(SCHEDULES[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise InputError(f"the schedule {name} has no option {unknown[0]!r}: it has {', '.join(known)}")
    return SCHEDULES[name](**options)
