"""Errors of published code, each put in on purpose: the property that our solver has is lost with it.

Those that are diffusers' own are shown on diffusers itself, in test_diffusers.py.
"""

import dataclasses
from functools import cache, partial

import numpy as np
import pytest
import torch

from diffode import InputError, grid, schedules
from diffode.ode import accurate
from solvers import SOLVERS, Plan, run, sample
from solvers.gaussian import exact, variance
from solvers.hooks import Hooks
from solvers.multistep import exponential, multistep
from solvers.phi import interpolatory, moments, phi
from solvers.registry import find
from tests import reference
from tests.quick import quick

SCHEDULE = schedules.vp_linear()


@pytest.fixture(scope="module")
def trajectory(toy):
    """A model, states at λ = −2, and the same trajectories at any later λ."""
    model = quick(toy("vp", SCHEDULE))
    z = torch.randn(8, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = float(SCHEDULE.alpha(-2.0)) * model.network.sample(8, seed=1) + float(SCHEDULE.sigma(-2.0)) * z
    return model, x, cache(lambda lam: x if lam == -2 else accurate(model, x, -2.0, float(lam), 1e-13))


def order(trajectory, solve, steps=(100, 200)):
    """The order of solve(grid, model, x) -> state."""
    model, x, at = trajectory
    errors = [float((solve(np.linspace(-2, 2, n + 1), model, x) - at(2)).square().mean().sqrt()) for n in steps]
    return np.log2(errors[0] / errors[1])


def planned(build, trajectory=None, **options):
    """solve for `order`; with a trajectory, from three exact states."""

    def solve(lams, model, x):
        true = {lam: trajectory[2](lam) for lam in lams[:3]} if trajectory else {}
        return run(build(lams, SCHEDULE, **options), model, x, Hooks(on_commit=lambda u, lam: true.get(lam, u))).x

    return solve


def test_third_order_multistep_without_the_factor_2(trajectory):
    """The second divided difference is half the second derivative: without the factor order 2, from exact states as well."""
    assert order(trajectory, planned(find("dpmpp3m").plan, trajectory)) == pytest.approx(3, abs=0.15)
    assert order(trajectory, planned(find("dpmpp3m-published").plan, trajectory)) == pytest.approx(2, abs=0.15)


def test_the_factor_2_is_what_the_published_formula_lacks(trajectory):
    """With it put in, the authors' own formula is our table, from the third step on."""
    model, x, _ = trajectory
    lams = np.array([-2.0, -1.2, -0.9, 0.1, 0.8, 1.7])
    rule = {2: exponential("data", "midpoint"), 3: exponential("data")}
    table = multistep("dpmpp3m", lams, SCHEDULE, "data", 3, lambda step, nodes: rule[len(nodes)](step, nodes))
    formula = reference.dpm_solver_pp_3m(lams, x, lambda x, lam: model(x, lam, "data"), 2.0)
    torch.testing.assert_close(run(table, model, x).x, formula, rtol=0, atol=1e-12)


def test_a_ramp_of_orders_caps_the_global_order_at_2(trajectory):
    """The first steps, of orders 1 and 2, leave an error of order 2, which a start of full order does not."""

    def added(n):
        model, x, _ = trajectory
        lams = np.linspace(-2, 2, n + 1)
        ramp, single = (run(find("dpmpp3m").plan(lams, SCHEDULE, start=s), model, x).x for s in ("ramp", "single"))
        return float((ramp - single).square().mean().sqrt())

    assert np.log2(added(200) / added(400)) == pytest.approx(2, abs=0.15)
    assert order(trajectory, planned(find("dpmpp3m").plan, start="single")) == pytest.approx(3, abs=0.15)


def test_third_order_sde_with_the_wrong_sign_of_one_half():
    """The coefficient of the second difference, (1 − e^(−H) − H)/H² − ½ where twice (…) + ½ is exact: weak order 1 for 2."""

    def wrong(step, nodes):
        big = step.h * (1 + step.eta)
        mu = moments(len(nodes), -big)
        if len(nodes) == 3:
            mu[2] = ((-np.expm1(-big) - big) / big**2 - 0.5) / (-np.expm1(-big))
        return interpolatory(step.c(nodes), mu)

    big = 0.55
    assert 2 * ((-np.expm1(-big) - big) / big**2 + 0.5) == pytest.approx(0.16, abs=0.01)
    assert (-np.expm1(-big) - big) / big**2 - 0.5 == pytest.approx(-0.92, abs=0.01)

    def weak(rule):
        errors = []
        for n in (200, 400):
            plan = multistep("sde", np.linspace(-2, 2, n + 1), SCHEDULE, "data", 3, rule, eta=1.0)
            errors.append(abs(variance(plan, 0.5) / exact(plan, 2.0, 0.5) - 1))
        return np.log2(errors[0] / errors[1])

    assert weak(exponential("data")) > 1.85
    assert weak(wrong) < 1.15


def test_unipc_with_a_stale_loop_index(trajectory):
    """UniPC's vary_coeff ends its sum over k with the k of a loop that is over: of order 1, where the sum is of order 3."""

    def solve(stale, lams, model, x):
        lam_m = [(lams[0], model(x, lams[0], "data"))]
        for i in range(1, len(lams)):
            (lam_s, m0), h = lam_m[-1], lams[i] - lams[i - 1]
            (_, s_s), (a_t, s_t) = reference._vp(lam_s), reference._vp(lams[i])
            start = s_t / s_s * x - a_t * np.expm1(-h) * m0
            if i == 1:
                x = start - a_t * np.expm1(-h) * 0.5 * (model(start, lams[i], "data") - m0)
                lam_m.append((lams[i], model(x, lams[i], "data")))
                continue
            r = (lam_m[-2][0] - lam_s) / h
            d1 = (lam_m[-2][1] - m0) / r
            predicted = start - a_t * np.expm1(-h) * 0.5 * d1
            m_t = model(predicted, lams[i], "data")
            slopes = np.linalg.inv(np.array([[1.0, r / 2], [1.0, 0.5]]))  # of Taylor coefficients k! from differences
            terms = [slopes[k][0] * d1 + slopes[k][1] * (m_t - m0) for k in range(2)]
            weights = [phi(2, -h) * h, phi(3, -h) * h]
            if stale:  # the loop over k < K − 1 has ended with k = 0, and the last term takes its row
                x = start + a_t * (weights[0] * slopes[0][0] * d1 + weights[1] * slopes[0][1] * (m_t - m0))
            else:
                x = start + a_t * sum(w * term for w, term in zip(weights, terms, strict=True))
            lam_m.append((lams[i], m_t))
        return x

    assert order(trajectory, partial(solve, False)) == pytest.approx(3, abs=0.15)
    assert order(trajectory, partial(solve, True)) == pytest.approx(1, abs=0.15)
    for variant in ("bh1", "bh2"):
        assert order(trajectory, planned(find("unipc2").plan, variant=variant)) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("solver", ["dpmpp2m", "unipc2", "sde-dpmpp2m"])
def test_sigma_t_in_place_of_sigma_s_is_refused(solver):
    """One sampler has it in one line, and is of order 1: here the plan does not come to be."""
    good = find(solver).plan(np.linspace(-2, 2, 6), SCHEDULE)
    stage = good.stages[3]
    ratio = float(SCHEDULE.sigma(stage.lam) / SCHEDULE.sigma(good.stages[2].lam))
    stages = (*good.stages[:3], dataclasses.replace(stage, x=stage.x / ratio), *good.stages[4:])
    with pytest.raises(InputError, match="transfer law"):
        Plan(solver, good.path, good.prediction, stages)


@pytest.mark.parametrize(
    ("steps", "weights"), [(2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])]
)
def test_variable_steps_have_the_classical_weights_where_they_are_equal(steps, weights):
    """A misplaced bracket in one iPNDM with variable steps is wrong even there."""
    lams = -np.log(np.linspace(6.0, 1.0, 6))
    for solver in ("lms", "deis-rho"):
        last = find(solver).plan(lams, SCHEDULE, order=steps).stages[-1].c
        np.testing.assert_allclose([last[4 - j] / sum(last.values()) for j in range(steps)], weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [name for name, e in SOLVERS.items() if e.has_plan and name != "heun-churn"])
