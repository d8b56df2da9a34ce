"""Plan: it checks its own mathematics, knows its memory, and is written to JSON and read from it exactly."""

import dataclasses
import json
import pickle
import time

import numpy as np
import pytest
import torch

from diffode import InputError, grid, schedules
from experiments.sampling.jobs import digest
from solvers import SOLVERS, Plan, Stage, sample
from solvers.registry import find

PLANNED = [name for name, entry in SOLVERS.items() if entry.has_plan]


def plan_of(*stages, prediction="noise"):
    return Plan("test", schedules.ddpm_linear().path, prediction, stages)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("dpmpp2m", {}), ("dpm3", {}), ("ddim", {"eta": 0.7}), ("unipc3", {}), ("sde-dpmpp2m", {}), ("heun-churn", {})],
)
def test_a_plan_checks_its_own_mathematics(solver, options):
    """Every number of every row matters: its sign, its size, and that it is there."""
    good = find(solver).plan(np.linspace(-2, 2, 4), schedules.ddpm_linear(), **options)
    for row, stage in enumerate(good.stages[1:], 1):
        wrong = [{"x": factor * stage.x} for factor in (-1, 1.01)] + [{"noise": 1.01 * stage.noise}] * bool(stage.noise)
        wrong += [{"c": {**stage.c, j: factor * c}} for j, c in stage.c.items() for factor in (-1, 0, 1.01)]
        for change in wrong:
            stages = (*good.stages[:row], dataclasses.replace(stage, **change), *good.stages[row + 1 :])
            with pytest.raises(InputError, match="transfer law"):
                Plan("broken", good.path, good.prediction, stages)


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
    assert {name: find(name).plan(lams, schedule).memory for name in ("ddim", "dpm2", "dpm3", "dpmpp2m")} == {
        "ddim": 1,
        "dpm2": 1,
        "dpm3": 2,
        "dpmpp2m": 2,
    }


@pytest.mark.parametrize("solver", PLANNED)
def test_a_plan_is_read_as_it_was_written(solver, tmp_path):
    schedule = schedules.vp_linear()
    plan = find(solver).plan(grid.make("karras", schedule, 6, denoise=True), schedule)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    np.testing.assert_array_equal(Plan.load(tmp_path / "plan.json").matrix(), plan.matrix())


def test_a_plan_from_a_file_draws_the_same_images(tmp_path, toy):
    model = toy("vp")
    kw = {"shape": (3, 1, 2, 3), "dtype": torch.float64, "seed": 4}
    first = sample(model, solver="sde-dpmpp2m", nfe=7, **kw)
    first.plan.save(tmp_path / "plan.json")
    assert torch.equal(sample(model, solver=str(tmp_path / "plan.json"), **kw).x, first.x)
    assert torch.equal(sample(model, solver=first.plan, **kw).x, first.x)
    with pytest.raises(InputError, match="its own grid"):
        sample(model, solver=first.plan, nfe=7, **kw)
    with pytest.raises(InputError, match="on the path vp"):
        sample(toy("flow"), solver=first.plan, **kw)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda made: made.pop("stages"), "KeyError"),
        (lambda made: made.update(path="vpp"), "KeyError"),
        (lambda made: made["stages"][1].update(x="1"), "must be a number|ValueError|transfer law"),
        (lambda made: made["stages"][2].update(x=made["stages"][2]["x"] * 1.001), "transfer law"),
        (lambda made: made["stages"][1].update(surprise=1), "TypeError"),
        (lambda made: made["stages"][1]["c"].update({"9": 1.0}), "evaluations"),
        (lambda made: made["stages"][1]["c"].update({"00": 1.0}), "'00'"),
        (lambda made: made["stages"][1].update(draw=10**9, noise=1e-300), "draw 1000000000"),
        (lambda made: made["stages"][1].update(draw=10**30, noise=1e-300), "31 digits"),
        (lambda made: made["stages"][1].update(lam="9" * 5000), "transfer law"),
        (lambda made: made.update(solver=["a\x1b" * 5000]), "solver"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(change, what, tmp_path):
    path, schedule = tmp_path / "plan.json", schedules.vp_linear()
    find("dpm2").plan(grid.make("logsnr", schedule, 3), schedule).save(path)
    made = json.loads(path.read_text())
    change(made)
    path.write_text(json.dumps(made))
    with pytest.raises(InputError, match=what) as error:
        Plan.load(path)
    assert len(str(error.value)) < 400


def test_a_plan_of_many_rows_takes_memory_and_time_in_proportion(tmp_path):
    """Its digest and its first line, too; a table of all rows by all evaluations would be 1.1 GiB."""
    schedule = schedules.vp_linear()
    plan = find("ddim").plan(grid.make("logsnr", schedule, 12_000), schedule)
    began = time.perf_counter()
    assert "12000 steps, 12000 NFE, memory 1," in repr(plan)
    assert len(digest(plan)) == 64
    with pytest.raises(InputError, match="too large for one array"):
        plan.matrix()
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_file_that_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match="is not a plan"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(InputError, match="there is no plan"):
        Plan.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    "change", [{"lam": np.nan}, {"evaluate": 2}, {"commit": 1}, {"draw": 0}, {"draw": 1.5, "noise": 0.1}, {"x": np.nan}]
)
def test_a_stage_is_what_it_is_said_to_be(change):
    good = find("ddim").plan(np.linspace(-2, 2, 4), schedules.edm())

    def changed():
        stages = (*good.stages[:2], dataclasses.replace(good.stages[2], **change), *good.stages[3:])
        return dataclasses.replace(good, stages=stages)

    with pytest.raises(InputError):
        changed()


def test_a_plan_cannot_leave_an_infinite_sigma():
    with pytest.raises(InputError), np.errstate(all="ignore"):
        find("ddim").plan([-np.inf, 0.0, 1.0], schedules.edm())


def test_a_plan_is_pickled():
    plan = find("unipc2").plan(np.linspace(-2, 2, 4), schedules.flow())
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_are_tensors_run_like_others(dtype, toy):
    model, plan = toy("vp"), find("sde-dpmpp2m").plan(np.linspace(-2, 2, 6), schedules.vp_linear())

    def tensor(number):
        return torch.tensor(number, dtype=dtype)

    stages = [
        dataclasses.replace(s, x=tensor(s.x), c={j: tensor(c) for j, c in s.c.items()}, noise=tensor(s.noise) if s.draw else 0.0)
        for s in plan.stages
    ]
    tuned = dataclasses.replace(plan, stages=tuple(stages))
    kw = {"shape": (2, 1, 2, 3), "dtype": torch.float64}
    torch.testing.assert_close(sample(model, solver=tuned, **kw).x, sample(model, solver=plan, **kw).x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"noise": 1.0, "draw": 1}, {"noise": 1e200, "draw": 1}, {"x": 1e200}, {"x": 0.0, "c": {}}])
def test_a_last_row_that_cannot_be_is_refused_in_words(change):
    """At σ = 0 and with numbers whose squares overflow, as everywhere."""
    for last in (np.inf, 2.0):
        good = find("dpmpp2m").plan([-2.0, 0.0, 1.0, last], schedules.vp_linear())
        rows = (*good.stages[:-1], dataclasses.replace(good.stages[-1], **change))
        with pytest.raises(InputError, match="transfer law"):
            dataclasses.replace(good, stages=rows)
