"""Budgets: steps from evaluations by arithmetic, plans made once, and what a prepared solver is."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, schedules
from diffode.noise import SeededNoise
from solvers import ALIASES, SOLVERS, Budget, Hooks, Plan, encode, find, sample
from solvers.registry import all_names

SCHEDULE = schedules.ddpm_linear()
STARTING = ("pndm", "dpm-fast")  # whose first steps cost more, or whose last ones differ


@pytest.fixture
def plans(monkeypatch):
    """The plans that have been made."""
    made, check = [], Plan.__post_init__
    monkeypatch.setattr(Plan, "__post_init__", lambda plan: (check(plan), made.append(plan))[0])
    return made


def model():
    return EpsModel(lambda x, t: 0.1 * x, SCHEDULE)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("solver", [name for name in all_names() if find(name).has_plan])
def test_a_plan_is_made_once(solver, denoise, plans):
    """By name, with any budget: sample makes one table, and runs it."""
    step = find(solver).nfe_per_step
    for budget in ({"nfe": 4 * step + denoise}, {"steps": 5}, {}):
        if solver == "pndm" and "nfe" in budget:
            continue  # see below
        plans.clear()
        result = sample(model(), solver=solver, shape=(2, 3), denoise=denoise, **budget)
        assert len(plans) == 1
        assert result.plan is plans[0]
        assert result.nfe == budget.get("nfe", result.nfe)


def test_a_start_that_costs_more_is_found_with_a_second_plan(plans):
    for solver, options in (("pndm", {}), ("unipc3", {"start": "single"}), ("dpmpp3m", {"start": "single"})):
        plans.clear()
        assert find(solver).prepare(Budget(nfe=50), SCHEDULE, **options).nfe == 50
        assert len(plans) == 2


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("solver", [name for name in SOLVERS if find(name).has_plan])
def test_evaluations_are_spent_exactly_or_refused_with_the_nearest(solver, denoise):
    """What prepare says can be spent is what enumeration of the steps says, for every small number."""
    entry, possible = find(solver), {}
    for steps in range(1, 14):
        if not (solver == "dpm-fast" or (steps == 1 and denoise)):
            lams = grid.make("logsnr", SCHEDULE, steps, denoise=denoise)
            possible[entry.on(lams, SCHEDULE).nfe] = steps
    for nfe in range(2, 13):
        budget = Budget(nfe=nfe, denoise=denoise)
        if nfe in possible or solver == "dpm-fast":
            prepared = entry.prepare(budget, SCHEDULE)
            assert prepared.nfe == prepared.plan.nfe == nfe
            assert len(prepared.grid) - 1 == possible.get(nfe, len(prepared.grid) - 1)
        else:
            with pytest.raises(InputError, match=f"cannot spend exactly {nfe} evaluations: the nearest it can is"):
                entry.prepare(budget, SCHEDULE)


def test_a_prepared_solver_is_handed_down(plans):
    prepared = find("unipc3").prepare(Budget(nfe=6, grid="karras"), SCHEDULE, variant="bh1")
    first, second = (sample(model(), solver=prepared, shape=(2, 3), seed=seed) for seed in (0, 5))
    assert len(plans) == 1
    assert first.plan is second.plan is prepared.plan
    assert torch.equal(first.x, sample(model(), solver="unipc3", nfe=6, grid="karras", variant="bh1", shape=(2, 3)).x)
    back = find("unipc3").prepare(Budget(nfe=6), SCHEDULE, backwards=True)
    assert torch.equal(encode(model(), first.x, solver=back).x, encode(model(), first.x, solver="unipc3", nfe=6).x)
    for more in ({"nfe": 6}, {"steps": 2}, {"grid": "time"}, {"denoise": True}, {"variant": "bh1"}):
        with pytest.raises(InputError, match="has been prepared: leave nfe, steps, grid"):
            sample(model(), solver=prepared, shape=(2, 3), **more)


@pytest.mark.parametrize(
    ("solver", "budget", "options", "what"),
    [
        ("ddim", {"nfe": 5, "steps": 5}, {}, "either nfe or steps"),
        ("ddim", {"nfe": 200_000}, {}, "whole number from 1 to 100000"),
        ("dpm-fast", {"nfe": 10}, {"tail": 2}, "nfe decides the option tail"),
        ("dpm23", {"nfe": 10}, {}, "adaptive and chooses its own number of evaluations"),
        ("dpm23", {"steps": 10}, {}, "chooses its own steps"),
        ("dpm23", {"grid": [-3.0, 0.0, 3.0]}, {}, "chooses its own steps"),
        ("dopri5", {"denoise": True}, {}, "over finite λ only"),
        ("explicit_adams", {"nfe": 10}, {}, "give steps instead of nfe"),
        ("ddim", {"nfe": 7, "grid": [-3.0, 0.0, 3.0]}, {}, "spends 2 evaluations on the grid given, not 7"),
        ("ddim", {}, {"order": 3}, "no option 'order'"),
    ],
)
def test_budgets_that_cannot_be(solver, budget, options, what):
    with pytest.raises(InputError, match=what):
        find(solver).prepare(Budget(**budget), SCHEDULE, **options)


def test_a_ready_plan_has_one_grid():
    plan = find("dpmpp2m").plan(grid.make("karras", SCHEDULE, 4), SCHEDULE)
    entry = find(plan)
    assert entry.prepare(Budget(), SCHEDULE).plan is plan
    assert entry.prepare(Budget(grid=plan.grid), SCHEDULE).plan is plan
    for budget in (Budget(nfe=4), Budget(steps=4), Budget(grid="karras"), Budget(denoise=True), Budget(grid=[-1.0, 1.0])):
        with pytest.raises(InputError, match="leave nfe, steps, grid and denoise out"):
            entry.prepare(budget, SCHEDULE)
    with pytest.raises(InputError, match="take a model on that path"):
        entry.prepare(Budget(), schedules.edm())


def test_whole_labels_are_snapped_before_the_plan_is_made():
    prepared = find("dpmpp2m").prepare(Budget(nfe=10), SCHEDULE, labels_only=True)
    labels = SCHEDULE.t(prepared.grid)
    np.testing.assert_allclose(labels, np.round(labels), rtol=0, atol=1e-9)
    assert prepared.plan.grid == prepared.grid.tolist()


@pytest.mark.parametrize(("solver", "used"), [("dpm23", "on_commit"), ("dpm23", "trajectory"), ("dopri5", "on_step")])
def test_hooks_that_a_solver_has_no_use_for_are_refused(solver, used):
    hooks = {"on_commit": lambda u, lam: u, "on_step": print, "trajectory": True}
    with pytest.raises(InputError, match=f"no committed states of a whole batch to hand to {used}"):
        sample(model(), solver=solver, shape=(2, 3), **{used: hooks[used]})


def test_an_alias_is_the_table_it_is_named_after():
    lams = grid.make("logsnr", SCHEDULE, 7)
    for alias, entry in ALIASES.items():
        options = {"euler-ancestral": {"eta": 1.0}, "lms": {"order": 4}}.get(alias, {})
        plan = SOLVERS[entry.alias_of].plan(lams, SCHEDULE, **options)
        assert entry.plan(lams, SCHEDULE) == dataclasses.replace(plan, solver=alias)


def test_plans_of_an_adaptive_solver_are_made_when_they_are_asked_for(plans):
    result = sample(model(), solver="dpm23", rtol=0.05, atol=0.05, shape=(5, 3))
    assert not plans
    assert result.adaptive.nfe[0] > 0
    assert not plans
    assert len(result.adaptive.plans) == 5
    assert len(plans) == len(set(result.adaptive.grids))
    assert result.adaptive.plans is result.adaptive.plans


def test_what_a_person_reads():
    result = sample(model(), solver="unipc3", nfe=6, shape=(2, 3))
    assert repr(result) == "Result(x (2, 3) float32 on cpu, 6 NFE, 6 network calls, unipc3)"
    assert repr(result.plan) == "unipc3: 6 steps, 6 NFE, memory 4, prediction data, path vp"
    assert repr(find("unipc3")) == "Solver(unipc3: order 4, 1 NFE per step, Zhao et al. 2023)"
    assert "dpm23" in repr(find("dpm23"))
    assert "its own steps" in repr(find("dpm23"))
    guided = model().replace(classes=3).labelled([1, 2]).guided(2.0).clipped()
    assert repr(guided).endswith("predicts noise on ddpm_linear, 3 classes, condition y, guidance 2, 1 hooks on x̂0)")


def test_a_run_draws_its_noise_from_the_hooks():
    prepared = find("ddpm").prepare(Budget(steps=3), SCHEDULE)
    x = torch.ones(2, 3)
    assert torch.equal(*(prepared.solve(model(), x, Hooks(noise=SeededNoise([4, 5]))).x for _ in range(2)))
    with pytest.raises(InputError, match="ddpm draws noise"):
        prepared.solve(model(), x)


def test_preparing_takes_no_longer_for_more_evaluations_than_planning_does():
    """No search: the time of prepare is that of one plan, here with room for a slow machine."""
    entry, lams = find("unipc3"), grid.make("logsnr", SCHEDULE, 50)
    entry.prepare(Budget(nfe=50), SCHEDULE)
    began = time.process_time()
    for _ in range(5):
        entry.plan(lams, SCHEDULE)
    one = time.process_time() - began
    began = time.process_time()
    for _ in range(5):
        entry.prepare(Budget(nfe=50), SCHEDULE)
    assert time.process_time() - began < 3 * one
