"""The noise schedules that networks are trained with, each a path and the clock t of its paper (schedule.py).

    ddpm_linear   discrete, Ho et al. (2020): labels t = 999 ... 0           vp_linear   Song et al. (2021b): t from 1 to 0.001
    cosine        Nichol and Dhariwal (2021): t from 0.999 to 0.001          edm         Karras et al. (2022): t = σ, 80 to 0.002
    flow          Lipman et al. (2023): t = σ, 0.999 to 0.001                vp_sigma    the vp path with t = σ/α

Other tables of labels (scaled_linear, squared_cosine, ddpm_table, from_sigmas) are in tables.py and have their names here too.
Both directions of every clock are written without cancellation. All of it is float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit

from diffode.checks import flag, number, unknown
from diffode.errors import InputError
from diffode.schedule import PATHS, Array, Schedule, named
from diffode.tables import (
    MOST_LABELS,
    ddpm_linear,
    ddpm_table,
    from_sigmas,
    scaled_linear,
    squared_cosine,
    vp_lam,
    vp_log_alpha,
    vp_rate,
    zero_terminal_snr,
)

__all__ = [
    "MOST_LABELS",
    "SCHEDULES",
    "TABLES",
    "cosine",
    "ddpm_linear",
    "ddpm_table",
    "edm",
    "flow",
    "from_sigmas",
    "make",
    "scaled_linear",
    "squared_cosine",
    "vp_linear",
    "vp_sigma",
    "zero_terminal_snr",
]
MOST_BETA = 1e9  # of a continuous schedule


@named
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


@named
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


@named
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """The variance-exploding schedule of EDM (Karras et al., 2022): α = 1, and the clock is σ itself, from 80 to 0.002."""
    sigma_min, sigma_max = number("sigma_min", sigma_min, 0), number("sigma_max", sigma_max, 0)
    return Schedule(
        "edm", PATHS["ve"], sigma_max, sigma_min, lambda t: -np.log(t), lambda lam: np.exp(-lam), rate=lambda t: -1 / t
    )


@named
def vp_sigma(sigma_min: float = 0.002, sigma_max: float = 700.0) -> Schedule:
    """The vp path with the clock σ/α = e^(−λ), from `sigma_max` to `sigma_min`: EDM with σ_data = 1 whose state is scaled to unit
    variance, as Stable Video Diffusion (Blattmann et al., 2023) and Stable Audio are trained."""
    sigma_min, sigma_max = number("sigma_min", sigma_min, 0), number("sigma_max", sigma_max, 0)
    return Schedule(
        "vp_sigma", PATHS["vp"], sigma_max, sigma_min, lambda t: -np.log(t), lambda lam: np.exp(-lam), rate=lambda t: -1 / t
    )


@named
def flow(t_clean: float = 1e-3, t_noisy: float = 0.999, shift: float = 1.0, reverse: bool = False) -> Schedule:
    """Flow matching and rectified flow (Lipman et al., 2023; Liu et al., 2023): α = 1 − σ, t = σ, λ = log((1 − t)/t).

    t_clean, t_noisy: the ends of the clock before it is shifted, both from 0 to 1. At 1 is pure noise, λ = −∞, at 0 pure data,
    λ = +∞; the clock therefore ends before them unless a network was trained there.
    shift: s of the grid `time`, whose equal steps are in u with σ = s u/(1 + (s − 1) u), so that λ = log((1 − u)/u) − log s
    (Esser et al., 2024, Eq. 23). It does not change what the network is called with, which is σ.
    reverse: the clock is 1 − σ, from noise at 0 to data at 1, as in SiT (Ma et al., 2024).
    """
    u_clean, u_noisy = number("t_clean", t_clean, 0, 1), number("t_noisy", t_noisy, 0, 1)
    s = number("shift", shift, 1e-6, 1e6)

    def turned(t: Any) -> Any:
        return 1 - t if reverse else t

    def to_lam(t: Array) -> Array:
        log_ratio = np.log1p(-t) - np.log(t)
        return -log_ratio if reverse else log_ratio

    def warp(u: Any) -> Any:
        return turned(u if s == 1 else s * u / (1 + (s - 1) * u))

    flag("reverse", reverse)
    return Schedule(
        "flow",
        PATHS["flow"],
        warp(u_noisy),
        warp(u_clean),
        to_lam=to_lam,
        to_t=(lambda lam: expit(lam)) if reverse else (lambda lam: expit(-lam)),
        rate=lambda t: (1 if reverse else -1) / (t * (1 - t)),
        warp=warp,
        unwarp=lambda t: turned(t) if s == 1 else turned(t) / (s - (s - 1) * turned(t)),
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "ddpm_linear": ddpm_linear,
    "vp_linear": vp_linear,
    "cosine": cosine,
    "edm": edm,
    "flow": flow,
    "scaled_linear": scaled_linear,
}
TABLES: dict[str, Callable[..., Schedule]] = {  # what cards name besides; their arguments are no numbers, or have other defaults
    "squared_cosine": squared_cosine,
    "vp_sigma": vp_sigma,
    "ddpm_table": ddpm_table,
    "from_sigmas": from_sigmas,
}


def make(name: str, **options: Any) -> Schedule:
    """The schedule of that name; InputError for an unknown name or option, with the known ones, and for one that is missing."""
    known = {**SCHEDULES, **TABLES}
    if not isinstance(name, str) or name not in known:
        raise unknown("schedule", name, known)
    takes = inspect.signature(known[name]).parameters
    if others := [option for option in options if option not in takes]:
        raise unknown(f"option of the schedule {name}", others[0], takes)
    if missing := [option for option, how in takes.items() if how.default is how.empty and option not in options]:
        raise InputError(f"the schedule {name} needs its {missing[0]}, a list of numbers")
    return known[name](**options)
