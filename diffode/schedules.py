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

from diffode.checks import number, numbers, text, unknown, whole
from diffode.errors import InputError
from diffode.schedule import PATHS, Array, Schedule

P = ParamSpec("P")
MOST_LABELS, MOST_BETA = 1_000_000, 1e9  # of a discrete and of a continuous schedule


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
    With β_T = 1 (zero terminal SNR; Lin et al., 2024) the last label is pure noise, λ = −∞, and α is linear in t before it.
    InputError unless there are two β or more, all between 0 and 1, of which the last may be 1; and for ᾱ in place of β.
    """
    betas = _betas(betas)
    to_noise = betas[-1] == 1
    with np.errstate(divide="ignore"):
        slope = 0.5 * np.log1p(-betas)  # d log α/dt from the label before
    log_alpha, labels = np.cumsum(slope), np.arange(len(betas), dtype=np.float64)
    known, log_known = (labels[:-1], log_alpha[:-1]) if to_noise else (labels, log_alpha)  # the finite ones

    def log_alpha_at(t: Array) -> Array:
        inner = np.interp(t, known, log_known)
        return np.where(t > known[-1], log_known[-1] + np.log(labels[-1] - t), inner) if to_noise else inner

    def to_t(lam: Array) -> Array:
        at = vp_log_alpha(lam)
        inner = np.interp(-at, -log_known, known)
        return np.where(at < log_known[-1], labels[-1] - np.exp(at - log_known[-1]), inner) if to_noise else inner

    def rate(t: Array) -> Array:
        after = np.minimum(np.floor(t).astype(int) + 1, len(labels) - 1)
        growth = np.where(after > known[-1], -1 / (labels[-1] - t), slope[after]) if to_noise else slope[after]
        return growth * vp_rate(log_alpha_at(t))

    return Schedule(
        text("name", name),
        PATHS["vp"],
        t_noisy=labels[-1],
        t_clean=0.0,
        to_lam=lambda t: vp_lam(log_alpha_at(t)),
        to_t=to_t,
        rate=rate,
        knots=vp_lam(log_alpha)[::-1].copy(),
    )


def _betas(values: Any) -> Array:
    """β_1 ... β_T, checked; InputError that says what to give where they look like ᾱ or α."""
    betas = numbers("betas", values, MOST_LABELS, least=2)
    if betas[0] > 0.5 and np.all(np.diff(betas) <= 0):  # even the cleanest label would be mostly noise
        meant, instead = (
            ("α = 1 − β", "1 − α") if betas[-1] > 0.5 else ("ᾱ = Π (1 − β)", "β_1 = 1 − ᾱ_1 and β_t = 1 − ᾱ_t/ᾱ_{t−1}")
        )
        raise InputError(
            f"`betas` fall from {betas[0]:.6g} to {betas[-1]:.3g}: these look like {meant}; give β, that is {instead}"
        )
    right = (betas > 0) & (betas < 1)
    right[-1] |= betas[-1] == 1
    if not right.all():
        at = int(np.argmin(right))
        raise InputError(
            "the β of a DDPM table must be between 0 and 1, of which the last may be 1 (zero terminal SNR), not "
            f"β_{at + 1} = {betas[at]:g}"
        )
    return betas


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
    return ddpm_table(
        np.linspace(number("beta_first", beta_first), number("beta_last", beta_last), whole("steps", steps, 2, MOST_LABELS))
    )


@_named
def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0, t_clean: float = 1e-3) -> Schedule:
    """The continuous VP schedule of Song et al. (2021b), t from 1 (noisy) to `t_clean`:

    log α = −t² (β_max − β_min)/4 − t β_min/2.
    """
    beta_min, beta_max = number("beta_min", beta_min, 0, MOST_BETA), number("beta_max", beta_max, 0, MOST_BETA)
    t_clean = number("t_clean", t_clean, 0, 1)

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
    s, t_clean, t_noisy = number("s", s, 0, 1), number("t_clean", t_clean, 0, 1), number("t_noisy", t_noisy, 0, 1)
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
    sigma_min, sigma_max = number("sigma_min", sigma_min, 0), number("sigma_max", sigma_max, 0)
    return Schedule(
        "edm", PATHS["ve"], sigma_max, sigma_min, lambda t: -np.log(t), lambda lam: np.exp(-lam), rate=lambda t: -1 / t
    )


@_named
def flow(t_clean: float = 1e-3, t_noisy: float = 0.999) -> Schedule:
    """Flow matching and rectified flow (Lipman et al., 2023; Liu et al., 2023): α = 1 − t, σ = t, λ = log((1 − t)/t).

    t = 1 is pure noise, λ = −∞; the clock therefore begins at `t_noisy`, which may be 1 for networks trained there.
    """
    t_clean, t_noisy = number("t_clean", t_clean, 0, 1), number("t_noisy", t_noisy, 0, 1)
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
    if not isinstance(name, str) or name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    known = inspect.signature(SCHEDULES[name]).parameters
    if others := [option for option in options if option not in known]:
        raise unknown(f"option of the schedule {name}", others[0], known)
    return SCHEDULES[name](**options)
