"""Schedules that are tables: networks that were trained at whole labels t = 0 ... T − 1, and how their β were made.

    ddpm_table   any β_1 ... β_T                          ddpm_linear       β linear (Ho et al., 2020)
    from_sigmas  any σ/α, increasing                      scaled_linear     √β linear (Stable Diffusion; Rombach et al., 2022)
                                                          squared_cosine    Nichol and Dhariwal (2021), as GLIDE's code has it

Between two labels log α is linear in t, or λ for `from_sigmas`, so fractional labels and λ follow one map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_expit

from diffode.checks import choice, flag, number, numbers, whole
from diffode.errors import InputError
from diffode.schedule import PATHS, Array, Schedule, named

MOST_LABELS = 1_000_000


def vp_lam(log_alpha: Any) -> Any:
    """λ of log α on the vp path: log α − ½ log(1 − α²)."""
    return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))


def vp_log_alpha(lam: Any) -> Any:
    """log α = ½ log sigmoid(2λ), the inverse of vp_lam."""
    return 0.5 * log_expit(2 * lam)


def vp_rate(log_alpha: Any) -> Any:
    """dλ/d log α on the vp path: 1/σ² = 1/(1 − α²)."""
    return -1 / np.expm1(2 * log_alpha)


@named
def ddpm_table(betas: ArrayLike) -> Schedule:
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
        "ddpm_table",
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


@named
def from_sigmas(sigmas: ArrayLike, path: str = "vp") -> Schedule:
    """The discrete schedule of a table of σ/α at the labels 0 ... T − 1, on a path: λ = −log(σ/α), linear in t between labels.

    sigmas: (T,), positive and increasing, as k-diffusion's wrappers and diffusers' Euler schedulers have them; InputError if not.
    """
    table = numbers("sigmas", sigmas, MOST_LABELS, least=2)
    if not (table[0] > 0 and np.all(np.diff(table) > 0) and np.isfinite(table[-1])):
        raise InputError(
            f"`sigmas` must be positive, finite and increasing, the least noise first, not from {table[0]:g} to {table[-1]:g}: "
            "leave out a 0 at the end, which is no label, and turn them round (sigmas[::-1]) if they fall"
        )
    lam, labels = -np.log(table), np.arange(len(table), dtype=np.float64)
    slope = np.diff(lam)
    return Schedule(
        "from_sigmas",
        PATHS[choice("path", path, PATHS)],
        t_noisy=labels[-1],
        t_clean=0.0,
        to_lam=lambda t: np.interp(t, labels, lam),
        to_t=lambda at: np.interp(-at, -lam, labels),
        rate=lambda t: slope[np.minimum(np.floor(t).astype(int), len(slope) - 1)],
        knots=lam[::-1].copy(),
    )


@named
def ddpm_linear(beta_first: float = 1e-4, beta_last: float = 0.02, steps: int = 1000) -> Schedule:
    """The table of DDPM and of the DDIM paper: `steps` values of β, equally spaced from 1e-4 to 0.02."""
    return ddpm_table(_spaced(beta_first, beta_last, steps))


@named
def scaled_linear(beta_first: float = 0.00085, beta_last: float = 0.012, steps: int = 1000, zero_snr: bool = False) -> Schedule:
    """The table of Stable Diffusion (Rombach et al., 2022): √β equally spaced; zero_snr: see `zero_terminal_snr`."""
    ends = number("beta_first", beta_first, 0, 1) ** 0.5, number("beta_last", beta_last, 0, 1) ** 0.5
    betas = _spaced(*ends, steps) ** 2
    return ddpm_table(zero_terminal_snr(betas) if flag("zero_snr", zero_snr) else betas)


@named
def squared_cosine(steps: int = 1000, zero_snr: bool = False) -> Schedule:
    """The table of Nichol and Dhariwal (2021): ᾱ(u) = cos²(π/2 (u + 0.008)/1.008), β_t = 1 − ᾱ(t/T)/ᾱ((t − 1)/T), at most 0.999;
    zero_snr: see `zero_terminal_snr`."""
    steps = whole("steps", steps, 2, MOST_LABELS)
    betas = betas_of(squared_cosine_bar(np.arange(steps + 1) / steps))
    return ddpm_table(zero_terminal_snr(betas) if flag("zero_snr", zero_snr) else betas)


def squared_cosine_bar(u: Array) -> Array:
    """ᾱ(u) of `squared_cosine`, u from 0 to 1, but for a factor."""
    return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2


def betas_of(bars: Array, most: float = 0.999) -> Array:
    """β_1 ... β_T of ᾱ_0 ... ᾱ_T, at most `most` (Nichol and Dhariwal, 2021)."""
    return np.minimum(1 - bars[1:] / bars[:-1], most)


def zero_terminal_snr(betas: ArrayLike) -> Array:
    """The β of a table whose last label is pure noise: √ᾱ shifted by its last value and scaled back to its first one (Lin et al.,
    2024, Alg. 1). betas: (T,); the β that come back begin with the same and end with 1. InputError as `ddpm_table`."""
    betas = _betas(betas)
    if betas[-1] == 1:
        return betas
    root = np.exp(0.5 * np.cumsum(np.log1p(-betas)))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return np.concatenate([betas[:1], 1 - (root[1:] / root[:-1]) ** 2])


def _spaced(first: float, last: float, steps: int) -> Array:
    return np.linspace(number("beta_first", first), number("beta_last", last), whole("steps", steps, 2, MOST_LABELS))
