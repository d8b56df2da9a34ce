"""Planned solvers: measured order, equal tables, exact marginals, parity with the papers, ends, evaluations."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import InputError, checkpoint, grid, pretrained, schedules
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.ode import accurate
from diffode.schedule import SCHEDULES
from solvers import SOLVERS, Plan, Solver, Stage, run, sample
from solvers.phi import phi
from solvers.transfer import ramp, transfer
from tests import reference

PLANNED = [name for name, entry in SOLVERS.items() if isinstance(entry, Solver)]
ODE = [name for name in PLANNED if SOLVERS[name].order]
LAM_S, LAM_T = -2.0, 2.0


@pytest.fixture(scope="module")
def trajectories():
    """path -> (model, states of the exact mixture at LAM_S, the same trajectories at LAM_T), all float64."""
    tensors, card = checkpoint.read(pretrained.WEIGHTS / "mixture.safetensors")
    made = {}
    for path, schedule in (("vp", schedules.ddpm_linear()), ("flow", schedules.flow())):
        mixture = Mixture(tensors, card["image"], path, torch.float64)
        model = EpsModel(mixture, schedule, "tangent", clock="lam")
        x0 = mixture.sample(8, seed=1)
        z = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = float(schedule.alpha(LAM_S)) * x0 + float(schedule.sigma(LAM_S)) * z
        made[path] = model, x, accurate(model, x, LAM_S, LAM_T)
    return made


def between(name, steps):
    """LAM_S to LAM_T in equal steps of λ, or of σ̄^(1/7)."""
    if name == "logsnr":
        return np.linspace(LAM_S, LAM_T, steps + 1)
    values = -7 * np.log(np.linspace(np.exp(-LAM_S / 7), np.exp(-LAM_T / 7), steps + 1))
    return np.array([LAM_S, *values[1:-1], LAM_T])


def measured_order(solver, trajectory, spacing, **options):
    model, x, truth = trajectory
    errors = []
    for steps in (50, 100):
        plan = SOLVERS[solver].plan(between(spacing, steps), model.schedule, **options)
        errors.append(float((run(plan, model, x).x - truth).square().mean().sqrt()))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
@pytest.mark.parametrize("solver", ODE)
def test_order_is_the_declared_one(solver, spacing, path, trajectories):
    assert measured_order(solver, trajectories[path], spacing) == pytest.approx(SOLVERS[solver].order, abs=0.15)


@pytest.mark.parametrize("r1", [0.3, 0.75, 1.0])
def test_dpm2_is_of_order_2_for_any_r1(r1, trajectories):
    assert measured_order("dpm2", trajectories["vp"], "logsnr", r1=r1) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(("r1", "r2"), [(0.25, 0.5), (0.5, 0.75), (0.3, 1.0), (0.5, 2 / 3)])
def test_dpm3_is_of_order_3_for_any_r1_and_r2(r1, r2, trajectories):
    assert measured_order("dpm3", trajectories["vp"], "logsnr", r1=r1, r2=r2) == pytest.approx(3, abs=0.15)


def test_algorithm_5_is_of_order_2_away_from_its_r2(trajectories):
    """Why dpm3 does not expand the paper's formula for other r2: the published generalisation loses an order."""
    model, x, truth = trajectories["vp"]
    errors = []
    for steps in (50, 100):
        state = x
        for lam_s, lam_t in pairwise(between("logsnr", steps)):
            state = reference.dpm_solver_3(lam_s, lam_t, state, model, r1=0.25, r2=0.5)
        errors.append(float((state - truth).square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", grid.GRIDS)
def test_ddim_dpm1_and_euler_are_one_table(schedule, spacing):
    schedule = SCHEDULES[schedule]()
    lams = grid.make(spacing, schedule, 20, denoise=True)
    rows = [matrix(SOLVERS[name].plan(lams, schedule)) for name in ("ddim", "dpm1", "euler")]
    for row in rows[1:]:
        np.testing.assert_allclose(row / scale(rows[0]), rows[0] / scale(rows[0]), rtol=0, atol=1e-12)


def matrix(plan):
    """Stages × (x, noise, m0, m1, ...)."""
    table = np.zeros((len(plan.stages), 2 + plan.nfe))
    for row, stage in zip(table, plan.stages, strict=True):
        row[0], row[1] = stage.x, stage.noise
        row[[2 + j for j in stage.c]] = list(stage.c.values())
    return table


def scale(table):
    """The largest entry of each row, so that 1e-12 means the same where x is 100 and where it is 1."""
    return np.abs(table).max(1, keepdims=True)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12(eta):
    schedule, rng = schedules.ddpm_linear(), np.random.default_rng(0)
    for t_s, t_t in ((999, 500), (500, 499), (20, 3)):
        lams = schedule.lam(np.array([t_s, t_t], float))
        abar_s, abar_t = schedule.alpha(lams) ** 2
        x, eps, z = rng.normal(size=3)
        last = SOLVERS["ddim"].plan(lams, schedule, eta=eta).stages[-1]
        expected = reference.ddim_eq_12(abar_s, abar_t, eta, x, eps, z)
        assert last.x * x + last.c[0] * eps + last.noise * z == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_algorithm_2(variance):
    schedule, rng = schedules.ddpm_linear(), np.random.default_rng(0)
    for t_s, t_t in ((999, 998), (500, 400), (20, 3)):
        lams = schedule.lam(np.array([t_s, t_t], float))
        abar_s, abar_t = schedule.alpha(lams) ** 2
        x, eps, z = rng.normal(size=3)
        last = SOLVERS["ddpm"].plan(lams, schedule, variance=variance).stages[-1]
        expected = reference.ddpm_algorithm_2(abar_s, abar_t, variance, x, eps, z)
        assert last.x * x + last.c[0] * eps + last.noise * z == pytest.approx(expected, rel=1e-9)  # 1 − ᾱ_s/ᾱ_t cancels


def test_dpm_solvers_are_their_algorithms(trajectories):
    model, x, _ = trajectories["vp"]
    lams = np.array([-2.0, -0.9, 0.1, 1.7])
    for name, step in (
        ("dpm2", lambda s, t, x: reference.dpm_solver_2(s, t, 0.5, x, model)),
        ("dpm3", lambda s, t, x: reference.dpm_solver_3(s, t, x, model)),
    ):
        state = x
        for lam_s, lam_t in pairwise(lams):
            state = step(lam_s, lam_t, state)
        torch.testing.assert_close(run(SOLVERS[name].plan(lams, model.schedule), model, x).x, state, rtol=0, atol=1e-12)
    state = reference.dpm_solver_pp_2m(lams, x, lambda x, lam: model(x, lam, "data"))
    torch.testing.assert_close(run(SOLVERS["dpmpp2m"].plan(lams, model.schedule), model, x).x, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "edm", "flow"])
def test_lemma_1_marginals_do_not_depend_on_eta(schedule, eta):
    """Song et al. (2021), Lemma 1, as exact arithmetic: for x0 fixed, ε known, the mean of x_t is α x0 and its variance σ²."""
    schedule = SCHEDULES[schedule]()
    plan = SOLVERS["ddim"].plan(grid.make("logsnr", schedule, 7), schedule, eta=eta)
    x0, first = 0.7, plan.stages[0].lam
    # The state as an affine map of (x0, z_0, z_1, ...), z_k being draw k; ε of a state is (x − α x0)/σ of the same map.
    coefficients = np.zeros((len(plan.stages), 1 + len(plan.stages)))
    coefficients[0, :2] = schedule.alpha(first), schedule.sigma(first)
    eps = np.zeros_like(coefficients)
    for i, stage in enumerate(plan.stages):
        if i:
            coefficients[i] = stage.x * coefficients[i - 1] + sum(c * eps[j] for j, c in stage.c.items())
            coefficients[i, 1 + (stage.draw or 0)] += stage.noise
        eps[i] = coefficients[i]
        eps[i, 0] -= schedule.alpha(stage.lam)
        eps[i] /= schedule.sigma(stage.lam)
        assert coefficients[i, 0] * x0 == pytest.approx(schedule.alpha(stage.lam) * x0, abs=1e-11)
        assert np.sum(coefficients[i, 1:] ** 2) == pytest.approx(schedule.sigma(stage.lam) ** 2, rel=1e-10)


def test_ddpm_with_beta_has_larger_marginals_and_says_so():
    schedule = schedules.ddpm_linear()
    lams = grid.make("time", schedule, 5)
    large, small = (SOLVERS["ddpm"].plan(lams, schedule, variance=variance) for variance in ("large", "small"))
    assert not large.exact_marginals
    assert small.exact_marginals
    assert all(a.noise > b.noise for a, b in zip(large.stages[1:], small.stages[1:], strict=True))


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


def test_ramp_begins_anew_after_a_step_of_no_finite_length():
    assert ramp(np.array([0.0, 1.0, 2.0, 3.0, np.inf]), 3) == [1, 2, 3, 1]
    assert ramp(np.array([-np.inf, 0.0, 1.0, 2.0]), 2) == [1, 1, 2]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("solver", PLANNED)
def test_ends(solver, denoise, steps, mixture64):
    """One, two and three steps, also to σ = 0: finite, evaluations as declared, and never outside the grid."""
    asked = []
    model = mixture64.watched(lambda evaluation, lam, m: asked.append(lam))
    result = sample(model, solver=solver, steps=steps, denoise=denoise, shape=(4, 1, 28, 28), dtype=torch.float64)
    assert torch.isfinite(result.x).all()
    assert result.nfe == result.plan.nfe == len(asked)
    assert result.nfe == SOLVERS[solver].evaluations * (steps - denoise) + denoise
    assert min(asked) == result.plan.grid[0]
    assert max(asked) <= (result.plan.grid[-1] if not denoise or steps == 1 else result.plan.grid[-2])


@pytest.mark.parametrize("solver", ODE)
def test_the_step_to_infinity_ends_with_x0_hat(solver, mixture64):
    """The last row puts σ = 0 and α = 1: the result is the network's own x̂0 at the last finite state."""
    seen = []
    result = sample(mixture64, solver=solver, steps=4, denoise=True, shape=(2, 1, 28, 28), dtype=torch.float64, trajectory=True)
    lam, state = result.trajectory[-2]
    seen.append(mixture64(state, lam, "data"))
    torch.testing.assert_close(result.x, seen[0], rtol=0, atol=1e-10)


def test_zero_terminal_snr_needs_another_form_than_noise():
    schedule = schedules.flow(t_noisy=1.0)
    with np.errstate(divide="ignore"):
        lams = grid.check([-np.inf, -1.0, 1.0, 3.0])
    assert np.isfinite(matrix(SOLVERS["dpmpp2m"].plan(lams, schedule))).all()
    with pytest.raises(InputError, match="α = 0"):
        SOLVERS["ddim"].plan(lams, schedule)


WRONG = [
    ("ddim", {"eta": 1.5}),
    ("ddim", {"eta": -0.1}),
    ("ddpm", {"variance": "both"}),
    ("dpm1", {"eta": 0.5}),
    ("dpm2", {"r1": 0}),
    ("dpm3", {"r1": 0.5, "r2": 0.5001}),
    ("dpm3", {"r1": 2 / 3, "r2": 0.9}),
]


@pytest.mark.parametrize(("solver", "options"), WRONG)
def test_wrong_options_are_refused(solver, options):
    schedule = schedules.ddpm_linear()
    with pytest.raises(InputError):
        SOLVERS[solver].plan(grid.make("logsnr", schedule, 3), schedule, **options)


@pytest.mark.parametrize(
    ("solver", "nfe", "nearest"), [("dpm2", 7, "6 or 8"), ("dpm3", 10, "9 or 12"), ("ddim", 0, "1"), ("dpm3", 1, "3")]
)
def test_evaluations_that_cannot_be_spent(solver, nfe, nearest, mixture32):
    with pytest.raises(InputError, match=f"nearest it can is {nearest}$"):
        sample(mixture32, solver=solver, nfe=nfe, shape=(1, 1, 28, 28))


def plan_of(*stages, prediction="noise"):
    return Plan("test", schedules.ddpm_linear().path, prediction, stages)


@pytest.mark.parametrize(("solver", "options"), [("dpmpp2m", {}), ("dpm3", {}), ("ddim", {"eta": 0.7})])
def test_a_plan_checks_its_own_mathematics(solver, options):
    """Every number of every row matters: its sign, its size, and that it is there."""
    good = SOLVERS[solver].plan(np.linspace(-2, 2, 4), schedules.ddpm_linear(), **options)
    for row, stage in enumerate(good.stages[1:], 1):
        wrong = [{"x": factor * stage.x} for factor in (-1, 1.01)] + [{"noise": 1.01 * stage.noise}] * bool(stage.noise)
        wrong += [{"c": {**stage.c, j: factor * c}} for j, c in stage.c.items() for factor in (-1, 0, 1.01)]
        for change in wrong:
            stages = (*good.stages[:row], dataclasses.replace(stage, **change), *good.stages[row + 1 :])
            with pytest.raises(InputError, match="transfer law"):
                Plan("broken", good.path, good.prediction, stages)


@pytest.mark.parametrize("solver", [name for name in ODE if SOLVERS[name].order > 1])
def test_moments_of_the_last_row(solver):
    """Σ c_j (λ_j − λ_s)^k is the exact exponential moment to O(h^(p+1)) for 0 < k < p: what row sums alone do not see.

    Halving h must divide the error by 2^(p+1); the published slopes with a wrong sign or a lost factor fail by an order.
    """
    schedule, order = schedules.ddpm_linear(), SOLVERS[solver].order
    sign = {"noise": 1.0, "data": -1.0}
    for k in range(1, order):
        errors = []
        for h in (0.02, 0.01):
            plan = SOLVERS[solver].plan(np.arange(5) * h, schedule)
            *_, anchor, last = (stage for stage in plan.stages if stage.commit)
            where = [stage.lam for stage in plan.stages if stage.evaluate]
            scale = sum(last.c.values()) / (h * phi(1, sign[plan.prediction] * h))
            exact = scale * math.factorial(k) * h ** (k + 1) * phi(k + 1, sign[plan.prediction] * h)
            errors.append(abs(sum(c * (where[j] - anchor.lam) ** k for j, c in last.c.items()) - exact) + 1e-18)
        assert errors[1] < 1e-12 or np.log2(errors[0] / errors[1]) > order + 0.85


def test_a_plan_is_causal_and_has_two_ends():
    start, last = Stage(-1.0, 1.0), Stage(0.0, 1.0, {1: 1.0}, evaluate=False)
    for stages, what in (
        ((start, last), "uses evaluations"),
        ((last, start), "begins with its start"),
        ((start,), "begins with its start"),
        ((start, Stage(-1.0, 1.0, commit=False, evaluate=False)), "ends with a stage"),
    ):
        with pytest.raises(InputError, match=what):
            plan_of(*stages)


def test_memory_is_the_band():
    schedule = schedules.ddpm_linear()
    lams = grid.make("logsnr", schedule, 6)
    assert {name: SOLVERS[name].plan(lams, schedule).memory for name in ("ddim", "dpm2", "dpm3", "dpmpp2m")} == {
        "ddim": 1,
        "dpm2": 1,
        "dpm3": 2,
        "dpmpp2m": 2,
    }
