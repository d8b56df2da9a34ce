"""Draws as increments of one Brownian path per seed: their law is exact, and n and 2n steps converge to the same images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import grid, schedules
from diffode.brownian import NODES, BrownianNoise, Interval, bridge, lam_of, node, tau
from diffode.noise import SeededNoise
from solvers import SOLVERS, Budget, Hooks, Plan, Stage, find, gaussian, run
from solvers.inpainting import with_jumps
from solvers.intervals import MOST_PATHS, intervals
from solvers.transfer import PlanBuilder
from tests.quick import QuickMixture

SCHEDULE = schedules.vp_linear()
STOCHASTIC = [
    ("ddpm", {}),
    ("ddim", {"eta": 0.5}),
    ("sde-dpmpp2m", {}),
    ("sde-dpmpp3m", {"eta": 0.7}),
    ("sa-solver", {"s_tmin": 0.0, "s_tmax": 1e6}),
    ("heun-churn", {"s_churn": 5.0, "s_tmin": 0.0, "s_tmax": math.exp(3.001)}),  # from λ = −3 on, a node of all grids
]


def planned(solver, steps, **options):
    return find(solver).plan(np.linspace(-4, 4, steps + 1), SCHEDULE, **options)


def increments(lams, path=0):
    return {draw: Interval(*ends, path) for draw, ends in enumerate(pairwise(lams), 1)}


# The path


def test_a_bridge_has_the_variance_of_brownian_motion():
    """Given B at both ends, E B_m = B_l + (τ_m − τ_l)/(τ_r − τ_l) (B_r − B_l), Var B_m = (τ_m − τ_l)(τ_r − τ_m)/(τ_r − τ_l)."""
    for left, right in (
        (0, NODES),
        (0, 2),
        (2, 4),
        (NODES // 2, NODES),
        (NODES // 2 - 2, NODES // 2),
        (NODES // 2, NODES // 2 + 2048),
    ):
        s, m, t = (np.longdouble(tau(one)) for one in (left, (left + right) // 2, right))
        a, b, std = bridge(left, right)
        expected = (t - m) / (t - s), (m - s) / (t - s), np.sqrt((m - s) * (t - m) / (t - s))
        np.testing.assert_allclose((a if left else expected[0], b, std), np.array(expected, float), rtol=1e-9)


def test_values_at_nodes_have_exactly_the_covariance_of_brownian_motion(monkeypatch):
    """With an axis of its own for the ξ of each node, a value is its vector of coefficients, and ⟨B_s, B_t⟩ = min(τ_s, τ_t)."""
    axes = {}

    def axis(self, path, number, shape):
        found = torch.zeros(shape)
        found[0, axes.setdefault(number, len(axes))] = 1
        return found

    monkeypatch.setattr(BrownianNoise, "_normal", axis)
    noise, lams = BrownianNoise([0], {}), [-15.9, -5.0, -4.9, 0.0, 0.0002, 0.01, 3.3, 15.0, 16.0]
    nodes = [node(lam) for lam in lams]
    values = torch.stack([noise._value(0, one, torch.Size((1, 256)))[0] for one in nodes]).double().numpy()
    taus = np.array([tau(one) for one in nodes])
    assert len(axes) < 256
    relative = values @ values.T / np.sqrt(np.outer(taus, taus))
    np.testing.assert_allclose(relative, np.sqrt(np.minimum.outer(taus, taus) / np.maximum.outer(taus, taus)), atol=1e-6)


def test_draws_are_independent_and_normal():
    """x_T and increments of uneven intervals, of a second path, of none, and to both infinities, over 500 seeds."""
    found = increments([-math.inf, -5.0, -0.3, -0.2999, 0.9, 4.0, math.inf])
    found |= {7: Interval(-5.0, 4.0, 1), 8: Interval(1.0, 1.00001), 10: Interval(20.0, math.inf)}
    noise, like = BrownianNoise(range(500), found), torch.zeros(500, 16, dtype=torch.float64)
    draws = torch.stack([noise(draw, like) for draw in range(11)]).flatten(1).numpy()  # 9 is of no interval
    covariance = draws @ draws.T / 8000
    assert abs(covariance - np.eye(11)).max() < 4.5 * math.sqrt(2 / 8000)
    assert abs((draws**4).mean(1) - 3).max() < 4.5 * math.sqrt(96 / 8000)
    assert abs(draws.mean(1)).max() < 4.5 / math.sqrt(8000)


def test_a_coarse_draw_is_the_sum_of_the_fine_ones():
    """Common times have common values: n and 2n steps are of one path."""
    fine = np.linspace(-4, 4, 9)
    coarse = fine[::2]
    like = torch.zeros(3, 5)
    of_fine, of_coarse = BrownianNoise([3, 4, 5], increments(fine)), BrownianNoise([3, 4, 5], increments(coarse))
    lengths = np.sqrt(np.diff(np.exp(2 * fine)))
    for k in range(1, 5):
        first, second = lengths[2 * k - 2], lengths[2 * k - 1]
        whole = (first * of_fine(2 * k - 1, like) + second * of_fine(2 * k, like)) / np.hypot(first, second)
        torch.testing.assert_close(of_coarse(k, like), whole, rtol=0, atol=2e-3)  # λ is moved to a node


def test_a_seed_is_a_path_in_any_batch_at_any_time():
    found, like = increments([-4.0, -1.0, 0.5, 3.0]), torch.zeros(3, 2, 2)
    noise = BrownianNoise([7, 8, 9], found)
    forwards = [noise(draw, like) for draw in range(4)]
    backwards = [noise(draw, like) for draw in (3, 2, 1, 0)][::-1]
    assert all(map(torch.equal, forwards, backwards))
    alone = BrownianNoise([9], found)
    assert all(torch.equal(alone(draw, like[:1]), forwards[draw][2:]) for draw in (2, 0, 3, 1))
    assert torch.equal(forwards[0], SeededNoise([7, 8, 9])(0, like))
    assert torch.equal(noise(1, like.double()), forwards[1].double())


@pytest.mark.parametrize("name", ["ddpm_linear", "vp_linear", "cosine", "edm", "flow"])
def test_the_steps_of_a_fine_grid_are_between_distinct_nodes(name):
    schedule = schedules.make(name)
    for spacing in ("logsnr", "time", "karras"):
        lams = grid.make(spacing, schedule, 10_000)
        nodes = [node(lam) for lam in lams if abs(lam) < 15.9]
        assert np.diff(nodes).min() > 0
        assert max(abs(lam_of(one) - lam) for one, lam in zip(nodes, lams[np.abs(lams) < 15.9], strict=True)) <= 1.6e-5


def test_memory_does_not_grow_with_the_steps():
    found = increments(np.linspace(-4.0, 4.0, 501))
    noise, like = BrownianNoise([0], found), torch.zeros(1, 1)
    kept = [noise(draw, like) is not None and len(noise._kept) for draw in found]
    assert max(kept) <= 22


# The intervals of a plan


@pytest.mark.parametrize(("solver", "options"), STOCHASTIC)
def test_every_step_has_its_own_interval(solver, options):
    """The steps of the grid, each once and on one path: draws are independent, and those of 2n steps divide those of n."""
    plan = planned(solver, 8, **options)
    ends = np.linspace(-4, 4, 9)
    expected = {draw: Interval(*pair) for draw, pair in enumerate(pairwise(ends), 1)}
    if solver == "heun-churn":
        del expected[1]
    found = intervals(plan)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("solver", [name for name, entry in SOLVERS.items() if entry.stochastic])
@pytest.mark.parametrize("times", [0, 2])
def test_intervals_of_one_path_do_not_overlap(solver, times):
    """For every solver of the table that draws noise, with jumps too: so all draws are independent, as the plan assumes."""
    plan = find(solver).prepare(Budget(steps=9), SCHEDULE).plan
    if times and solver not in ("ddpm", "heun-churn"):
        return
    plan = with_jumps(plan, times)
    found = intervals(plan)
    assert set(found) == {stage.draw for stage in plan.stages} - {None}
    for path in {one.path for one in found.values()}:
        ends = sorted(one[:2] for one in found.values() if one.path == path)
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        assert all(s < t for s, t in ends)


def test_stages_with_draws_of_their_own_are_of_two_paths():
    builder = PlanBuilder(SCHEDULE.path, "data", -1.0)
    first = builder.evaluate()
    builder.move(0.0, {first: 1.0}, noise=0.1, draw=1, commit=False)
    builder.move(1.0, {builder.evaluate(): 1.0}, noise=0.1, draw=2)
    assert intervals(builder.plan("own")) == {1: Interval(-1.0, 0.0, 0), 2: Interval(-1.0, 1.0, 1)}


def test_many_draws_at_one_place_are_soon_of_no_path():
    x, n = float(SCHEDULE.alpha(0.0) / SCHEDULE.alpha(1.0)), float(SCHEDULE.sigma(0.0)) * math.sqrt(-math.expm1(-2))
    turns = [Stage(1.0, 1.0, evaluate=False)]
    for draw in range(1, 200):
        turns += [Stage(0.0, x, noise=n, draw=draw, evaluate=True)]
        builder = PlanBuilder(SCHEDULE.path, "data", 0.0)
        builder.move(1.0, {builder.evaluate(): 1.0})
        turns += [Stage(1.0, builder.stages[-1].x, {draw - 1: builder.stages[-1].c[0]}, evaluate=False)]
    assert len(intervals(Plan("own", SCHEDULE.path, "data", tuple(turns)))) == MOST_PATHS


# What it is for


def distance(solver, steps, s, **options):
    """The exact rms distance of the outputs with n and with 2n steps for data N(0, s²), whose draws are of one path or not."""
    plans = [planned(solver, n, **options) for n in (steps, 2 * steps)]
    outputs = [gaussian.coefficients(plan, s) for plan in plans]
    found = [intervals(plan) for plan in plans]
    common = outputs[0][0] * outputs[1][0]
    for i, a in found[0].items():
        for j, b in found[1].items():
            shared = min(math.exp(2 * a.lam_t), math.exp(2 * b.lam_t)) - max(math.exp(2 * a.lam_s), math.exp(2 * b.lam_s))
            if a.path == b.path and shared > 0:
                lengths = [math.exp(2 * one.lam_t) - math.exp(2 * one.lam_s) for one in (a, b)]
                common += outputs[0][i] * outputs[1][j] * shared / math.sqrt(math.prod(lengths))
    squares = sum(float(output @ output) for output in outputs)
    return math.sqrt(squares - 2 * common), math.sqrt(squares - 2 * outputs[0][0] * outputs[1][0])


@pytest.mark.parametrize(("solver", "options"), STOCHASTIC)
def test_n_and_2n_steps_converge_on_a_gaussian_with_order_1(solver, options):
    """Exactly, by arithmetic: the plan is linear in its draws, whose covariances are the common parts of their intervals."""
    (coarse, unrelated), (fine, _) = (distance(solver, steps, 0.5, **options) for steps in (80, 160))
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)
    assert fine < 0.05 * unrelated


def quick(toy):
    model = toy()
    return model.replace(network=QuickMixture.of(model.network))


def images(model, solver, steps, kind="brownian", **options):
    """Of 200 trajectories; their noise is one of 1200 numbers, which is as independent as that of 200 seeds, and quicker."""
    plan, shape = planned(solver, steps, **options), (200, 1, 2, 3)
    draws = BrownianNoise([0], intervals(plan)) if kind == "brownian" else SeededNoise([0])

    def noise(draw, like):
        return draws(draw, like.view(1, -1)).view(shape)

    return run(plan, model, noise(0, torch.empty(shape, dtype=torch.float64)), Hooks(noise)).x


def apart(a, b):
    """The rms distance of the median trajectory: a few pass the boundary between two components, and go to either."""
    return float((a - b).square().flatten(1).mean(1).median().sqrt())


@pytest.mark.parametrize(("solver", "options"), [("ddim", {"eta": 1.0}), ("sde-dpmpp2m", {}), ("sa-solver", {"s_tmax": 1e6})])
def test_n_and_2n_steps_converge_on_the_mixture(toy, solver, options):
    found = [images(quick(toy), solver, steps, **options) for steps in (20, 40, 80)]
    coarse, fine = (apart(*pair) for pair in pairwise(found))
    unrelated = apart(*(images(quick(toy), solver, steps, "seeded", **options) for steps in (20, 40)))
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.25)
    assert coarse < 0.15 * unrelated


def test_solvers_of_one_sde_converge_to_the_same_images(toy):
    """ddpm, dpmpp2m for the SDE and sa-solver with τ = 1 are methods for the same equation, driven by the same path."""
    solvers = ("ddpm", {}), ("sde-dpmpp2m", {}), ("sa-solver", {"s_tmin": 0.0, "s_tmax": 1e6})
    found = [[images(quick(toy), solver, steps, **options) for solver, options in solvers] for steps in (15, 45)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        coarse, fine = (apart(made[one], made[other]) for made in found)
        assert fine < min(coarse / 2.2, 0.1)
