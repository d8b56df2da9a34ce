"""Tables: those that are equal, those that are the papers' formulas, and what they do to a distribution, as exact arithmetic."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import grid, schedules
from diffode.noise import SeededNoise
from diffode.schedules import SCHEDULES
from solvers import SOLVERS, run
from solvers.gaussian import exact, variance
from solvers.hooks import Hooks
from solvers.registry import find
from tests import reference

PLANNED = [name for name, entry in SOLVERS.items() if entry.has_plan]

# Every pair is one table, row by row: (a name and its options, another's).
SAME = [
    (("ddim", {}), ("dpm1", {})),
    (("ddim", {}), ("euler", {})),
    (("ddim", {}), ("rk:euler", {})),
    (("ddim", {}), ("deis-t", {"order": 1})),
    (("ddim", {}), ("deis-rho", {"order": 1})),
    (("ddim", {}), ("deis-lambda", {"order": 1})),
    (("ddim", {}), ("ipndm", {"order": 1})),
    (("ddim", {"eta": 1.0}), ("ddpm", {})),
    (("ddim", {"eta": 1.0}), ("euler-ancestral", {})),
    (("ddim", {"eta": 0.4}), ("euler-ancestral", {"eta": 0.4})),
    (("dpm2", {}), ("kdpm2", {})),
    (("dpm2m", {"variant": "taylor"}), ("deis-lambda", {"order": 2})),
    (("dpm3m", {}), ("deis-lambda", {"order": 3})),
    (("dpm2m+unic", {}), ("unipc2", {"prediction": "noise"})),
    (("dpmpp2m+unic", {}), ("unipc2", {})),
    (("deis-rho", {"order": 4}), ("lms", {})),
    (("deis-rho-rk", {"order": 2}), ("heun", {})),
    (("deis-rho-rk", {"order": 3}), ("rk:kutta3", {})),
    (("deis-rho-rk", {"order": 4}), ("rk:rk4", {})),
    (("heun", {}), ("heun-churn", {"s_churn": 0.0})),
    (("heun", {}), ("rk:heun2", {})),
    (("sde-dpmpp1", {"eta": 0.0}), ("sa-solver", {"order": 1, "corrector": 0, "tau": 0.0})),
    (("sde-dpmpp2m", {"eta": 0.0}), ("dpmpp2m", {})),
    (("sde-dpmpp3m", {"eta": 0.0}), ("dpmpp3m", {})),
    (("dpmpp3m+unic", {}), ("sa-solver", {"order": 3, "corrector": 4, "tau": 0.0})),
    (("sde-dpmpp3m", {}), ("sa-solver", {"order": 3, "corrector": 0, "s_tmin": 0.0, "s_tmax": 1e9})),
]


@cache
def everywhere():
    """(a name, schedule, grid of 12 steps that ends at σ = 0), of every schedule and spacing."""
    made = {name: make() for name, make in SCHEDULES.items()}
    return [
        (f"{name}, {spacing}", s, grid.make(spacing, s, 12, denoise=True)) for name, s in made.items() for spacing in grid.GRIDS
    ]


@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda pair: pair[0] + "".join(f"-{v}" for v in pair[1].values()))
def test_solvers_that_are_one_table(one, other):
    for where, schedule, lams in everywhere():
        first, second = (find(name).plan(lams, schedule, **options).matrix() for name, options in (one, other))
        np.testing.assert_allclose(second / scale(first), first / scale(first), rtol=0, atol=1e-12, err_msg=where)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm1"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_eulers_method_in_sigma_bar(schedule, name):
    """Each row of its table, against the formula for unit vectors of (x, ε)."""
    schedule = SCHEDULES[schedule]()
    for spacing in grid.GRIDS:
        lams = grid.make(spacing, schedule, 12, denoise=True)
        is_eulers_method(find(name).plan(lams, schedule).stages[1:], schedule, lams)


def is_eulers_method(stages, schedule, lams):
    for i, (stage, (s, t)) in enumerate(zip(stages, pairwise(lams), strict=True)):
        ends = schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)
        row, formula = np.array([stage.x, stage.c[i]]), np.array([reference.euler(*ends, *one) for one in np.eye(2)])
        np.testing.assert_allclose(row / abs(formula).max(), formula / abs(formula).max(), rtol=0, atol=1e-12)
        assert set(stage.c) == {i}
        assert not stage.noise


def scale(table):
    """The largest entry of each row, so that 1e-12 means the same where x is 100 and where it is 1."""
    return np.abs(table).max(1, keepdims=True)


@pytest.mark.parametrize(
    ("data", "noise", "options"),
    [("sde-dpmpp1", "ddpm", {}), ("sde-dpmpp1", "ddim", {"eta": 0.0})],
)
def test_first_order_steps_are_the_same_in_both_forms(data, noise, options, toy):
    model, lams = toy("vp"), np.linspace(-3, 3, 9)
    x = torch.randn(4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for name in (data, noise):
        plan = find(name).plan(lams, model.schedule, **options)
        results.append(run(plan, model, x, Hooks(noise=SeededNoise(range(4)))).x)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12(eta):
    schedule, rng = schedules.ddpm_linear(), np.random.default_rng(0)
    for t_s, t_t in ((999, 500), (500, 499), (20, 3)):
        lams = schedule.lam(np.array([t_s, t_t], float))
        abar_s, abar_t = schedule.alpha(lams) ** 2
        x, eps, z = rng.normal(size=3)
        last = find("ddim").plan(lams, schedule, eta=eta).stages[-1]
        expected = reference.ddim_eq_12(abar_s, abar_t, eta, x, eps, z)
        assert last.x * x + last.c[0] * eps + last.noise * z == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_algorithm_2(variance):
    schedule, rng = schedules.ddpm_linear(), np.random.default_rng(0)
    for t_s, t_t in ((999, 998), (500, 400), (20, 3)):
        lams = schedule.lam(np.array([t_s, t_t], float))
        abar_s, abar_t = schedule.alpha(lams) ** 2
        x, eps, z = rng.normal(size=3)
        last = find("ddpm").plan(lams, schedule, variance=variance).stages[-1]
        expected = reference.ddpm_algorithm_2(abar_s, abar_t, variance, x, eps, z)
        assert last.x * x + last.c[0] * eps + last.noise * z == pytest.approx(expected, rel=1e-9)  # 1 − ᾱ_s/ᾱ_t cancels


def test_dpm_solvers_are_their_algorithms(mixture64):
    model, lams = mixture64, np.array([-2.0, -0.9, 0.1, 1.7])
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, step in (
        ("dpm2", lambda s, t, x: reference.dpm_solver_2(s, t, 0.5, x, model)),
        ("dpm3", lambda s, t, x: reference.dpm_solver_3(s, t, x, model)),
    ):
        state = x
        for lam_s, lam_t in pairwise(lams):
            state = step(lam_s, lam_t, state)
        torch.testing.assert_close(run(find(name).plan(lams, model.schedule), model, x).x, state, rtol=0, atol=1e-12)


def data_of(model):
    return lambda x, lam: model(x, lam, "data")


@pytest.mark.parametrize(
    ("solver", "options", "formula"),
    [
        ("dpmpp2m", {}, lambda lams, x, model: reference.dpm_solver_pp_2m(lams, x, data_of(model))),
        ("dpmpp3m-published", {}, lambda lams, x, model: reference.dpm_solver_pp_3m(lams, x, data_of(model), 1.0)),
        ("unipc2", {}, lambda lams, x, model: reference.unipc(2, "bh2", lams, x, data_of(model))),
        ("unipc2", {"variant": "bh1"}, lambda lams, x, model: reference.unipc(2, "bh1", lams, x, data_of(model))),
        ("unipc3", {}, lambda lams, x, model: reference.unipc(3, "bh2", lams, x, data_of(model))),
        ("unipc3", {"variant": "bh1"}, lambda lams, x, model: reference.unipc(3, "bh1", lams, x, data_of(model))),
        ("heun", {}, lambda lams, x, model: reference.edm_algorithm_1(lams, x, model)),
        ("pndm", {}, lambda lams, x, model: reference.pndm(lams, x, model, schedules.vp_linear())),
        ("ipndm", {}, lambda lams, x, model: reference.ipndm(lams, x, model)),
    ],
)
def test_multistep_solvers_are_their_papers_formulas(solver, options, formula, toy):
    """Each written out in the paper's own symbols, or the authors' code's, in tests/reference.py."""
    model, lams = toy("vp"), np.array([-3.0, -2.2, -0.9, 0.1, 0.8, 1.7, 2.5])
    x = torch.randn(4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = run(find(solver).plan(lams, model.schedule, **options), model, x).x
    torch.testing.assert_close(result, formula(lams, x, model), rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "flow"])
