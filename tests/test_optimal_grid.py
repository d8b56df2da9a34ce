"""Optimal grids: dynamic programming against all paths, local errors and their growth where both are known; what is found."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from diffode import EpsModel, InputError, grid, schedules
from experiments.comparison import optimal_grid
from experiments.comparison.cells import OPTIMAL, parse_contender
from experiments.comparison.local_errors import follow_trajectories, geometric_mean, rms
from experiments.comparison.local_steps import StepPlanner, _window
from experiments.comparison.optimal_grid import DYNAMIC_PROGRAMMING, cheapest_path, find_optimal_grid, refine, summarize
from experiments.comparison.problem import Problem, Settings
from solvers import SOLVERS
from solvers.execute import run
from solvers.hooks import Hooks
from solvers.registry import find
from solvers.verify import problem
from tests.quick import QuickMixture

pytestmark = pytest.mark.usefixtures("small_mixture")
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


QUICK = QuickMixture.of(problem.mixture("vp", torch.float64))  # one class of the shipped mixture, at 7 × 7 pixels
POOLED = EpsModel(QUICK, SCHEDULE, "tangent", clock="lam", shape=QUICK.image)
GAUSSIAN, ROUND = model_of(C), model_of(torch.full_like(C, 0.3))
EXPLODING = EpsModel(lambda x, lam: x / (lam.view(-1, 1, 1, 1) < 3.0), SCHEDULE, clock="lam", shape=(1, 2, 3))


def on(name, **settings):
    return Settings.from_flat(model=f"{__name__}:{name}", dtype="float64", **settings)


@pytest.fixture(scope="module")
def gaussian():
    return follow_trajectories(on("GAUSSIAN"), n=4)


def planner(name):
    return lambda lams: find(name).plan(lams, SCHEDULE)


@pytest.mark.parametrize(("steps", "stages"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 7), (6, 2)])
def test_dynamic_programming_finds_the_best_of_all_paths(steps, stages):
    cost = np.triu(np.random.default_rng(steps).uniform(size=(stages, 7, 7)), 1)
    cost[cost == 0] = np.inf
    paths = [[0, *inner, 6] for inner in itertools.combinations(range(1, 6), steps - 1)]
    sums = [sum(cost[min(n, stages - 1), i, j] for n, (i, j) in enumerate(itertools.pairwise(path))) for path in paths]
    path, least = cheapest_path(cost, steps)
    assert path == paths[int(np.argmin(sums))]
    assert least == pytest.approx(min(sums))


def test_a_path_that_is_not_there():
    with pytest.raises(InputError, match="no 3 steps lead"):
        cheapest_path(np.full((1, 5, 5), np.inf), 3)


def test_trajectories_are_those_of_the_ode(gaussian):
    exact = torch.stack([spread(lam) for lam in gaussian.lams])[:, None] / spread(gaussian.lams[0]) * gaussian.x[0]
    torch.testing.assert_close(gaussian.x, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(gaussian.end, gaussian.x[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm2", "dpmpp2m", "dpm3", "unipc2", "heun"])
def test_local_errors_are_of_one_order_more_than_the_solver(name, gaussian):
    """Of steps of 8 and of 4 of 256, after as many as the solver looks back on."""
    long, short = gaussian.local_errors(planner(name), [(120, 128, 9), (124, 128, 9)])
    assert np.log2(long / short) == pytest.approx(find(name).order + 1, abs=0.3)


@pytest.mark.parametrize("name", ["ddim", "dpm3", "dpmpp2m", "unipc3", "ipndm", "heun", "deis-t", "pndm", "lms"])
def test_the_local_error_of_the_first_step_is_that_of_a_run(name, gaussian):
    """Which a corrector corrects, as another step follows."""
    states = []
    run(
        planner(name)(gaussian.lams[[0, 40, 80]]),
        gaussian.model,
        gaussian.x[0],
        Hooks(on_step=lambda step: states.append(step.x.clone())),
    )
    exact = geometric_mean(rms((states[1] - gaussian.x[40]).flatten(1).numpy()))
    assert gaussian.local_errors(planner(name), [(0, 40, 0)])[0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", [name for name, entry in SOLVERS.items() if entry.has_plan and not entry.stochastic])
def test_every_planned_solver_has_local_errors(name, gaussian):
    """Less than what is lost by not moving at all."""
    found = gaussian.local_errors(planner(name), [(0, 16, 0), (16, 32, 1), (32, 48, 2), (100, 116, 3)])
    still = [geometric_mean(rms((gaussian.x[j] - gaussian.x[j - 16]).flatten(1).numpy())) for j in (16, 32, 48, 116)]
    assert (found < still).all()


def test_a_solver_that_looks_into_earlier_steps(gaussian):
    def odd(lams):
        """Where dpm2 uses the evaluation in the middle of a step, that of the step before."""
        plan = planner("dpm2")(lams)
        stages = [replace(stage, c={j - 2 * (j > 2 and j % 2): c for j, c in stage.c.items()}) for stage in plan.stages]
        return replace(plan, stages=tuple(stages))

    with pytest.raises(InputError, match="within earlier steps"):
        gaussian.local_errors(odd, [(232, 256, 1)])


PLANNED = [name for name, solver in SOLVERS.items() if solver.has_plan and not solver.stochastic]


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", [*PLANNED, "unipc3(start=single)", "dpmpp3m(lower_final=true)", "dpmpp3m+unic"])
def test_steps_of_one_plan_are_those_of_a_plan_each(name, denoise):
    """To 1e-13 of the coefficients, and in fewer plans where the solver forgets what is further back."""
    solver, options = parse_contender(name)
    lams, made = grid.make("logsnr", SCHEDULE, 64), []

    def counted(lams):
        made.append(1)
        return solver.plan(lams, SCHEDULE, **options)

    steps = [(i, j, before) for before in range(4) for i in range(2 * before, 60, 9) for j in (i + 2, i + 4)]
    steps += [(i, 64, 3) for i in range(50, 64, 2)]
    planner = StepPlanner(counted, lams, denoise)
    together, count = planner.plan_steps(steps), len(made)
    for step, expected in zip(together, [own_plan(planner, *step) for step in steps], strict=True):
        assert (step.i, step.j, step.prediction, len(step.stages)) == (*expected[:3], len(expected[3]))
        for stage, other in zip(step.stages, expected[3], strict=True):
            assert [k for k, _ in stage.known + stage.within] == [k for k, _ in other.known + other.within]
            mine, others = ([x.lam, x.x, *(c for _, c in x.known + x.within)] for x in (stage, other))
            np.testing.assert_allclose(mine, others, rtol=1e-13, atol=0)
    if name in ("ddim", "dpm2", "heun"):
        assert count < len(steps) / 2
    assert count <= len(set(steps)) + 5


def own_plan(planner, i, j, before):
    """(i, j, prediction, stages) of a step from the plan of a grid of its own."""
    points, j = _window(i, j, before)
    ((_, step),) = planner._on([*points, j], len(points) - 1)
    return step.i, step.j, step.prediction, step.stages


@pytest.mark.parametrize("name", ["dpmpp3m", "ipndm", "deis-rho"])
def test_a_multistep_method_looks_back_on_exact_states(name, gaussian):
    """The last of four equal steps, where the three before it are made exact as they are committed."""
    at = [40, 60, 80, 100, 120]
    exact = {float(gaussian.lams[k]): gaussian.x[k] for k in at[:-1]}
    made = run(
        planner(name)(gaussian.lams[at]), gaussian.model, gaussian.x[40], Hooks(on_commit=lambda x, lam: exact.get(lam, x))
    ).x
    off = geometric_mean(rms((made - gaussian.x[120]).flatten(1).numpy()))
    assert gaussian.local_errors(planner(name), [(100, 120, 3)])[0] == pytest.approx(off, rel=1e-9)


def test_growth_is_that_of_the_flow():
    """Where it is the same in all directions, an error grows as the spread does."""
    trajectories = follow_trajectories(on("ROUND"), n=2)
    ends = spread(trajectories.lams[-1], 0.3) / torch.stack([spread(lam, 0.3) for lam in trajectories.lams])
    first = len(trajectories.lams) // 12  # at the first, and so noisiest, λ that it is measured at
    np.testing.assert_allclose(trajectories.growth[first:], ends[first:], rtol=0.1)


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 6), ("ddim", 12), ("dpmpp2m", 8), ("dpm2", 10)])
def test_better_than_grids_with_a_name_on_a_gaussian(gaussian, solver, nfe):
    """On other samples than those that it was found with, too."""
    found, problem = find_optimal_grid(gaussian, solver, nfe), Problem(on("GAUSSIAN"))
    assert min(found.measured, key=lambda grid: found.measured[grid]["typical"]) == OPTIMAL
    x = problem.initial_state(slice(0, 32), torch.float64, "cpu")
    exact = spread(SCHEDULE.lam_max) / spread(SCHEDULE.lam_min) * x
    rms = {g: (problem.run(problem.prepare(solver, g, nfe)).x - exact).square().mean().sqrt() for g in grid.GRIDS}
    assert (problem.run(problem.prepare(solver, found.lam, nfe)).x - exact).square().mean().sqrt() < 0.9 * min(rms.values())


def test_better_than_grids_with_a_name_on_the_mixture():
    on_mixture = on("POOLED")
    found, problem = find_optimal_grid(follow_trajectories(on_mixture, n=8), "unipc3", 7), Problem(replace(on_mixture, n=16))
    exact = follow_trajectories(on_mixture, n=16, seed=0).end

    def median(g):
        return float(np.median(rms((problem.run(problem.prepare("unipc3", g, 7)).x - exact).flatten(1).numpy())))

    assert median(found.lam) < 0.5 * min(median(g) for g in grid.GRIDS)
    assert found.measured[OPTIMAL]["typical"] < found.measured[DYNAMIC_PROGRAMMING]["typical"]


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 3), ("dpm-fast", 5), ("unipc3", 3), ("dpmpp3m(start=single)", 7)])
def test_it_leads_from_end_to_end_and_spends_what_it_was_found_for(solver, nfe, denoise):
    trajectories = follow_trajectories(on("GAUSSIAN", denoise=denoise), n=2, known_at=32)
    nfe += denoise
    found = find_optimal_grid(trajectories, solver, nfe)
    assert (found.lam[0], found.lam[-1]) == (SCHEDULE.lam_min, SCHEDULE.lam_max)
    assert (np.diff(found.lam) > 0).all()
    outcome = trajectories.problem.run(trajectories.problem.prepare(solver, found.lam, nfe))
    assert outcome.nfe == nfe
    assert summarize((outcome.x - trajectories.end).flatten(1).numpy()) == pytest.approx(found.measured[OPTIMAL])


def test_with_denoise_the_end_is_that_of_the_last_step():
    """x̂0 = α c² x/(α² c² + σ²) of the exact last state."""
    trajectories = follow_trajectories(on("GAUSSIAN", denoise=True), n=2)
    x0 = float(SCHEDULE.alpha(SCHEDULE.lam_max)) * C**2 / spread(SCHEDULE.lam_max) ** 2 * trajectories.x[-1]
    torch.testing.assert_close(trajectories.end, x0, rtol=1e-9, atol=0)


@pytest.mark.parametrize("denoise", [False, True])
def test_one_evaluation_leaves_nothing_to_choose(denoise):
    trajectories = follow_trajectories(on("GAUSSIAN", denoise=denoise), n=2, known_at=32)
    assert find_optimal_grid(trajectories, "ddim", 1).lam == [SCHEDULE.lam_min, SCHEDULE.lam_max][: 2 - denoise]


def test_labels_and_guidance_are_those_of_each_sample():
    """What one sample of a guided, labelled model does is not changed by others."""
    settings = Settings.from_flat(model="mixture", dtype="float64", guidance=2.0, label="3,7", batch=3)
    both, alone = follow_trajectories(settings, n=2, seed=6, known_at=32), follow_trajectories(settings, n=1, seed=7, known_at=32)
    torch.testing.assert_close(both.x[:, 1:], alone.x, rtol=0, atol=1e-9)
    steps = [(i, i + 4, 1) for i in range(4, 28, 2)]
    mean, of_7 = (trajectories.local_errors(planner("dpm2"), steps) for trajectories in (both, alone))
    of_6 = follow_trajectories(settings, n=1, seed=6, known_at=32).local_errors(planner("dpm2"), steps)
    np.testing.assert_allclose(mean, np.sqrt(of_6 * of_7), rtol=1e-6)


def test_refinement_leaves_alone_what_it_cannot_better():
    lams = np.array([0.0, 1.0, 3.0, 4.0])
    np.testing.assert_allclose(refine(lambda lams: np.array([[1.0, 1.0 + abs(lams[1] - 1)]]), lams), lams, atol=0.05)
    np.testing.assert_array_equal(refine(lambda lams: np.array([[np.nan]]), lams), lams)


def test_refinement_goes_where_the_error_is_least():
    """Of an error that is least on a given grid."""
    best = np.array([0.0, 0.6, 2.5, 4.0])
    found = refine(lambda lams: 10 * (lams - best)[None, 1:-1] + 0.01, np.array([0.0, 1.0, 3.0, 4.0]))
    np.testing.assert_allclose(found, best, atol=0.1)


@pytest.mark.parametrize(
    ("solver", "nfe", "words"),
    [
        ("dopri5", 10, "has no plan"),
        ("rk4", 8, "has no plan"),
        ("ddpm", 10, "draws noise"),
        ("ddim(eta=1)", 10, "draws noise"),
        ("dpm2", 7, "cannot spend exactly 7"),
        ("ddim", 300, "256"),
        ("ddmi", 10, "unknown solver"),
    ],
)
def test_what_has_no_optimal_grid(gaussian, solver, nfe, words):
    with pytest.raises(InputError, match=words):
        find_optimal_grid(gaussian, solver, nfe)


def test_a_network_that_fails_on_the_way():
    with pytest.raises(InputError, match="not finite at λ = 3"):
        follow_trajectories(on("EXPLODING"), n=2)


def script(*args):
    return CliRunner().invoke(optimal_grid.main, [str(arg) for arg in args], catch_exceptions=False)


def test_the_file_is_sampled_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--model", "mixture", "--solver", "dpm2", "--nfe", 6, "--n", 2]
    result = script(*small)
    assert result.exit_code == 0, result.output
    file = tmp_path / "grids" / "dpm2-mixture-6.json"
    assert str(file.relative_to(tmp_path)) in result.output
    lam = json.loads(file.read_text())["lam"]
    assert grid.load(file) == lam
    for out, denoise in (("a", []), ("b", ["--denoise"])):
        how = ["--model", "mixture", "--solver", "dpm2", "--n", "2", "--grid", str(file), "--out", f"{out}.npz", *denoise]
        assert CliRunner().invoke(cli.main, ["sample", *how]).exit_code == 0
        assert json.loads((tmp_path / f"{out}.npz.json").read_text())["grid"] == lam
    result = script(*small)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --out another name, or --overwrite" in result.stderr


def test_the_file_says_all_of_the_grid(gaussian, tmp_path):
    found = find_optimal_grid(gaussian, "dpm2", 4)
    found = replace(found, measured={**found.measured, "time": summarize(np.full((2, 3), np.nan))})
    found.save(tmp_path / "g.json", "python me")
    held = json.loads((tmp_path / "g.json").read_text())
    assert (held["lam"], held["solver"], held["nfe"]) == (found.lam, "dpm2", 4)
    assert held["found_for"]["sha256"] == gaussian.problem.loaded.sha256
    assert held["measured"]["time"]["rmse"] == "inf"
    assert held["made"]["command"] == "python me"
