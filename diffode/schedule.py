"""Noise schedules: how the data and the noise are weighted at every λ, and which clock t the network was trained with.

    q(x | x0) = N(α x0, σ² I),    λ = log(α/σ),    half the log-SNR, natural logarithm; noisy is small λ

A Schedule is two independent things. The *path* fixes α and σ as functions of λ; the probability-flow ODE knows nothing
else of the schedule:

    vp    α² + σ² = 1     α = sqrt(sigmoid(2λ))   σ = sqrt(sigmoid(−2λ))   d log α/dλ = σ²
    ve    α = 1           α = 1                   σ = e^(−λ)               d log α/dλ = 0
    flow  α + σ = 1       α = sigmoid(λ)          σ = sigmoid(−λ)          d log α/dλ = σ

The *clock* maps λ to the t that a network is called with, and back. All of it is float64 numpy on the host; the ends
λ = ±∞ have their limits, and both directions of every clock are written without cancellation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from diffode.errors import InputError

Array = NDArray[np.float64]
Function = Callable[[Any], Any]  # float64, elementwise, numbers and arrays alike


@dataclass(frozen=True)
class Path:
    """α(λ), σ(λ) and d log α/dλ."""

    name: str
    alpha: Function
    sigma: Function
    dlog_alpha: Function

    def at(self, lam: float) -> tuple[float, float]:
        """(α, σ) at one λ."""
        return float(self.alpha(np.float64(lam))), float(self.sigma(np.float64(lam)))

    def __reduce__(self) -> tuple[Callable[..., Path], tuple[str]]:
        return _path, (self.name,)  # functions are not pickled


def _path(name: str) -> Path:
    return PATHS[name]


PATHS = {
    path.name: path
    for path in (
        Path("vp", lambda lam: np.sqrt(expit(2 * lam)), lambda lam: np.sqrt(expit(-2 * lam)), lambda lam: expit(-2 * lam)),
        Path("ve", np.ones_like, lambda lam: np.exp(-lam), np.zeros_like),
        Path("flow", expit, lambda lam: expit(-lam), lambda lam: expit(-lam)),
    )
}


@dataclass(frozen=True)
class Schedule:
    """A path and a clock. `lam_min` and `lam_max` are the λ of the clock's two ends, where grids begin and end.

    name: as in SCHEDULES, with `options` the arguments it was made with, so that a JSON card can name it.
    rate: dλ/dt as a function of t in the clock, negative where t grows with the noise.
    knots: the λ of the clock's integers, increasing, if the network was trained on these alone; else None.
    """

    name: str
    path: Path
    t_noisy: float
    t_clean: float
    to_lam: Function
    to_t: Function
    rate: Function
    knots: Array | None = None
    options: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not self.lam_min < self.lam_max:
            raise InputError(
                f"{self.name}: λ must grow from the noisy end of its clock, t = {self.t_noisy:g}, to the clean one, "
                f"t = {self.t_clean:g}, where it is {self.lam_min:g} and {self.lam_max:g}"
            )

    @property
    def lam_min(self) -> float:
        return float(self.lam(self.t_noisy))

    @property
    def lam_max(self) -> float:
        return float(self.lam(self.t_clean))

    def alpha(self, lam: ArrayLike) -> Array:
        """α(λ), the weight of the data; any shape."""
        return np.asarray(self.path.alpha(np.asarray(lam, np.float64)))

    def sigma(self, lam: ArrayLike) -> Array:
        """σ(λ), the standard deviation of the noise; any shape."""
        return np.asarray(self.path.sigma(np.asarray(lam, np.float64)))

    def lam(self, t: ArrayLike) -> Array:
        """λ(t); InputError outside the clock, since a network knows nothing there."""
        t = np.asarray(t, np.float64)
        low, high = sorted((self.t_noisy, self.t_clean))
        if not np.all((t >= low) & (t <= high)):
            raise InputError(
                f"t = {_outside(t, low, high):.15g} is outside the clock of {self.name}, "
                f"which runs from {low:.15g} to {high:.15g}"
            )
        with np.errstate(divide="ignore"):  # α = 0 or σ = 0 at an end is λ = ∓∞
            return np.asarray(self.to_lam(t))

    def t(self, lam: ArrayLike) -> Array:
        """t(λ), the clock of the network; InputError outside [lam_min, lam_max] beyond rounding (1e-9)."""
        lam = np.asarray(lam, np.float64)
        low, high = self.lam_min - 1e-9, self.lam_max + 1e-9
        if not np.all((lam >= low) & (lam <= high)):
            raise InputError(
                f"λ = {_outside(lam, low, high):.6g} is outside the schedule {self.name}, which covers "
                f"{self.lam_min:.6g} to {self.lam_max:.6g}: "
                "choose a grid between these two"
            )
        first, last = sorted((self.t_noisy, self.t_clean))
        return np.clip(self.to_t(lam), first, last)


def _outside(values: Array, low: float, high: float) -> float:
    return float(values[~((values >= low) & (values <= high))].flat[0])


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


def ddpm_linear(beta_first: float = 1e-4, beta_last: float = 0.02, steps: int = 1000) -> Schedule:
    """The table of DDPM and of the DDIM paper: `steps` values of β, equally spaced from 1e-4 to 0.02."""
    return _named(
        ddpm_table(np.linspace(beta_first, beta_last, steps)),
        "ddpm_linear",
        beta_first=beta_first,
        beta_last=beta_last,
        steps=steps,
    )


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

    return _named(
        Schedule("vp_linear", PATHS["vp"], 1.0, t_clean, lambda t: vp_lam(log_alpha(t)), to_t, rate),
        "vp_linear",
        beta_min=beta_min,
        beta_max=beta_max,
        t_clean=t_clean,
    )


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

    schedule = Schedule("cosine", PATHS["vp"], t_noisy, t_clean, to_lam, to_t, rate)
    return _named(schedule, "cosine", s=s, t_clean=t_clean, t_noisy=t_noisy)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """The variance-exploding schedule of EDM (Karras et al., 2022): α = 1, and the clock is σ itself, from 80 to 0.002."""
    schedule = Schedule(
        "edm", PATHS["ve"], sigma_max, sigma_min, lambda t: -np.log(t), lambda lam: np.exp(-lam), rate=lambda t: -1 / t
    )
    return _named(schedule, "edm", sigma_min=sigma_min, sigma_max=sigma_max)


def flow(t_clean: float = 1e-3, t_noisy: float = 0.999) -> Schedule:
    """Flow matching and rectified flow (Lipman et al., 2023; Liu et al., 2023): α = 1 − t, σ = t, λ = log((1 − t)/t).

    t = 1 is pure noise, λ = −∞; the clock therefore begins at `t_noisy`.
    """
    schedule = Schedule(
        "flow",
        PATHS["flow"],
        t_noisy,
        t_clean,
        to_lam=lambda t: np.log1p(-t) - np.log(t),
        to_t=lambda lam: expit(-lam),
        rate=lambda t: -1 / (t * (1 - t)),
    )
    return _named(schedule, "flow", t_clean=t_clean, t_noisy=t_noisy)


def _named(schedule: Schedule, name: str, **options: float) -> Schedule:
    return replace(schedule, name=name, options=tuple(options.items()))


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
