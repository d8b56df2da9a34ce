"""The problem, its solution, and the distance of a contender from it."""

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, schedules
from diffode.models import pretrained
from diffode.models.card import Card
from diffode.ode import accurate
from experiments.comparison import ground_truth
from experiments.comparison.cost import metered
from experiments.comparison.ground_truth import error_summary, find_solution, measure_cell
from experiments.comparison.problem import Problem, Settings
from solvers import sample

pytestmark = pytest.mark.usefixtures("small_mixture")
FLAT = {"model": "mixture", "n": 5, "batch": 3, "dtype": "float64"}
MIXTURE = Settings.from_flat(**FLAT)
CELL = {"solver": "unipc3", "grid": "logsnr", "nfe": 12, "rtol": None}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    problem, folder = Problem(MIXTURE), tmp_path_factory.mktemp("solution")
    return problem, find_solution(problem, folder, 1e-6), folder


def test_the_estimate_of_its_own_error_is_from_above(solved):
    problem, solution, _ = solved
    better = torch.cat(
        [
            accurate(
                problem.labelled(problem.model, rows), problem.initial_state(rows, torch.float64, "cpu"), *ends(problem), 1e-10
            )
            for rows in problem.batches
        ]
    )
    distance = (solution.x - better).flatten(1).square().mean(1).sqrt().numpy()
    assert (distance <= solution.own_error).all()
    assert solution.about["rmse"] == pytest.approx(np.sqrt(np.mean(solution.own_error**2)))
    assert solution.nfe > 100


def ends(problem):
    return problem.schedule.lam_min, problem.schedule.lam_max


def test_samples_are_those_that_sample_draws(solved):
    problem, solution, _ = solved
    outcome = problem.run(problem.prepare("unipc3", "logsnr", 12))
    model = pretrained.load("mixture", torch.float64).model.labelled([0, 1, 2, 3, 4])
    x = sample(model, shape=(5, 1, 28, 28), solver="unipc3", nfe=12, dtype=torch.float64).x
    torch.testing.assert_close(outcome.x, x, rtol=0, atol=1e-12)
    assert (outcome.nfe, outcome.calls) == (12, 12)
    errors = [float((outcome.x[i] - solution.x[i]).square().mean().sqrt()) for i in range(5)]
    row = measure_cell(problem, solution, CELL)
    assert row["worst"] == pytest.approx(max(errors))
    assert row["median"] == pytest.approx(sorted(errors)[2])
    assert row["rmse"] == pytest.approx(float((outcome.x - solution.x).square().mean().sqrt()))


def test_batches_are_computed_once_and_other_problems_are_not_taken_for_this_one(solved, monkeypatch):
    problem, solution, folder = solved
    monkeypatch.setattr(ground_truth, "accurate", lambda *_: pytest.fail("computed twice"))
    assert torch.equal(find_solution(problem, folder, 1e-6).x, solution.x)
    for change in ({"guidance": 2.0}, {"clip": True}, {"denoise": True}, {"label": "none"}, {"seed": 1}):
        with pytest.raises(pytest.fail.Exception):
            find_solution(Problem(Settings.from_flat(**FLAT | change)), folder, 1e-6)
    with pytest.raises(pytest.fail.Exception):
        find_solution(problem, folder, 1e-5)


def test_a_final_step_to_sigma_zero_is_one_of_the_evaluations(tmp_path):
    problem = Problem(Settings.from_flat(**FLAT | {"n": 2, "denoise": True}))
    solution = find_solution(problem, tmp_path, 1e-5)
    assert "over finite λ only" in measure_cell(problem, solution, {**CELL, "solver": "midpoint"})["skipped"]
    errors = [measure_cell(problem, solution, {**CELL, "nfe": nfe}) for nfe in (10, 20, 40)]
    assert [row["spent"] for row in errors] == [10, 20, 40]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse["rmse"] > 2 * fine["rmse"]


def test_guidance_takes_two_calls_an_evaluation_and_is_the_solutions_too(tmp_path):
    problem = Problem(Settings.from_flat(**FLAT | {"n": 2, "guidance": 2.0}))
    row = measure_cell(problem, find_solution(problem, tmp_path, 1e-5), {**CELL, "nfe": 40})
    assert (row["spent"], row["calls"]) == (40, 80)
    assert row["rmse"] < 0.1
    adaptive = problem.run(problem.prepare("dpm23", "own", None, 0.05))
    assert adaptive.calls == 2 * adaptive.nfe


def test_what_cannot_be_spent_is_skipped(solved):
    problem, solution, _ = solved
    assert "exactly 5" in measure_cell(problem, solution, {**CELL, "solver": "dpm2", "nfe": 5})["skipped"]


def test_a_sample_does_not_depend_on_the_batch(solved):
    problem, _, _ = solved
    whole = Problem(Settings.from_flat(**FLAT | {"batch": 5}))
    assert torch.equal(problem.run(problem.prepare("dpm2", "time", 10)).x, whole.run(whole.prepare("dpm2", "time", 10)).x)


