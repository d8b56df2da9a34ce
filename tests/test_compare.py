"""A comparison: its numbers are right, it can be killed at any moment, and what cannot be compared is refused."""

import csv
import json
import os
import random
import re
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

import cli
from diffode.files import ASSETS, locked
from diffode.models import pretrained
from diffode.noise import SeededNoise
from experiments.common import results
from experiments.comparison.problem import Problem
from tests import reference

pytestmark = pytest.mark.usefixtures("small_mixture")
ROOT = Path(cli.__file__).parent
WITHOUT = ("seconds", "peak_mib")  # what two runs may differ in
SMALL = ["--model", "mixture", "--n", 2, "--features", "none", "--device", "cpu", "--tolerance", 1e-5]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take seconds, and follow from the rows."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def compare(*args):
    return CliRunner().invoke(cli.main, ["compare", *map(str, args)])


class Dense:
    """ε of a mixture by Bayes' rule and full covariances, from its file, in NumPy."""

    def __init__(self, label, weights):
        held = load_file(weights / "mixture.safetensors")
        of = held["label"] == label
        self.log_pi, self.mean = held["log_pi"][of].astype(float), held["mean"][of].astype(float)
        self.values, self.vectors = [], []
        for basis, along, floor in zip(held["basis"][of], held["along"][of], held["floor"][of], strict=True):
            basis, _ = np.linalg.qr(basis.astype(float))
            values, vectors = np.linalg.eigh(basis * along.astype(float) @ basis.T + float(floor) * np.eye(len(basis)))
            self.values.append(values)
            self.vectors.append(vectors)

    def __call__(self, x, lam):
        alpha, sigma = reference._vp(lam)
        log_p, eps = [], []
        for log_pi, mean, values, vectors in zip(self.log_pi, self.mean, self.values, self.vectors, strict=True):
            spread, along = alpha**2 * values + sigma**2, (x - alpha * mean) @ vectors
            log_p.append(log_pi - 0.5 * np.sum(along**2 / spread + np.log(spread)))
            eps.append(sigma * (along / spread) @ vectors.T)
        r = np.exp(np.array(log_p) - max(log_p))
        return r @ np.array(eps) / r.sum()


def follow(eps, x, grid):
    """The ODE by the classical Runge–Kutta method in y = x/α, dy/dλ = −e^(−λ) ε."""

    def slope(y, lam):
        return -np.exp(-lam) * eps(reference._vp(lam)[0] * y, lam)

    y = x / reference._vp(grid[0])[0]
    for s, t in pairwise(grid):
        h = t - s
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, t))
    return reference._vp(grid[-1])[0] * y


def ddim(eps, x, grid):
    for s, t in pairwise(grid):
        (a_s, s_s), (a_t, s_t) = reference._vp(s), reference._vp(t)
        x = reference.ddim_eq_12(a_s**2, a_t**2, 0.0, x, eps(x, s), 0.0)
        assert np.isfinite(s_s + s_t)
    return x


def data_of(eps):
    """x̂0 of an ε."""

    def x0(x, lam):
        alpha, sigma = reference._vp(lam)
        return (x - sigma * eps(x, lam)) / alpha

    return x0


INDEPENDENT = {
    "ddim": ddim,
    "dpmpp2m": lambda eps, x, grid: reference.dpm_solver_pp_2m(grid, x, data_of(eps)),
    "unipc3": lambda eps, x, grid: reference.unipc(3, "bh2", grid, x, data_of(eps)),
}


def independent(seeds, nfe, steps, weights):
    """{solver: ‖x − x*‖ of each seed} at nfe evaluations on equal steps in λ, from the papers' formulas alone; labels in turn."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    first, last = (0.5 * np.log(alpha_bar[i] / (1 - alpha_bar[i])) for i in (-1, 0))
    off = {solver: [] for solver in INDEPENDENT}
    for seed in seeds:
        eps = Dense(seed % 10, weights)
        noise = SeededNoise([seed])(0, torch.empty(1, 1, 28, 28, dtype=torch.float64))
        x = reference._vp(first)[1] * noise.numpy().ravel()
        exact = follow(eps, x, np.linspace(first, last, steps + 1))
        for solver, solve in INDEPENDENT.items():
            off[solver].append(np.sqrt(np.mean((solve(eps, x, np.linspace(first, last, nfe + 1)) - exact) ** 2)))
    return off


def held_by(report):
    """What a report has of its comparisons, from its own text."""
    text = Path(report).read_text(encoding="utf-8")
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.S)
    return json.loads(found[1])


def table(folder):
    with open(folder / "rows.csv", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in WITHOUT} for row in csv.DictReader(file)]


def test_errors_are_those_of_an_independent_computation(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", matplotlib)
    out = tmp_path / "out"
    result = compare(
        *SMALL,
        "--tolerance",
        1e-8,
        "--dtype",
        "float64",
        "--solvers",
        ",".join(INDEPENDENT),
        "--nfe",
        10,
        "--grids",
        "logsnr",
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    check_against(independent(range(2), 10, 200, pretrained.WEIGHTS), held_by(out / "report.html")[0]["rows"])
    assert {file.suffix for file in out.glob("error-*")} == {".png", ".svg"}  # the curves


def check_against(off, found):
    """Of the rows that a report has, those of 10 evaluations on equal steps in λ."""
    here = {row["solver"]: row for row in found if (row["grid"], row["nfe"]) == ("logsnr", 10)}
    for solver, each in off.items():
        assert here[solver]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(each))), abs=1e-6)
        assert here[solver]["median"] == pytest.approx(np.median(each), abs=1e-6)


@pytest.mark.slow
def test_errors_in_the_committed_report_are_those_of_an_independent_computation():
    held = next(each for each in held_by(ROOT / "docs" / "report.html") if each["model"] == "mixture")
    check_against(independent(range(held["seed"], held["seed"] + held["n"]), 10, 400, ASSETS / "weights"), held["rows"])


def killed_when(work, done):
    """Do the work in a process of its own, which dies as by SIGKILL when a file is moved into place and done() is true."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "finished before it was killed"
        return
    replace = os.replace

    def dying(*args, **kwargs):
        replace(*args, **kwargs)
        if done():
            os._exit(9)

    os.replace = dying
    try:
        work()
    finally:
        os._exit(0)


