"""Optimal grids are found once for a problem, and are those that a comparison runs on."""

import json
import sys

import pytest
from click.testing import CliRunner

import cli
from diffode import grid
from experiments.common import results
from experiments.comparison import local_errors, optimal_grid
from experiments.comparison.cells import OPTIMAL
from experiments.comparison.grid_cache import OptimalGridCache
from experiments.comparison.ground_truth import find_solution, measure_cell
from experiments.comparison.problem import Problem, Settings

pytestmark = pytest.mark.usefixtures("small_mixture")
CELL = {"solver": "dpmpp2m", "grid": OPTIMAL, "nfe": 6, "rtol": None}


@pytest.fixture
def few(monkeypatch):
    """Trajectories of few samples, known at few λ."""
    follow = local_errors.follow_trajectories
    monkeypatch.setattr(local_errors, "follow_trajectories", lambda settings: follow(settings, n=4, known_at=48))


def test_a_grid_is_found_once_and_for_one_problem(tmp_path, few, monkeypatch):
    problem = Problem(Settings("mixture", n=2))
    first = OptimalGridCache(problem, tmp_path, "command").with_optimal_grid(CELL)
    assert first["grid"] == json.loads((tmp_path / "dpmpp2m-6.json").read_text())["lam"] == grid.load(tmp_path / "dpmpp2m-6.json")
    assert first["grid"][0] == problem.schedule.lam_min
    monkeypatch.setattr(optimal_grid, "find_optimal_grid", lambda *_: pytest.fail("found again"))
    assert OptimalGridCache(problem, tmp_path, "command").with_optimal_grid(CELL) == first
    for change in ({"guidance": 2.0}, {"clip": True}, {"denoise": True}, {"label": "none"}):
        with pytest.raises(pytest.fail.Exception):
            OptimalGridCache(Problem(Settings.from_flat(model="mixture", n=2, **change)), tmp_path, "command").with_optimal_grid(
                CELL
            )
    text = (tmp_path / "dpmpp2m-6.json").read_text()
    held = json.loads(text)
    damaged = [
        {**held, "lam": "x"},
        {**held, "lam": [*held["lam"][:2], held["lam"][2] + 1e-9, *held["lam"][3:]]},
        {**held, "nfe": 7},
    ]
    for other in ("{}", "[" * 10_000, text[:100], *map(json.dumps, damaged)):
        (tmp_path / "dpmpp2m-6.json").write_text(other)
        with pytest.raises(pytest.fail.Exception):
            OptimalGridCache(problem, tmp_path, "command").with_optimal_grid(CELL)


def test_other_cells_are_left_alone_and_impossible_ones_are_skipped(tmp_path, few):
    problem = Problem(Settings("mixture", n=2))
    cache = OptimalGridCache(problem, tmp_path, "")
    assert cache.with_optimal_grid({**CELL, "grid": "time"}) == {**CELL, "grid": "time"}
    solution = find_solution(problem, tmp_path, 1e-4)
    assert (
        "exactly 7" in measure_cell(problem, solution, cache.with_optimal_grid({**CELL, "solver": "dpm2", "nfe": 7}))["skipped"]
    )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("denoise", [[], ["--denoise"]])
def test_compare_runs_on_it_and_sample_can(tmp_path, few, denoise, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # whose curves are tested elsewhere
    options = ["--model", "mixture", "--device", "cpu", *denoise]
    compared = [
        "--solvers",
        "dpmpp2m,dpm-fast",
        "--nfe",
        "8",
        "--grids",
        "logsnr,optimal",
        "--n",
        "4",
        "--tolerance",
        "1e-5",
        "--features",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli.main, ["compare", *options, *compared])
    assert result.exit_code == 0, result.output
    _, found = results.read(tmp_path / "out" / "rows")
    at = {(row["solver"], row["grid"]): row for row in found}
    assert at["dpmpp2m", "optimal"]["median"] < at["dpmpp2m", "logsnr"]["median"]
    assert {row["spent"] for row in found} == {8}
    file = tmp_path / "out" / "grids" / "dpmpp2m-8.json"
    sampled = ["--solver", "dpmpp2m", "--grid", str(file), "--n", "1", "--out", str(tmp_path / "x.png")]
    result = CliRunner().invoke(cli.main, ["sample", *options, *sampled])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "x.png.json").read_text())["grid"] == grid.load(file)
