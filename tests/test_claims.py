"""The claims: what is computed of rows is what it says; a claim that does not hold is refuted; each script runs, resumes, and
refuses what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from diffode.files import ASSETS
from diffode.models import pretrained
from diffode.ode import accurate
from diffode.reading import sha256_of
from experiments import documents
from experiments.claims import adaptive, common, guidance, nfe_error, order, reporting, speed
from experiments.claims.common import ClaimOptions, Problems
from experiments.claims.ddpm_clock_mixture import called_with_labels
from experiments.common import results
from experiments.comparison import ground_truth
from experiments.comparison.problem import Problem, Settings
from solvers import SOLVERS, sample

pytestmark = pytest.mark.usefixtures("small_mixture")
SCRIPTS = {"order": order, "nfe_error": nfe_error, "guidance": guidance, "adaptive": adaptive, "speed": speed}


def run(script, *args):
    return CliRunner().invoke(script.main, [str(arg) for arg in args])


def options(out, seed=0):
    return ClaimOptions(models=(), n=1, seed=seed, out=out, overwrite=False, fast=True)


def row(solver, nfe, error, **more):
    """A row of a fabricated model, whose solution is known exactly."""
    spent = more.pop("spent", nfe)
    cell = {"model": "toy", "solver": solver, "grid": "logsnr", "nfe": nfe, "rtol": None} | more
    return {**cell, "spent": spent, "calls": spent, "rmse": error, "median": error} | {
        "known_rmse": 0.0,
        "known_median": more.get("known_median", 0.0),
        "solution_nfe": 100,
    }


def written(out, found, **about):
    """Rows as a script leaves them."""
    about = {"n": 2, "seed": 0, "sha256": {"toy": "0" * 64}, "clock": {"toy": "lam"}} | about
    made = {"command": "c", "versions": {}, "machine": "m", "commit": "0", "date": "d"}
    out.with_suffix(".json").write_text(json.dumps({"about": about, "made": [made], "rows": found}))
    return out


# What is computed of rows


@pytest.mark.parametrize("p", [1, 2.5, 4])
def test_the_order_of_a_power_is_its_exponent(p):
    line = [row("ddim", nfe, 3 * nfe**-p) for nfe in (24, 48, 96, 192)]
    assert [slope for _, _, slope in order.doublings(line)] == pytest.approx([p] * 3, abs=1e-12)
    assert order.last_certain(line) == pytest.approx(p, abs=1e-12)


def test_the_order_is_that_of_the_last_doubling_that_the_solution_can_judge():
    """Of those before the first error that is less than ten times that of the solution."""
    errors = {24: 1.0, 48: 0.5, 96: 0.5 / 8, 192: 0.5 / 8 / 2, 384: 0.04}
    line = [row("ddim", nfe, error, known_median=0.005) for nfe, error in errors.items()]
    assert [reporting.is_uncertain(each) for each in line] == [False, False, False, True, True]
    assert order.last_certain(line) == pytest.approx(3)
    assert order.last_certain(line[3:]) is None
    assert order.last_certain(line[:1]) is None


def test_what_is_claimed_is_what_the_registry_says():
    for solver in order.SOLVERS:
        low, high = order.claimed(solver)
        entry = SOLVERS[solver.partition("(")[0]]
        assert high == entry.order
        assert low == (entry.order if "start=single" in solver else entry.ramp_order or entry.order)
    assert order.claimed("unipc3") == (3, 4)


def test_a_slope_that_is_not_claimed_refutes(tmp_path):
    orders = {"ddim": 1.0, "dpm2": 2.1, "unipc3": 3.4}
    lines = [row(solver, nfe, nfe**-p) for solver, p in orders.items() for nfe in (24, 48, 96)]
    out = written(tmp_path / "a", lines)
    assert "**Held**: 3 slopes are within 0.10" in order.report(out)
    worse = [{**each, "median": each["nfe"] ** -1.8} if each["solver"] == "dpm2" else each for each in lines]
    assert "**Refuted** on toy by dpm2, whose slope is 1.80. Elsewhere it held: 2 slopes are within 0.00" in order.report(
        written(tmp_path / "a", worse)
    )


def test_a_model_of_labels_refutes_nothing_and_says_where_its_orders_end(tmp_path):
    errors = {24: 1e-3, 48: 1e-3 / 8, 96: 1e-3 / 64, 192: 1e-3 / 100}
    out = written(tmp_path / "a", [row("dpm3", nfe, error) for nfe, error in errors.items()], clock={"toy": "t"})
    text = order.report(out)
    assert "Refuted" not in text
    assert "is dpm3, whose slope is 0.64 at an error of 1e-05" in text


def test_several_times_less_than_ddim_with_twice_as_much(tmp_path):
    """By a multistep solver: that dpm2 is better still does not count; by each measure on its own."""
    found = [row("ddim", 10, 0.5), row("ddim", 20, 0.3), row("ddim", 50, 0.1), row("dpm2", 10, 0.01), row("dpmpp2m", 10, 0.12)]
    found = [{**each, "worst": each["rmse"]} for each in found]
    text = nfe_error.report(written(tmp_path / "a", found))
    assert "**Held**: 2.5 to 2.5 times, by 2 comparisons" in text
    assert "| toy | root mean square error | dpmpp2m | 0.12 | 0.30 | **2.5** | 50 |" in text
    found[-1]["rmse"] = 0.16
    text = nfe_error.report(written(tmp_path / "a", found))
    assert "**Refuted** on toy by the root mean square error: dpmpp2m at 10 has 1.9 times less of it than ddim at 20." in text
    assert "| toy | error of the median sample | dpmpp2m | 0.12 | 0.30 | **2.5** | 50 |" in text


def gaining(by_weight):
    """Rows of guidance: at each weight ddim errs 1 with every budget, and dpmpp2m and unipc3 these shares of it."""
    return [
        row(solver, nfe, error, guidance=weight, threshold=None)
        for weight, (second, fourth) in by_weight.items()
        for nfe in (10, 15, 20)
        for solver, error in (("ddim", 1.0), ("dpmpp2m", second), ("unipc3", fourth))
    ]


def test_a_gain_is_of_all_higher_orders_over_ddim(tmp_path):
    found = gaining({1.0: (0.5, 0.1), 2.0: (0.5, 0.2), 4.0: (0.4, 0.8)})
    at = {weight: line for (weight,), line in reporting.group_by(found, "guidance").items()}
    assert [guidance.gain(at[weight], 10) for weight in at] == pytest.approx([10, 5, 2.5])
    assert [guidance.pays_from(at[weight], 3) for weight in at] == ["10 NFE", "10 NFE", "nowhere"]
    assert guidance.best(at[4.0], 10)["solver"] == "dpmpp2m"
    assert "**Held**: from the least w to the largest the gain falls in 3 cases" in guidance.report(
        written(tmp_path / "a", found)
    )
    found = gaining({1.0: (0.5, 0.5), 4.0: (0.4, 0.8)})
    text = guidance.report(written(tmp_path / "a", found))
    assert "**Refuted** by a gain that goes from 2.0 to 2.5 times on toy with 10 evaluations; " in text


def test_an_order_pays_from_where_it_does_ever_after():
    line = [row("ddim", nfe, 1.0) for nfe in (5, 10, 15, 20)]
    higher = [row("dpmpp2m", nfe, error) for nfe, error in ((5, 0.5), (10, 2.0), (15, 0.9), (20, 0.3))]
    assert guidance.pays_from(line + higher, 2) == "15 NFE"


def test_a_rival_spends_no_more():
    planned = [
        row("dpm2", 10, 0.1),
        row("dpm2", 20, 0.001),
        row("unipc3", 10, 0.3),
        row("unipc3", 12, 0.2),
        row("dpm3", 18, 0.01),
    ]
    own = row("dpm23", None, 0.15, spent=17.9, rtol=0.01)
    assert adaptive.rival(own, planned) == planned[0]
    assert adaptive.rival({**own, "spent": 18.0}, planned) == planned[4]
    assert adaptive.rival({**own, "spent": 9.0}, planned) is None
    assert adaptive.matches([own, *planned]) == [(pytest.approx(1.5), own, planned[0])]


def test_an_adaptive_run_in_front_refutes(tmp_path):
    found = [row("dpm2", 10, 0.1), row("dpm23", None, 0.15, spent=12.0, rtol=0.01, grid="own")]
    assert "**Held**: 1 adaptive runs err 1.5 to 1.5 times as much" in adaptive.report(written(tmp_path / "a", found))
    found[-1]["median"] = 0.05
    text = adaptive.report(written(tmp_path / "a", found))
    assert "**Refuted** on toy by dpm23 at rtol 0.01, whose error is 0.050 with 12.0 evaluations, that of dpm2" in text


def test_ratios_that_differ_refute(tmp_path):
    cells = [
        row(solver, 24, 0.0) | {"ratio": ratio, "low": 1.0, "high": 2.0, "states": 2, "peak": 1.0}
        for solver, ratio in (("ddim", 1.02), ("unipc3", 1.11))
    ]
    slow = row("dpm23", None, 0.0, spent=30.0, rtol=0.01) | {"ratio": 3.0, "low": 1, "high": 4, "states": None, "peak": None}
    text = speed.report(written(tmp_path / "a", [*cells, slow]))
    assert "**Held**: planned solvers take 1.02 times (ddim) to 1.11 times (unipc3)" in text
    cells[1]["ratio"] = 1.2
    assert "**Refuted** by planned solvers" in speed.report(written(tmp_path / "a", [*cells, slow]))


def test_a_table_marks_the_least_and_what_is_not_sure():
    found = [row("ddim", 10, 0.5), row("ddim", 15, 0.02, known_median=0.01), row("dpm2", 10, 0.6)]
    found.append({**row("dpm2", 15, 0.0), "median": None})
    assert reporting.error_table(found).splitlines()[2:] == ["| ddim | **0.50** | **≈ 0.020** |", "| dpm2 | 0.60 | – |"]


def test_what_was_not_measured_is_open(tmp_path):
    failed = {"model": "toy", "solver": "ddim", "grid": "logsnr", "nfe": 10, "rtol": None, "error": "out of memory"}
    out = written(tmp_path / "a", [{**failed, "guidance": 1.0, "threshold": None}])
    for script in SCRIPTS.values():
        assert script.report(out).startswith("**Open**: ")


# What is measured


def test_a_row_is_what_an_independent_run_gives(tmp_path):
    """Guided: the difference from the solution of that ODE."""
    problems = Problems(options(tmp_path / "a", seed=3), 1e-5, n=2)
    found = problems.measure(common.claim_cells(["mixture"], ["dpmpp2m"], [10], guidance=2.0)[0])
    mixture32, mixture64 = (pretrained.load("mixture", dtype).model for dtype in (torch.float32, torch.float64))
    made = sample(mixture32.labelled([3, 4]).guided(2.0), shape=(2, 1, 28, 28), solver="dpmpp2m", nfe=10, seed=3)
    noise = torch.stack([torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]).double()
    model, schedule = mixture64.labelled([3, 4]).guided(2.0), mixture64.schedule
    first, last = schedule.lam_min, schedule.lam_max
    exact = accurate(model, noise * float(schedule.sigma(first)), first, last, 1e-5)
    off = (made.x - exact).flatten(1).square().mean(1).sqrt().numpy()
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(off**2)), abs=1e-6)
    assert 0 < found["known_rmse"] < 1e-3
    assert (found["spent"], found["calls"]) == (10, 20)
    assert "seconds" not in found
    assert len(list((tmp_path / "solutions").iterdir())) == 1


def test_a_problem_is_solved_once(tmp_path, monkeypatch):
    problems = Problems(options(tmp_path / "a"), 1e-2, n=1)
    cells = common.claim_cells(["mixture"], ["ddim", "dpm2"], [3, 4])
    found = [problems.measure(cell) for cell in cells]
    assert "skipped" in found[2]  # dpm2 with 3
    monkeypatch.setattr(ground_truth, "_solve", None)
    again = Problems(options(tmp_path / "b"), 1e-2, n=1)
    assert [again.measure(cell) for cell in cells] == found


def test_a_network_of_labels_is_the_same_at_labels_and_a_little_off_between():
    """Its clock is smooth, the schedule's has a kink at each label."""
    labelled, mixture64 = called_with_labels("mixture"), pretrained.load("mixture", torch.float64).model
    schedule = labelled.schedule
    x = torch.randn(1, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 1, 2, 500, 998, 999):
        lam = float(schedule.lam(t))
        assert torch.allclose(labelled(x, lam), mixture64(x, lam), rtol=0, atol=1e-9)
    between = float(schedule.lam(1.5))
    off = (labelled(x, between) - mixture64(x, between)).abs().max()
    assert 1e-7 < off < 1e-1