def test_a_step_goes_from_one_grid_value_to_the_next(solver):
    """DDIM elsewhere steps to t − T//N: for N = 30 that is not the next point, and state and label come apart."""
    schedule = schedules.ddpm_linear()
    lams = schedule.lam(np.round(np.linspace(999, 0, 31)))
    plan = find(solver).plan(lams, schedule)
    assert plan.grid == lams.tolist()
    assert set(lams[:-1]) <= {stage.lam for stage in plan.stages if stage.evaluate}


def test_a_grid_with_one_value_twice_is_refused():
    """Karras grids elsewhere end with the last sigma twice: an evaluation wasted, or NaN."""
    with pytest.raises(InputError, match="strictly increasing"):
        grid.make([-5.0, 0.0, 4.0, 4.0], SCHEDULE)


def test_labels_that_collide_are_refused(mixture32):
    """20 steps with 12 distinct labels elsewhere."""
    with pytest.raises(InputError, match="label"):
        grid.snap(np.linspace(4.0, 4.6, 60), schedules.ddpm_linear())


def test_coefficients_follow_the_label_that_the_network_is_asked_for():
    """Elsewhere the label is rounded and the coefficients are not. Here λ is snapped first: each label is exactly its state's."""
    from diffode import EpsModel

    asked = []
    model = EpsModel(lambda x, t: asked.append(float(t[0])) or 0.1 * x, schedules.ddpm_linear(), clock="label")
    plan = sample(model, solver="unipc2", nfe=9, shape=(1, 4)).plan
    where = [stage.lam for stage in plan.stages if stage.evaluate]
    np.testing.assert_allclose(model.schedule.lam(asked), where, rtol=0, atol=1e-12)


def test_phi_by_subtraction():
    """In float32, φ_3(1e-3) by (φ_2 − ½)/z, φ_2 by (φ_1 − 1)/z, φ_1 by (e^z − 1)/z, is off by more than a third."""
    z = np.float32(1e-3)
    wrong = np.exp(z)
    for k in (1, 2, 3):
        wrong = (wrong - np.float32([1, 1, 0.5][k - 1])) / z
    assert abs(wrong * 6 - 1) > 0.3
    assert phi(3, 1e-3) * 6 == pytest.approx(1 + 1e-3 / 4 + 1e-6 / 20, rel=1e-9)
