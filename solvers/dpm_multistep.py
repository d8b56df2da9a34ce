"""DPM-Solver and DPM-Solver++, multistep: the last evaluations extrapolated over the step, in noise form or in data form.

With r = h_prev/h, dpmpp2m extrapolates x̂0 by (1 + 1/(2r), −1/(2r)), which is exact for h → 0 (the variant "midpoint" of the
published code); "taylor" has the exact weight. Of third order every weight is exact here. Published third-order code takes the
second divided difference for the second derivative, which is twice that: order 2. It is kept under its own name.

The stochastic ones integrate the SDE of Lu et al. (2022b), section 5, n = σ_t sqrt(1 − e^(−2ηh)), with z = −(1 + η) h.
"""

from __future__ import annotations

from typing import Unpack

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import Policy, exponential, multistep
from solvers.plan import Plan
from solvers.singlestep import check_variant

VARIANTS = ("midpoint", "taylor")


def dpm2m(grid: Array, schedule: Schedule, *, variant: str = "midpoint", **policy: Unpack[Policy]) -> Plan:
    """Multistep DPM-Solver-2 in noise form. One evaluation a step."""
    rule = exponential("noise", check_variant("dpm2m", variant, VARIANTS))
    return multistep("dpm2m", grid, schedule, "noise", 2, rule, **policy)


def dpm3m(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """Multistep DPM-Solver-3 in noise form, with exact weights. One evaluation a step."""
    return multistep("dpm3m", grid, schedule, "noise", 3, exponential("noise"), **policy)


def dpm3m_published(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """Multistep DPM-Solver-3 as the authors' code and diffusers have it: half the second moment, hence of order 2."""
    return multistep("dpm3m-published", grid, schedule, "noise", 3, exponential("noise", "midpoint", 0.5), **policy)


def dpmpp2m(grid: Array, schedule: Schedule, *, variant: str = "midpoint", **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver++(2M) (Lu et al., 2022b, Algorithm 2). One evaluation a step."""
    rule = exponential("data", check_variant("dpmpp2m", variant, VARIANTS))
    return multistep("dpmpp2m", grid, schedule, "data", 2, rule, **policy)


def dpmpp3m(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver++(3M) with exact weights. One evaluation a step."""
    return multistep("dpmpp3m", grid, schedule, "data", 3, exponential("data"), **policy)


def dpmpp3m_published(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver++(3M) as the authors' code, diffusers and others have it: half the second moment, hence of order 2."""
    return multistep("dpmpp3m-published", grid, schedule, "data", 3, exponential("data", "midpoint", 0.5), **policy)


def sde_dpmpp1(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """SDE-DPM-Solver++(1). η = 1 is the SDE, η = 0 DDIM; at η = 1 it is DDPM."""
    return multistep("sde-dpmpp1", grid, schedule, "data", 1, exponential("data"), eta=_strength("sde-dpmpp1", eta), **policy)


def sde_dpmpp2m(
    grid: Array, schedule: Schedule, *, eta: float = 1.0, variant: str = "midpoint", **policy: Unpack[Policy]
) -> Plan:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022b, section 5); η = 0 is dpmpp2m."""
    rule = exponential("data", check_variant("sde-dpmpp2m", variant, VARIANTS))
    return multistep("sde-dpmpp2m", grid, schedule, "data", 2, rule, eta=_strength("sde-dpmpp2m", eta), **policy)


def sde_dpmpp3m(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """The third-order multistep SDE solver with exact weights; η = 0 is dpmpp3m."""
    return multistep("sde-dpmpp3m", grid, schedule, "data", 3, exponential("data"), eta=_strength("sde-dpmpp3m", eta), **policy)


def sde_dpmpp3m_published(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """sde-dpmpp3m as k-diffusion has it: half the second moment. (diffusers' has a wrong sign besides.)"""
    name = "sde-dpmpp3m-published"
    return multistep(name, grid, schedule, "data", 3, exponential("data", second=0.5), eta=_strength(name, eta), **policy)


def _strength(solver: str, eta: float) -> float:
    if not 0 <= eta < float("inf"):
        raise InputError(f"η of {solver} must be 0 or more, not {eta:g}")
    return eta