def test_the_bare_network_is_called_as_the_solver_calls_it(monkeypatch):
    """So often, and with as much."""
    problem = Problem(Settings("mixture", n=2, batch=2))
    network, seen = problem.model.network, []

    def forward(self, x, lam, y=None):
        seen.append((x.shape, x.dtype, lam.shape, y.tolist(), torch.is_grad_enabled()))
        return x

    monkeypatch.setattr(type(network), "forward", forward)
    call_network = speed.network_alone(problem)
    del seen[:]
    call_network(30)
    assert len(seen) == 30
    problem.run(problem.prepare("ddim", "logsnr", 4))
    assert len(seen) == 34
    assert len({str(each) for each in seen}) == 1


def test_the_states_of_a_plan():
    problem = Problem(Settings("mixture", n=1))
    cells = common.claim_cells(["mixture"], ["ddim", "dpmpp2m", "unipc3", "dpm23"], [12], [0.1])
    states = [speed.memory(problem, {name: cell[name] for name in common.CONTENDER}) for cell in cells]
    assert states == [2, 3, 5, None]


# The scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_resumes(name, tmp_path, monkeypatch):
    script, out = SCRIPTS[name], tmp_path / name
    result = run(script, "--fast", "--model", "mixture", "--out", out)
    assert result.exit_code == 0, result.output
    assert {f"{name}.csv", f"{name}.json", f"{name}.png"} <= {path.name for path in tmp_path.iterdir()}
    about, found = results.read(out)
    assert {each["model"] for each in found} == {"mixture"}
    text = script.report(out)
    assert text in result.output
    assert text.startswith(("**Held**: ", "**Refuted** "))
    assert about["sha256"]["mixture"][:12] in text

    def solve(*args, **kwargs):
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(Problems, "solution", solve)
    monkeypatch.setattr(Problem, "run", solve)
    again = run(script, "--fast", "--model", "mixture", "--out", out)
    assert again.exit_code == 0, again.output
    assert results.read(out)[1] == found
    other = run(script, "--fast", "--model", "mixture", "--seed", 7, "--out", out)
    assert other.exit_code == 2
    assert "was made with another seed" in other.output


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_on_the_network_and_the_mixture(name, tmp_path):
    result = run(SCRIPTS[name], "--fast", "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert {each["model"] for each in results.read(tmp_path / name)[1]} >= set(common.MODELS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_refuses_what_is_no_model_before_it_writes(name, tmp_path):
    result = run(SCRIPTS[name], "--fast", "--model", "nonesuch", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "no model 'nonesuch'" in result.output
    assert not list(tmp_path.iterdir())


def test_guidance_needs_labels(tmp_path, monkeypatch):
    (tmp_path / "unlabelled.py").write_text(
        "from diffode import EpsModel, schedules\n"
        "model = EpsModel(lambda x, t: x, schedules.ddpm_linear(), 'noise', shape=(1, 2, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run(guidance, "--fast", "--model", "unlabelled:model", "--out", "a")
    assert result.exit_code == 2
    assert "needs labels to guide to" in result.output
    assert {path.name for path in Path().iterdir()} <= {"unlabelled.py", "__pycache__"}


# The committed results


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_committed_rows_are_a_whole_run_on_what_is_shipped(name):
    about, found = results.read(documents.RESULTS / name)
    assert set(common.MODELS) <= {each["model"] for each in found}
    assert not [each for each in found if "error" in each]
    assert "--fast" not in " ".join(made["command"] for made in about["made"])
    shipped = {model: sha256_of(ASSETS / "weights" / f"{model}.safetensors") for model in common.MODELS}
    assert shipped.items() <= about["sha256"].items()


@pytest.mark.parametrize("name", ["order", "guidance", "adaptive"])
def test_what_is_claimed_held_in_the_committed_rows(name):
    assert SCRIPTS[name].report(documents.RESULTS / name).startswith("**Held**: ")


def test_the_published_third_order_is_of_order_two_on_the_network():
    """And the exact weights are not, in the committed rows."""
    found = [each for each in results.read(documents.RESULTS / "order")[1] if each["model"] == "fashion"]
    at = {(each["solver"], each["nfe"]): each["median"] for each in found}
    slopes = {solver: np.log2(at[solver, 384] / at[solver, 768]) for solver in ("dpmpp3m-published", "dpmpp3m(start=single)")}
    assert list(slopes.values()) == pytest.approx([2, 3], abs=0.15)
