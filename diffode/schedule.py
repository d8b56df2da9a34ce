"""Noise schedules: how the data and the noise are weighted at every λ, and which clock t the network was trained with.

    q(x | x0) = N(α x0, σ² I),    λ = log(α/σ),    half the log-SNR, natural logarithm; noisy is small λ

A Schedule is two independent things. The *path* fixes α and σ as functions of λ; the probability-flow ODE knows nothing
else of the schedule:

    vp    α² + σ² = 1     α = sqrt(sigmoid(2λ))   σ = sqrt(sigmoid(−2λ))   d log α/dλ = σ²
    ve    α = 1           α = 1                   σ = e^(−λ)               d log α/dλ = 0
    flow  α + σ = 1       α = sigmoid(λ)          σ = sigmoid(−λ)          d log α/dλ = σ

The *clock* maps λ to the t that a network is called with, and back. All of it is float64 numpy on the host; the ends
λ = ±∞ have their limits. The clocks that networks are trained with are in schedules.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from diffode.checks import array, instance
from diffode.errors import InputError

P = ParamSpec("P")
Array = NDArray[np.float64]
Function = Callable[[Any], Any]  # float64, elementwise, numbers and arrays alike
SINGLE = float(np.finfo(np.float32).eps)  # what a clock in float32 may be off by, relative to its own size


@dataclass(frozen=True, eq=False)
class ProbabilityPath:
    """α(λ), σ(λ) and d log α/dλ, each for a number or an array of λ."""

    name: str
    alpha: Function = field(repr=False)
    sigma: Function = field(repr=False)
    dlog_alpha: Function = field(repr=False)

    def at(self, lam: float) -> tuple[float, float]:
        """(α, σ) at one λ. Planning asks for each λ several times, so the last values are remembered."""
        return _weights(self, float(lam))

    def __reduce__(self) -> tuple[Callable[..., ProbabilityPath], tuple[str]]:
        return _path, (self.name,)  # functions are not pickled


@lru_cache(maxsize=4096)
def _weights(path: ProbabilityPath, lam: float) -> tuple[float, float]:
    return float(path.alpha(np.float64(lam))), float(path.sigma(np.float64(lam)))


def _path(name: str) -> ProbabilityPath:
    return PATHS[name]


PATHS = {
    path.name: path
    for path in (
        ProbabilityPath(
            "vp", lambda lam: np.sqrt(expit(2 * lam)), lambda lam: np.sqrt(expit(-2 * lam)), lambda lam: expit(-2 * lam)
        ),
        ProbabilityPath("ve", np.ones_like, lambda lam: np.exp(-lam), np.zeros_like),
        ProbabilityPath("flow", expit, lambda lam: expit(-lam), lambda lam: expit(-lam)),
    )
}


@dataclass(frozen=True, repr=False)
class Schedule:
    """A path and a clock. `lam_min` and `lam_max` are the λ of the clock's two ends, where grids begin and end.

    to_lam, to_t: λ of the clock's t, and its inverse. rate: dλ/dt at t, negative where t grows with the noise.
    knots: the λ of the clock's integers, increasing, if the network was trained on these alone; else None.
    name, options: the name and arguments of its function in schedules.py, by which a JSON card knows it.
    factory: that function, by which it is pickled; None for a schedule of another origin.
    warp, unwarp: t of the time u in which the grids `time` and `quadratic` have their steps, growing with the noise, and back.
    """

    name: str
    path: ProbabilityPath
    t_noisy: float
    t_clean: float
    to_lam: Function
    to_t: Function
    rate: Function
    knots: Array | None = None
    options: tuple[tuple[str, object], ...] = ()
    factory: Callable[..., Schedule] | None = None
    warp: Function = lambda u: u
    unwarp: Function = lambda t: t

    def __post_init__(self) -> None:
        instance("path", self.path, ProbabilityPath, "one of diffode.schedule.PATHS")
        if not self.lam_min < self.lam_max:
            raise InputError(
                f"{self.name}: λ must grow from the noisy end of its clock, t = {self.t_noisy:g}, to the clean one, "
                f"t = {self.t_clean:g}, where it is {self.lam_min:g} and {self.lam_max:g}"
            )

    def __repr__(self) -> str:
        options = ", ".join(
            f"{name}={value:g}"
            if isinstance(value, float)
            else f"{name}={f'{len(value)} numbers' if isinstance(value, tuple) else value}"
            for name, value in self.options
        )
        lam, t = (f"{self.lam_min:.3g} to {self.lam_max:.3g}", f"{self.t_noisy:g} to {self.t_clean:g}")
        return f"{self.name}({options}): {self.path.name} path, λ from {lam}, t from {t}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By factory, options and ends, since functions are not pickled; a schedule without a factory cannot be."""
        if self.factory is None:
            return super().__reduce_ex__(protocol)
        return _rebuilt, (self.factory, dict(self.options), self.t_noisy, self.t_clean)

    @classmethod
    def from_config(cls, config: Any, mu: float | None = None) -> Schedule:
        """The schedule of the configuration of a scheduler of diffusers; see scheduler_config.trained_as."""
        from diffode.scheduler_config import schedule_of

        return schedule_of(config, mu)

    @cached_property
    def lam_min(self) -> float:
        """λ of the noisy end."""
        return float(self.lam(self.t_noisy))

    @cached_property
    def lam_max(self) -> float:
        """λ of the clean end."""
        return float(self.lam(self.t_clean))

    def alpha(self, lam: ArrayLike) -> Array:
        """α(λ), the weight of the data; any shape."""
        return np.asarray(self.path.alpha(array("lam", lam)))

    def sigma(self, lam: ArrayLike) -> Array:
        """σ(λ), the standard deviation of the noise; any shape."""
        return np.asarray(self.path.sigma(array("lam", lam)))

    def lam(self, t: ArrayLike) -> Array:
        """λ(t); InputError outside the clock beyond rounding (float32), since a network knows nothing there."""
        t = array("t", t)
        low, high = sorted((self.t_noisy, self.t_clean))
        least, most = low - SINGLE * abs(low), high + SINGLE * abs(high)
        if not np.all((t >= least) & (t <= most)):
            raise InputError(
                f"t = {_outside(t, least, most):.15g} is outside the clock of {self.name}, "
                f"which runs from {low:.15g} to {high:.15g}"
            )
        with np.errstate(divide="ignore"):  # α = 0 or σ = 0 at an end is λ = ∓∞
            return np.asarray(self.to_lam(np.clip(t, low, high)))

    def t(self, lam: ArrayLike) -> Array:
        """t(λ), the clock of the network; InputError outside [lam_min, lam_max] beyond rounding (1e-9)."""
        lam = array("lam", lam)
        low, high = self.lam_min - 1e-9, self.lam_max + 1e-9
        if not np.all((lam >= low) & (lam <= high)):
            raise InputError(
                f"λ = {_outside(lam, low, high):.6g} is outside the schedule {self.name}, which covers "
                f"{self.lam_min:.6g} to {self.lam_max:.6g}: "
                "choose a grid between these two"
            )
        first, last = sorted((self.t_noisy, self.t_clean))
        return np.clip(self.to_t(lam), first, last)

    def starting_at(self, lam: float) -> Schedule:
        """This schedule from λ on: the noisy end of its clock is t(λ)."""
        return replace(self, t_noisy=float(self.t(lam)))


def require(schedule: Any) -> Schedule:
    """The schedule, if it is one; else InputError."""
    found: Schedule = instance("schedule", schedule, Schedule, "a Schedule, as diffode.schedules.ddpm_linear() is one")
    return found


def named(function: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """`function`, whose schedule remembers its name and the arguments it was called with, defaults included."""

    @wraps(function)
    def make_named(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        made = function(*args, **kwargs)  # which checks them
        options = tuple((name, _plain(value)) for name, value in bound.arguments.items())
        return replace(made, name=function.__name__, options=options, factory=make_named)

    return make_named


def _plain(value: Any) -> Any:
    """An argument as a card holds it: a table as a tuple of numbers, a number of NumPy as Python's."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return tuple(plain) if isinstance(plain, list) else plain


def _rebuilt(factory: Callable[..., Schedule], options: dict[str, object], t_noisy: float, t_clean: float) -> Schedule:
    return replace(factory(**options), t_noisy=t_noisy, t_clean=t_clean)


def _outside(values: Array, low: float, high: float) -> float:
    return float(values[~((values >= low) & (values <= high))].flat[0])
