"""φ-functions, the weights made of them, and the transfer law."""

import math

import numpy as np
import pytest

from diffode import schedules
from diffode.schedules import SCHEDULES
from solvers.phi import interpolatory, moments, phi
from solvers.registry import find
from solvers.transfer import transfer


@pytest.mark.parametrize("z", [-30.0, -1.0, -0.999, -1e-3, 0.0, 1e-12, 1e-3, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_phi(k, z):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        exact = mpmath.hyp1f1(1, k + 1, mpmath.mpf(z)) / mpmath.factorial(k)
    assert phi(k, z) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("h", [1e-9, 1e-3, 1.0, 12.0, np.inf])
@pytest.mark.parametrize("prediction", ["noise", "data", "flow"])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "edm", "flow"])
def test_transfer_keeps_a_point_mass(schedule, prediction, h):
    path = SCHEDULES[schedule]().path
    p0, p1 = {"noise": (0, 1), "data": (1, 0), "flow": (-1, 1)}[prediction]
    x0, eps, lam = 0.3, -1.1, -2.0
    for noise in (0.0, 0.5 * float(path.sigma(np.float64(lam + h)))):
        x, c = transfer(path, prediction, lam, lam + h, noise)
        state = x * (path.alpha(lam) * x0 + path.sigma(lam) * eps) + c * (p0 * x0 + p1 * eps)
        kept = np.sqrt(path.sigma(np.float64(lam + h)) ** 2 - noise**2)
        assert state == pytest.approx(path.alpha(np.float64(lam + h)) * x0 + kept * eps, rel=1e-13, abs=1e-13)


def test_transfer_of_a_short_step_does_not_cancel():
    """C = −σ_t (e^h − 1) to 1e-12 of itself, where σ_t − σ_s α_t/α_s would keep four digits."""
    h, path = 1e-12, schedules.vp_linear().path
    lam_t = 1.0 + h
    assert transfer(path, "noise", 1.0, lam_t)[1] == pytest.approx(
        -path.sigma(np.float64(lam_t)) * np.expm1(lam_t - 1.0), rel=1e-12
    )


def test_interpolatory_weights_integrate_polynomials():
    """Σ w_j p(c_j) is the exponential mean of p for every polynomial of degree below the number of nodes."""
    c, z = np.array([0.0, -0.7, -2.0, 1.0]), 1.3
    tau = (np.polynomial.legendre.leggauss(40)[0] + 1) / 2
    kernel = np.polynomial.legendre.leggauss(40)[1] * np.exp((1 - tau) * z)
    p = np.polynomial.Polynomial([0.3, -1.0, 0.5, 2.0])
    assert interpolatory(c, moments(4, z)) @ p(c) == pytest.approx((kernel * p(tau)).sum() / kernel.sum(), rel=1e-12)


# Runge–Kutta has no such moments in λ, since its nodes are in σ̄; the constant weights of pndm are wrong on purpose.
EXPONENTIAL = ["dpm2", "dpm3", "dpm2m", "dpm3m", "dpmpp2s", "dpmpp3s", "dpmpp2m", "dpmpp3m"]
EXPONENTIAL += ["deis-t", "deis-rho", "deis-lambda", "lms"]


@pytest.mark.parametrize("solver", EXPONENTIAL)
def test_moments_of_the_last_row(solver):
    """Σ c_j (λ_j − λ_s)^k is the exact exponential moment to O(h^(p+1)) for 0 < k < p: what row sums alone do not see.

    Halving h must divide the error by 2^(p+1); the published slopes with a wrong sign or a lost factor fail by an order.
    """
    schedule, order = schedules.vp_linear(), find(solver).order
    sign = {"noise": 1.0, "data": -1.0}
    for k in range(1, order):
        errors = []
        for h in (0.02, 0.01):
            plan = find(solver).plan(np.arange(6) * h, schedule)
            *_, anchor, last = (stage for stage in plan.stages if stage.commit)
            where = [stage.lam for stage in plan.stages if stage.evaluate]
            scale = sum(last.c.values()) / (h * phi(1, sign[plan.prediction] * h))
            exact = scale * math.factorial(k) * h ** (k + 1) * phi(k + 1, sign[plan.prediction] * h)
            errors.append(abs(sum(c * (where[j] - anchor.lam) ** k for j, c in last.c.items()) - exact) + 1e-18)
        assert errors[1] < 1e-12 or np.log2(errors[0] / errors[1]) > order + 0.85