@pytest.mark.parametrize("solver", PLANNED)
def test_a_point_mass_and_pure_noise_are_exact_and_gaussians_nearly(solver, schedule):
    """The variance of the output for data N(0, s²): exact for a point mass whatever the solver, and nearly so for any s."""
    schedule = SCHEDULES[schedule]()
    plan = find(solver).plan(np.linspace(-1.5, 1.5, 61), schedule)
    for s in (0.3, 1.0, 3.0):
        assert variance(plan, s) == pytest.approx(exact(plan, 1.5, s), rel=0.06)
    if find(solver).name != "heun-churn":
        assert variance(plan, 1e-9) == pytest.approx(exact(plan, 1.5, 1e-9), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "edm", "flow"])
def test_lemma_1_marginals_do_not_depend_on_eta(schedule, eta):
    """Song et al. (2021), Lemma 1, as exact arithmetic: for x0 fixed, ε known, the mean of x_t is α x0 and its variance σ²."""
    schedule = SCHEDULES[schedule]()
    plan = find("ddim").plan(grid.make("logsnr", schedule, 7), schedule, eta=eta)
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
    large, small = (find("ddpm").plan(lams, schedule, variance=variance) for variance in ("large", "small"))
    assert not large.exact_marginals
    assert small.exact_marginals
    assert all(a.noise > b.noise for a, b in zip(large.stages[1:], small.stages[1:], strict=True))