def test_the_summary_of_errors():
    assert error_summary(np.array([3.0, 4.0])) == {"rmse": pytest.approx(12.5**0.5), "median": 3.5, "worst": 4.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"label": "boots"}, "label 'boots'"), ({"label": "none", "guidance": 2.0}, "needs labels"), ({"model": "no"}, "no model")],
)
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        Problem(Settings.from_flat(**FLAT | change))


@pytest.fixture
def own(monkeypatch):
    """own(model): the problem of a model that is loaded in float32 alone."""

    def give(model):
        def load(name, dtype=torch.float32):
            if dtype != torch.float32:
                raise InputError("not in this dtype")
            return pretrained.Pretrained(model, Card("module", (1, 2, 3)), "0")

        monkeypatch.setattr(pretrained, "load", load)
        return Problem(Settings("own", n=3))

    return give


@pytest.mark.parametrize("returned", [lambda m: m, lambda m: (m, None), lambda m: SimpleNamespace(sample=m)])
def test_a_network_that_is_float32_alone_has_a_solution_that_says_so(own, tmp_path, returned):
    """Whatever form its output has, as in any EpsModel."""

    def network(x, t):
        assert (x.dtype, t.dtype) == (torch.float32, torch.float32)
        return returned(0.9 * torch.tanh(x))

    problem = own(EpsModel(network, schedules.ddpm_linear()))
    solution = find_solution(problem, tmp_path)
    assert solution.about["dtype"] == "float32"
    coarse, fine = (measure_cell(problem, solution, {**CELL, "nfe": nfe})["rmse"] for nfe in (30, 120))
    assert coarse > 8 * fine


def test_what_has_no_solution_is_refused(own):
    with pytest.raises(InputError, match="takes whole labels"):
        own(EpsModel(lambda x, t: x, schedules.ddpm_linear(), clock="label"))
    with pytest.raises(InputError, match="λ = ±∞"):
        own(EpsModel(lambda x, t: x, schedules.flow(t_clean=0.0), "flow"))


def test_a_network_whose_output_is_not_finite_is_named_with_its_lam(own, tmp_path):
    problem = own(EpsModel(lambda x, t: x / 0 if t[0] < 500 else 0 * x, schedules.ddpm_linear()))
    with pytest.raises(InputError, match="not finite at λ"):
        find_solution(problem, tmp_path)
    assert not list(tmp_path.iterdir())


def packed(**changes):
    """What a batch's file would hold with other arrays."""

    def damage(data):
        stream = io.BytesIO()
        np.savez(stream, **({**np.load(io.BytesIO(data))} | changes))
        return stream.getvalue()

    return damage


def flipped(at):
    """With one bit changed, so far into the file."""

    def damage(data):
        changed = bytearray(data)
        changed[int(at * len(data))] ^= 8
        return bytes(changed)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-100],
        lambda data: data[: len(data) // 2],
        lambda data: b"not an archive",
        flipped(0.02),
        *(flipped(at / 7) for at in range(1, 7)),
        packed(x=np.zeros((1, 28, 28))),
        packed(x=np.zeros((2, 1, 28, 28), np.float32)),
        packed(off=np.array([0.0, np.nan])),
        packed(nfe=np.array([1, 2])),
        packed(nfe=np.array(None, object)),
        packed(off=np.array(["a", "b"])),
    ],
)
def test_a_damaged_batch_is_computed_again(solved, tmp_path, damage, monkeypatch):
    problem, solution, folder = solved
    again = []

    def solve_batch(problem, model, rows, tolerance, file, looser):
        again.append(file.name)
        file.write_bytes((folder / file.name).read_bytes())

    monkeypatch.setattr(ground_truth, "_solve_batch", solve_batch)
    files = sorted(file.name for file in folder.glob("*.npz"))
    for name in files:
        (tmp_path / name).write_bytes(damage((folder / name).read_bytes()))
    found = find_solution(problem, tmp_path, 1e-6)
    assert sorted(again) == files
    assert torch.equal(found.x, solution.x)


@pytest.mark.parametrize("tolerance", [0, -1e-8, 1, float("nan")])
def test_tolerances_are_small(solved, tolerance, tmp_path):
    with pytest.raises(InputError, match="tolerance"):
        find_solution(solved[0], tmp_path, tolerance)


def test_a_meter_sees_memory_that_is_there_no_more():
    with metered("cpu") as small:
        pass
    with metered("cpu") as large:
        torch.ones(2**26)  # 256 MiB
    if small.peak_mib is None:
        pytest.skip("this system does not tell")
    assert large.peak_mib - small.peak_mib > 200
    with metered("cpu") as after:
        pass
    assert large.peak_mib - after.peak_mib > 200
    assert large.seconds > 0
