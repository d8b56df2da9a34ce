"""DPM-Solver and DPM-Solver++, multistep: the last evaluations extrapolated over the step, in noise form or in data form.

With r = h_prev/h, dpmpp2m extrapolates x̂0 by (1 + 1/(2r), −1/(2r)), which is exact for h → 0 (the variant "midpoint" of the
published code); "taylor" has the exact weight. The third-order solvers have exact weights: the quadratic through the last three
evaluations is integrated exactly, with φ_1(z) = (e^z − 1)/z, φ_2(z) = (φ_1(z) − 1)/z and φ_3(z) = (φ_2(z) − 1/2)/z. Published
third-order code takes the second divided difference for the second derivative, which is twice that: order 2. It has names of its
own, `*-published`.

The sde-* solvers integrate the SDE of Lu et al. (2022b), section 5: noise n = σ_t sqrt(1 − e^(−2ηh)), and weights as in data form
with (1 + η) h for h.
"""

from __future__ import annotations

from typing import Unpack

from diffode.checks import choice
from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import STRONGEST, Policy, exponential, multistep
from solvers.plan import Plan

VARIANTS = ("midpoint", "taylor")


def dpm2m(grid: Array, schedule: Schedule, *, variant: str = "midpoint", **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver-2, multistep: the last two evaluations of ε extrapolated over the step.

        x_t = (α_t/α_s) x_s − σ_t (e^h − 1) (ε_s + b (ε_s − ε_prev)/r),      h = λ_t − λ_s,    r = h_prev/h

    One evaluation per step; order 2, with unic 3.

    Arguments:
        variant: "midpoint" (default) is b = 1/2; "taylor" is b = φ_2(h)/φ_1(h), exact for an ε that is linear in λ.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        dpmpp2m (DPM-Solver++, Lu et al., 2022b, Algorithm 2) in noise form.
    """
    rule = exponential("noise", choice("the variant of dpm2m", variant, VARIANTS))
    return multistep("dpm2m", grid, schedule, "noise", 2, rule, **policy)


def dpm3m(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver-3, multistep, with exact weights: the quadratic in λ through the last three ε, integrated exactly.

        x_t = (α_t/α_s) x_s − σ_t h (φ_1 ε_s + φ_2 D1 + φ_3 D2),        φ_k = φ_k(h),    h = λ_t − λ_s
        D1 = d + r (d − d')/(r + r'),    D2 = 2 (d − d')/(r + r'),    d = (ε_s − ε_1)/r,    d' = (ε_1 − ε_2)/r'

    ε_s, ε_1, ε_2 are the last three evaluations of ε, newest first; r h and r' h are the distances in λ between them.
    One evaluation per step; order 3 with start="single" (unic: 4), and 2 with the default ramp (unic: 3).

    Arguments:
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        dpmpp3m in noise form; φ_k as in solvers/phi.py. It is deis-lambda of order 3.
    """
    return multistep("dpm3m", grid, schedule, "noise", 3, exponential("noise"), **policy)


def dpm3m_published(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """dpm3m as published, with half the second derivative, which leaves order 2. For comparisons: prefer dpm3m.

        x_t = (α_t/α_s) x_s − σ_t h (φ_1 ε_s + φ_2 D1 + φ_3 D2),        φ_k = φ_k(h),    h = λ_t − λ_s
        D1 = d + r (d − d')/(r + r'),    D2 = (d − d')/(r + r'),    d = (ε_s − ε_1)/r,    d' = (ε_1 − ε_2)/r'

    ε_s, ε_1, ε_2 are the last three evaluations of ε, newest first; r h and r' h are the distances in λ between them.
    One evaluation per step; order 2, with unic 3.

    Arguments:
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        The code of DPM-Solver (Lu et al., 2022a), and diffusers; order 2 is shown in tests/test_known_errors.py.
    """
    return multistep("dpm3m-published", grid, schedule, "noise", 3, exponential("noise", "midpoint", 0.5), **policy)


def dpmpp2m(grid: Array, schedule: Schedule, *, variant: str = "midpoint", **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver++(2M): the last two evaluations of x̂0 extrapolated over the step.

        x_t = (σ_t/σ_s) x_s − α_t (e^(−h) − 1) (m_s + b (m_s − m_prev)/r),      h = λ_t − λ_s,    r = h_prev/h

    with m = x̂0; b = 1/2 gives the weights 1 + 1/(2r) and −1/(2r). One evaluation per step; order 2, with unic 3 (it is unipc2).

    Arguments:
        variant: "midpoint" (default) is b = 1/2; "taylor" is b = φ_2(−h)/φ_1(−h), exact for an x̂0 that is linear in λ.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DPM-Solver++ (Lu et al., 2022b), Algorithm 2, for "midpoint".
    """
    rule = exponential("data", choice("the variant of dpmpp2m", variant, VARIANTS))
    return multistep("dpmpp2m", grid, schedule, "data", 2, rule, **policy)


def dpmpp3m(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """DPM-Solver++(3M) with exact weights: the quadratic in λ through the last three x̂0, integrated exactly.

        x_t = (σ_t/σ_s) x_s + α_t h (φ_1 m_s + φ_2 D1 + φ_3 D2),        φ_k = φ_k(−h),    h = λ_t − λ_s
        D1 = d + r (d − d')/(r + r'),    D2 = 2 (d − d')/(r + r'),    d = (m_s − m_1)/r,    d' = (m_1 − m_2)/r'

    m_s, m_1, m_2 are the last three evaluations of x̂0, newest first; r h and r' h are the distances in λ between them.
    One evaluation per step; order 3 with start="single" (unic: 4), and 2 with the default ramp (unic: 3).

    Arguments:
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DPM-Solver++ (Lu et al., 2022b), whose code has half of D2 (dpmpp3m-published); φ_k as in solvers/phi.py.
    """
    return multistep("dpmpp3m", grid, schedule, "data", 3, exponential("data"), **policy)


def dpmpp3m_published(grid: Array, schedule: Schedule, **policy: Unpack[Policy]) -> Plan:
    """dpmpp3m as published, with half the second derivative, which leaves order 2. For comparisons: prefer dpmpp3m.

        x_t = (σ_t/σ_s) x_s + α_t h (φ_1 m_s + φ_2 D1 + φ_3 D2),        φ_k = φ_k(−h),    h = λ_t − λ_s
        D1 = d + r (d − d')/(r + r'),    D2 = (d − d')/(r + r'),    d = (m_s − m_1)/r,    d' = (m_1 − m_2)/r'

    m_s, m_1, m_2 are the last three evaluations of x̂0, newest first; r h and r' h are the distances in λ between them.
    One evaluation per step; order 2, with unic 3.

    Arguments:
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        The code of DPM-Solver++ (Lu et al., 2022b), diffusers and others; see tests/test_known_errors.py.
    """
    return multistep("dpmpp3m-published", grid, schedule, "data", 3, exponential("data", "midpoint", 0.5), **policy)


def sde_dpmpp1(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """SDE-DPM-Solver++(1): first-order steps of the reverse-time SDE, in data form.

        x_t = (σ_t/σ_s) e^(−ηh) x_s + α_t (1 − e^(−(1+η)h)) x̂0 + n z,      n = σ_t sqrt(1 − e^(−2ηh)),    h = λ_t − λ_s

    One evaluation per step; weak order 1, with unic 2. With η = 1 it is ddpm. This η and ddim's agree at 0 and 1 only.

    Arguments:
        eta: the noise η ≥ 0. Default 1, the reverse-time SDE; 0 is ddim.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps, with eta=0 only.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DPM-Solver++ (Lu et al., 2022b), section 5.
    """
    return multistep("sde-dpmpp1", grid, schedule, "data", 1, exponential("data"), eta=_strength("sde-dpmpp1", eta), **policy)


def sde_dpmpp2m(
    grid: Array, schedule: Schedule, *, eta: float = 1.0, variant: str = "midpoint", **policy: Unpack[Policy]
) -> Plan:
    """SDE-DPM-Solver++(2M): dpmpp2m for the reverse-time SDE.

        x_t = (σ_t/σ_s) e^(−ηh) x_s + α_t (1 − e^(−H)) (m_s + b (m_s − m_prev)/r) + n z,      H = (1 + η) h,    h = λ_t − λ_s

    with m = x̂0, r = h_prev/h and n = σ_t sqrt(1 − e^(−2ηh)). One evaluation per step; weak order 2, with or without unic.

    Arguments:
        eta: the noise η ≥ 0. Default 1, the reverse-time SDE; 0 is dpmpp2m.
        variant: "midpoint" (default) is b = 1/2; "taylor" is b = φ_2(−H)/φ_1(−H), exact for an x̂0 that is linear in λ.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps, with eta=0 only.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        DPM-Solver++ (Lu et al., 2022b), section 5.
    """
    rule = exponential("data", choice("the variant of sde-dpmpp2m", variant, VARIANTS))
    return multistep("sde-dpmpp2m", grid, schedule, "data", 2, rule, eta=_strength("sde-dpmpp2m", eta), **policy)


def sde_dpmpp3m(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """SDE-DPM-Solver++(3M) with exact weights: dpmpp3m for the reverse-time SDE.

        x_t = (σ_t/σ_s) e^(−ηh) x_s + α_t H (φ_1 m_s + φ_2 D1 + φ_3 D2) + n z,    φ_k = φ_k(−H),    H = (1 + η) h
        D1 = d + r (d − d')/(r + r'),    D2 = 2 (d − d')/(r + r'),    d = (m_s − m_1)/r,    d' = (m_1 − m_2)/r'

    m_s, m_1, m_2 are the last three evaluations of x̂0, newest first; r h and r' h are the distances in λ between them.
    h = λ_t − λ_s, n = σ_t sqrt(1 − e^(−2ηh)). One evaluation per step; weak order 2 (with η = 0 the order of dpmpp3m).

    Arguments:
        eta: the noise η ≥ 0. Default 1, the reverse-time SDE; 0 is dpmpp3m.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps, with eta=0 only.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        The SDE of DPM-Solver++ (Lu et al., 2022b), section 5; exact weights as in solvers/phi.py.
    """
    return multistep("sde-dpmpp3m", grid, schedule, "data", 3, exponential("data"), eta=_strength("sde-dpmpp3m", eta), **policy)


def sde_dpmpp3m_published(grid: Array, schedule: Schedule, *, eta: float = 1.0, **policy: Unpack[Policy]) -> Plan:
    """sde-dpmpp3m as k-diffusion has it, with half the second derivative. For comparisons: prefer sde-dpmpp3m.

        x_t = (σ_t/σ_s) e^(−ηh) x_s + α_t H (φ_1 m_s + φ_2 D1 + φ_3 D2) + n z,    φ_k = φ_k(−H),    H = (1 + η) h
        D1 = d + r (d − d')/(r + r'),    D2 = (d − d')/(r + r'),    d = (m_s − m_1)/r,    d' = (m_1 − m_2)/r'

    m_s, m_1, m_2 are the last three evaluations of x̂0, newest first; r h and r' h are the distances in λ between them.
    h = λ_t − λ_s, n = σ_t sqrt(1 − e^(−2ηh)). One evaluation per step; weak order 2.

    Arguments:
        eta: the noise η ≥ 0. Default 1, the reverse-time SDE; 0 is deterministic.
        start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps, with eta=0 only.
        lower_final: whether the last steps are of order ..., 2, 1. Default False.
        unic: whether UniC corrects each step but the last, without a further evaluation. Default False.

    Reference:
        k-diffusion, sample_dpmpp_3m_sde. The version in diffusers has a wrong sign besides (tests/test_known_errors.py).
    """
    name = "sde-dpmpp3m-published"
    return multistep(
        name, grid, schedule, "data", 3, exponential("data", second_moment_factor=0.5), eta=_strength(name, eta), **policy
    )


def _strength(solver: str, eta: float) -> float:
    if not 0 <= eta <= STRONGEST:
        raise InputError(f"η of {solver} must be from 0 to {STRONGEST:g}, not {eta:g}")
    return eta