QUICK = """
from diffode import EpsModel, schedules
model = EpsModel(lambda x, t: 0.3 * x + 0.1 * x.sin(), schedules.vp_linear(), shape=(1, 4, 4))
"""


def test_interrupted_three_times_at_random_it_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """In the solution and twice in the rows: the table is the same, timings aside, and no cell is computed twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("own_quick.py").write_text(QUICK)
    options = ["--solvers", "ddim,dpm2,unipc3,dpm12", "--nfe", "5-12", "--grids", "logsnr,time", "--rtol", "0.1,0.05"]
    model = ["--model", "own_quick:model", "--n", 2, "--batch", 1, "--features", "none", "--dtype", "float64", "--device", "cpu"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"

    def work(out):
        return compare(*model, *options, "--tolerance", 1e-6, "--out", out)

    result = work(whole)
    assert result.exit_code == 0
    assert re.search(r"whole: 50 cells of 816 evaluations of a batch.* network calls: about .* by one evaluation", result.stderr)
    first, second = sorted(random.sample(range(1, len(table(whole))), 2))

    def rows_written():
        return len(table(pieces)) if (pieces / "rows.csv").exists() else 0

    killed_when(lambda: work(pieces), lambda: any((pieces / "solution").glob("*.npz")))
    solved = {file: file.stat().st_mtime_ns for file in (pieces / "solution").glob("*.npz")}
    killed_when(lambda: work(pieces), lambda: rows_written() >= first)
    before = json.loads((pieces / "rows.json").read_text())["rows"]
    killed_when(lambda: work(pieces), lambda: rows_written() >= second)
    assert work(pieces).exit_code == 0
    assert table(pieces) == table(whole)
    assert all(file.stat().st_mtime_ns == at for file, at in solved.items())
    after = json.loads((pieces / "rows.json").read_text())
    assert [row for row in after["rows"] if row in before] == before  # their seconds too, so they were not run again
    assert len(after["made"]) == 1  # by runs of one command, version, machine and day
    for file in sorted((whole / "pictures").iterdir()):
        assert np.array_equal(Image.open(file), Image.open(pieces / "pictures" / file.name)), file.name
    monkeypatch.delitem(sys.modules, "own_quick")


def test_a_cell_that_fails_is_a_row_and_the_exit_code(tmp_path, monkeypatch):
    """The others are there, with a report; and what failed is tried again."""
    broken = True
    run = Problem.run

    def failing(self, prepared):
        if broken and prepared.solver.name == "unipc3":
            raise RuntimeError("out of memory")
        return run(self, prepared)

    monkeypatch.setattr(Problem, "run", failing)
    options = [*SMALL, "--solvers", "ddim,unipc3", "--nfe", 8, "--grids", "logsnr", "--out", tmp_path / "out"]
    result = compare(*options)
    assert result.exit_code == 1
    assert "out of memory" in result.stderr
    assert [row["error"] for row in table(tmp_path / "out")] == ["", results.OUT_OF_MEMORY]
    assert "out of memory" in (tmp_path / "out" / "report.html").read_text()
    broken = False
    assert compare(*options).exit_code == 0
    assert "error" not in table(tmp_path / "out")[0]


def test_without_matplotlib_the_page_has_the_curves(tmp_path):
    result = compare(*SMALL, "--solvers", "ddim", "--nfe", 5, "--grids", "logsnr", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "No curves as PNG and SVG: drawing takes matplotlib" in result.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert not list((tmp_path / "out").glob("error-*"))


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Problem, "run", interrupted)
    result = compare(*SMALL, "--solvers", "ddim", "--nfe", 5, "--grids", "logsnr", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "Interrupted: the same command goes on where it was.")


def test_a_solution_that_is_not_known_ten_times_better_is_refused(tmp_path):
    options = [*SMALL, "--dtype", "float64", "--solvers", "unipc3", "--grids", "logsnr", "--out", tmp_path / "out"]
    result = compare(*options, "--nfe", 100, "--tolerance", 1e-2)
    assert result.exit_code == 2
    assert "give a smaller tolerance than 0.01" in result.stderr
    assert not (tmp_path / "out" / "report.html").exists()
    assert compare(*options, "--nfe", 5, "--tolerance", 1e-6, "--overwrite").exit_code == 0


def test_another_comparison_is_not_mixed_in(tmp_path):
    options = [*SMALL, "--solvers", "ddim", "--grids", "logsnr", "--out", tmp_path / "out"]
    assert compare(*options, "--nfe", 5).exit_code == 0
    assert compare(*options, "--nfe", "5,6").exit_code == 0  # more of the same is added
    assert len(table(tmp_path / "out")) == 2
    for other in (["--seed", 1], ["--clip"], ["--n", 3], ["--tolerance", 1e-6]):
        result = compare(*options, "--nfe", 5, *other)
        assert (result.exit_code, "was made with another" in result.stderr) == (2, True), other
    (tmp_path / "out" / "rows.json").write_text("{}")
    assert compare(*options, "--nfe", 5).exit_code == 2


def test_two_at_once_are_refused(tmp_path):
    with locked(tmp_path / ".lock", "writing"):
        result = compare(*SMALL, "--solvers", "ddim", "--nfe", 5, "--out", tmp_path)
    assert (result.exit_code, "another run" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solvers", "dim"], "did you mean"),
        (["--solvers", "ddpm"], "draws noise"),
        (["--grids", "linear"], "unknown grid"),
        (["--nfe", "five"], "whole numbers"),
        (["--nfe", "0"], "at least 1"),
        (["--rtol", "2"], "between 0 and 1"),
        (["--tolerance", "0"], "tolerance"),
        (["--label", "boots"], "label 'boots'"),
        (["--threshold", "2"], "quantile"),
        (["--data", "fashion-train"], "at least 20"),
        (["--model", "nothing"], "no model"),
        (["--guidance", "nan"], "guidance"),
        (["--device", "cuda:7"], "not available"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, options, words):
    result = compare("--model", "mixture", "--n", 2, "--solvers", "ddim", "--nfe", 5, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


SOLVER = """
from solvers import Solver
from solvers.{module} import {build}
mine = Solver("mine", {build}, 1, 1, "test")
"""


def test_a_solver_of_ones_own_that_was_changed_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--solvers", "own_solver:mine", "--nfe", "5,6", "--grids", "logsnr", "--out", "out"]
    for module, build, code in (("ddim", "ddim", 0), ("ddim", "ddim", 0), ("dpm_multistep", "dpmpp2m", 2)):
        (tmp_path / "own_solver.py").write_text(SOLVER.format(module=module, build=build))
        monkeypatch.delitem(sys.modules, "own_solver", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        result = compare(*options)
        assert result.exit_code == code, result.output
    assert "not the solver that it was" in result.stderr
    monkeypatch.delitem(sys.modules, "own_solver", raising=False)


def test_rows_made_elsewhere_are_gone_on_with(tmp_path):
    """Without the solution, which need not be the same to the last bit; and a table that a kill left short is made whole."""
    options = [*SMALL, "--solvers", "ddim", "--grids", "logsnr", "--out", tmp_path / "out"]
    assert compare(*options, "--nfe", 5).exit_code == 0
    held = json.loads((tmp_path / "out" / "rows.json").read_text())
    held["about"]["solution"]["rmse"] *= 1 + 1e-9
    (tmp_path / "out" / "rows.json").write_text(json.dumps(held))
    (tmp_path / "out" / "rows.csv").write_text("solver\n")
    for file in (tmp_path / "out" / "solution").iterdir():
        file.unlink()
    assert compare(*options, "--nfe", 5).exit_code == 0
    assert [row["nfe"] for row in table(tmp_path / "out")] == ["5"]


def test_a_network_that_fails_anywhere_is_one_sentence(tmp_path, monkeypatch):
    """Whatever it raises: in a cell a row, in the solution a refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(
        "import torch\nfrom diffode import EpsModel, schedules\n"
        "live = torch.nn.Linear(4, 4)\n"
        "def network(x, t):\n    if len(x) == FAILS:\n        raise ValueError('too much noise')\n    return live(x)\n"
        "FAILS = 0\n"
        "model = EpsModel(network, schedules.ddpm_linear(), shape=(4,))\n"
        "inner = live.to(torch.float64)\n"
    )
    options = [
        "--model",
        "own_network:model",
        "--n",
        2,
        "--solvers",
        "ddim",
        "--nfe",
        5,
        "--grids",
        "logsnr",
        "--dtype",
        "float64",
    ]
    assert compare(*options, "--out", "good").exit_code == 0  # a function that closes over weights that want gradients
    sys.modules["own_network"].FAILS = 2
    result = compare(*options, "--out", "bad")
    assert (result.exit_code, "too much noise" in result.stderr) == (2, True), result.output
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
