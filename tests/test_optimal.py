"""Optimal grids: dynamic programming against all paths, local errors and their growth where both are known, and what comes of it."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from diffode import EpsModel, InputError, grid, schedules
from experiments import optimal
from experiments.contenders import OPTIMAL
from experiments.optimal import PROGRAMMED, cheapest, errors, find, refine
from experiments.problem import Problem, Settings
from experiments.trajectories import follow, sizes, typical
from solvers.execute import run
from solvers.registry import find as find_solver

SCHEDULE = schedules.vp_linear()
C = torch.tensor([[[0.2, 0.4, 0.6], [0.8, 1.0, 1.5]]], dtype=torch.float64)  # standard deviations of the data


def spread(lam, c=C):
    """Of x at λ, on data N(0, c²): every trajectory is x(λ) ∝ sqrt(α² c² + σ²)."""
    return (torch.as_tensor(SCHEDULE.alpha(lam)) ** 2 * c**2 + torch.as_tensor(SCHEDULE.sigma(lam)) ** 2).sqrt()


def model_of(c):
    """Its ε = σ x/(α² c² + σ²)."""

    def epsilon(x, lam):
        lam = lam.view(-1, 1, 1, 1).numpy()
        return torch.as_tensor(SCHEDULE.sigma(lam)) * x / spread(lam, c) ** 2

    return EpsModel(epsilon, SCHEDULE, clock="lam", shape=(1, 2, 3))


GAUSSIAN, ROUND = model_of(C), model_of(torch.full_like(C, 0.3))
EXPLODING = EpsModel(lambda x, lam: x / (lam.view(-1, 1, 1, 1) < 3.0), SCHEDULE, clock="lam", shape=(1, 2, 3))
ON_MIXTURE = Settings("mixture", dtype="float64")


def on(name, **settings):
    return Settings(f"{__name__}:{name}", dtype="float64", **settings)


@pytest.fixture(scope="module")
def gaussian():
    return follow(on("GAUSSIAN"), n=4)


@pytest.fixture(scope="module")
def mixture():
    return follow(ON_MIXTURE)


def planner(name):
    return lambda lams: find_solver(name).plan(lams, SCHEDULE)


@pytest.mark.parametrize(("steps", "stages"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 7), (6, 2)])
def test_dynamic_programming_finds_the_best_of_all_paths(steps, stages):
    cost = np.triu(np.random.default_rng(steps).uniform(size=(stages, 7, 7)), 1)
    cost[cost == 0] = np.inf
    paths = [[0, *inner, 6] for inner in itertools.combinations(range(1, 6), steps - 1)]
    sums = [sum(cost[min(n, stages - 1), i, j] for n, (i, j) in enumerate(itertools.pairwise(path))) for path in paths]
    path, least = cheapest(cost, steps)
    assert path == paths[int(np.argmin(sums))]
    assert least == pytest.approx(min(sums))


def test_a_path_that_is_not_there():
    with pytest.raises(InputError, match="no 3 steps lead"):
        cheapest(np.full((1, 5, 5), np.inf), 3)


def test_trajectories_are_those_of_the_ode(gaussian):
    exact = torch.stack([spread(lam) for lam in gaussian.lams])[:, None] / spread(gaussian.lams[0]) * gaussian.x[0]
    torch.testing.assert_close(gaussian.x, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(gaussian.end, gaussian.x[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm2", "dpmpp2m", "dpm3", "unipc2", "heun"])
def test_local_errors_are_of_one_order_more_than_the_solver(name, gaussian):
    """Of steps of 8 and of 4 of 256, after as many as the solver looks back on."""
    long, short = gaussian.local_errors(planner(name), [(120, 128, 9), (124, 128, 9)])
    assert np.log2(long / short) == pytest.approx(find_solver(name).order + 1, abs=0.3)


@pytest.mark.parametrize("name", ["ddim", "dpm3", "dpmpp2m", "unipc3", "ipndm", "heun", "deis-t", "pndm", "lms"])
def test_the_local_error_of_the_first_step_is_that_of_a_run(name, gaussian):
    """Which a corrector corrects, as another step follows."""
    states = []
    run(planner(name)(gaussian.lams[[0, 40, 80]]), gaussian.model, gaussian.x[0], on_step=lambda step: states.append(step.x.clone()))
    exact = typical(sizes((states[1] - gaussian.x[40]).flatten(1).numpy()))
    assert gaussian.local_errors(planner(name), [(0, 40, 0)])[0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", ["dpmpp3m", "unipc3", "ipndm", "deis-rho"])
def test_a_multistep_method_looks_back_on_exact_states(name, gaussian):
    """The last of four equal steps, where the three before it are made exact as they are committed."""
    at = [40, 60, 80, 100, 120]
    exact = {float(gaussian.lams[k]): gaussian.x[k] for k in at}
    plan = planner(name)(gaussian.lams[at])
    if name == "unipc3":  # whose evaluations are those of the predicted states, of which this knows nothing
        plan = planner("dpmpp3m")(gaussian.lams[at])
        name = "dpmpp3m"
    made = run(plan, gaussian.model, gaussian.x[40], on_commit=lambda x, lam: exact[lam] if lam < plan.grid[-1] else x).x
    off = typical(sizes((made - gaussian.x[120]).flatten(1).numpy()))
    (found,) = gaussian.local_errors(planner(name), [(100, 120, 3)])
    assert found == pytest.approx(off, rel=1e-9)


def test_growth_is_that_of_the_flow():
    """Where it is the same in all directions, an error grows as the spread does."""
    trajectories = follow(on("ROUND"), n=2)
    ends = spread(trajectories.lams[-1], 0.3) / torch.stack([spread(lam, 0.3) for lam in trajectories.lams])
    first = len(trajectories.lams) // 12  # at the first, and so noisiest, λ that it is measured at
    np.testing.assert_allclose(trajectories.growth[first:], ends[first:], rtol=0.1)


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 6), ("ddim", 12), ("dpmpp2m", 8), ("dpm2", 10)])
def test_better_than_grids_with_a_name_on_a_gaussian(gaussian, solver, nfe):
    """On other samples than those that it was found with."""
    found, problem = find(gaussian, solver, nfe), Problem(on("GAUSSIAN"))
    x = problem.start(slice(0, 32), torch.float64, "cpu")
    exact = spread(SCHEDULE.lam_max) / spread(SCHEDULE.lam_min) * x
    rms = {g: (problem.run(solver, g, nfe).x - exact).square().mean().sqrt() for g in grid.GRIDS}
    assert (problem.run(solver, found.lam, nfe).x - exact).square().mean().sqrt() < 0.9 * min(rms.values())


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 10), ("unipc3(start=single)", 10), ("dpm-fast", 11), ("dpm2", 6)])
def test_better_than_grids_with_a_name_on_the_mixture(mixture, solver, nfe):
    found, problem = find(mixture, solver, nfe), Problem(replace(ON_MIXTURE, n=64, batch=64))
    exact = follow(replace(ON_MIXTURE, batch=64), n=64, seed=0).end

    def median(g):
        return float(np.median(sizes((problem.run(solver, g, nfe).x - exact).flatten(1).numpy())))

    assert median(found.lam) < min(median(g) for g in grid.GRIDS)
    assert found.measured[OPTIMAL]["typical"] <= found.measured[PROGRAMMED]["typical"]
