"""verify: every solver keeps its claims, and each claim has a solver that breaks it."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from diffode import InputError, schedules
from diffode import grid as grids
from solvers import SOLVERS, Prepared, Solver
from solvers.ddim import ddim
from solvers.dpm_solver import dpm2, dpm3
from solvers.hooks import NO_HOOKS
from solvers.registry import all_names, find
from solvers.singlestep import single_steps
from solvers.transfer import PlanBuilder
from solvers.verify import CLAIMS, checks, problem, verify
from tests.quick import QuickMixture

original = problem.mixture


@cache
def quick_mixture(path, dtype):
    """That of float32 stays, whose bits the claim of batches is about."""
    return QuickMixture.of(original(path, dtype)) if dtype == torch.float64 else original(path, dtype)


quick_trajectories = cache(problem.trajectories.__wrapped__)


@pytest.fixture
def quick(monkeypatch):
    """The same claims of the same mixture, evaluated four times as fast."""
    monkeypatch.setattr(problem, "mixture", quick_mixture)
    monkeypatch.setattr(checks, "trajectories", quick_trajectories)


ONE_OF_EACH_KIND = (
    *(
        "ddpm",
        "ddim",
        "dpm2",
        "dpm3",
        "dpmpp2m",
        "dpmpp2s",
        "unipc3",
        "deis-rho",
        "ipndm",
        "pndm",
        "heun",
        "heun-churn",
        "rk:rk4",
    ),
    *("sde-dpmpp2m", "sa-solver", "dpmpp2m+unic", "dpm12", "dopri5", "rk4", "euler-lambda"),
)


@pytest.mark.parametrize(
    "solver", [name if name in ONE_OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in all_names()]
)
def test_every_solver_keeps_its_claims(solver, quick):
    """One of each kind at each commit, since test_order measures the orders of all."""
    lines = []
    assert verify([solver], lines.append), "\n".join(lines)


@pytest.mark.slow
def test_every_solver_keeps_its_claims_as_users_measure_them():
    lines = []
    assert verify([], lines.append), "\n".join(lines)


# What breaks a claim


def solve_with(name, model, x, grid, hooks):
    return find(name).on(grid, model.schedule).solve(model, x, hooks)


@dataclass(frozen=True)
class SpoiledRun(Prepared):
    """dpm2 on a grid, run by how(solve, model, x, grid, hooks), solve being that of dpm2."""

    how: Callable = None

    def solve(self, model, x, hooks=NO_HOOKS):
        return self.how(partial(solve_with, "dpm2"), model, x, self.grid, hooks)


@dataclass(frozen=True, repr=False)
class Spoiled(Solver):
    how: Callable = None

    def on(self, grid, schedule, **options):
        return SpoiledRun(self, np.asarray(grid), options, None, how=self.how)


def spoiled(how):
    return Spoiled("spoiled", dpm2, 2, 2, "none", how=how)


def built(build, order=2, evaluations=2):
    return Solver("built", build, order, evaluations, "none")


def unbalanced(grid, schedule):
    """dpm2 with a last weight of 1.1 for 1, and one that makes up for it in the sum."""
    return single_steps("unbalanced", grid, schedule, "noise", lambda h: [(0.5, {0: 1.0}), (1.0, {0: -0.1, 1: 1.1})])


def remembering():
    """Another method every second time."""
    times = itertools.count()
    return lambda grid, schedule: (dpm3 if next(times) % 2 else dpm2)(grid, schedule)


def one_way(grid, schedule):
    """Of order 2 forwards and 1 backwards."""
    return (dpm2 if grid[0] < grid[-1] else ddim)(grid, schedule)


def extrapolating(grid, schedule):
    """An extrapolation over the last step even where that has no finite length."""
    builder, made = PlanBuilder(schedule.path, "data", grid[0]), []
    for lam in grid[1:]:
        made.append(builder.evaluate())
        builder.move(lam, {made[-1]: 1.5, made[-2]: -0.5} if len(made) > 1 else {made[-1]: 1.0})
    return builder.plan("extrapolating")


def finite_only(grid, schedule):
    if not np.isfinite(grid).all():
        raise InputError("finite_only has finite ends")
    return dpm2(grid, schedule)


def with_commit(change):
    return spoiled(lambda solve, model, x, grid, hooks: solve(model, x, grid, replace(hooks, on_commit=change)))


def by_form(solve, model, x, grid, hooks):
    return (partial(solve_with, "dpm3") if model.predicts == "noise" else solve)(model, x, grid, hooks)


def extra_call(solve, model, x, grid, hooks):
    """One more call of the network, past the model that counts."""
    model.network(x, torch.full((len(x),), float(grid[0]), dtype=x.dtype))
    return solve(model, x, grid, hooks)


def nan(solve, model, x, grid, hooks):
    return replace(solve(model, x, grid[np.isfinite(grid)], hooks), x=x * np.nan)


def careless(model, x, grid, hooks, *, rtol, atol):
    """dpm23, without heed to its tolerance."""
    return find("dpm23").integrate(model, x, grid, hooks, rtol=0.1, atol=0.1)


BROKEN = [
    ("order", built(unbalanced)),
    ("order", replace(SOLVERS["dpm2"], order=3)),
    ("order", replace(SOLVERS["dpm3"], order=2)),
    ("order", replace(SOLVERS["ddpm"], order=2)),
    ("order", replace(SOLVERS["dpm23"], name="careless", integrate=careless)),
    ("order", replace(SOLVERS["dpmpp3m-published"], order=3)),
    ("as started", replace(SOLVERS["dpmpp3m"], ramp_order=0)),
    ("as started", replace(SOLVERS["unipc2"], ramp_order=2)),
    ("forms", built(remembering())),
    ("forms", spoiled(by_form)),
    ("round trip", built(one_way)),
    ("batch", built(remembering())),
    ("batch", with_commit(lambda u, lam: u + 1e-6 * u.mean(0))),
    ("NFE", replace(SOLVERS["dpm2"], nfe_per_step=1)),
    ("NFE", replace(SOLVERS["dpm-fast"], nfe_per_step=2)),
    ("NFE", spoiled(extra_call)),
    ("σ = 0", built(extrapolating, 2, 1)),
    ("σ = 0", built(finite_only)),
    ("float32", with_commit(lambda u, lam: u.bfloat16().to(u.dtype) if u.dtype == torch.float32 else u)),
    *((claim, spoiled(nan)) for claim in CLAIMS if claim not in ("as started", "NFE")),
]


@pytest.mark.parametrize(("claim", "entry"), BROKEN, ids=[f"{claim}-{entry.name}" for claim, entry in BROKEN])
def test_a_broken_claim_is_seen(claim, entry):
    check = CLAIMS[claim](entry)
    assert not check.ok
    assert check.measured
    assert check.claimed


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_breaks_it_is_what_was_spoiled(claim):
    """The same solvers, spoiled in nothing, keep every claim."""
    for entry in (spoiled(lambda solve, *args: solve(*args)), built(dpm2)):
        assert CLAIMS[claim](entry).ok


# What it says


def test_the_table(monkeypatch):
    monkeypatch.setitem(SOLVERS, "dpm2", replace(SOLVERS["dpm2"], order=3))
    lines = []
    assert not verify(["ddim", "dpm2", "dpm1"], lines.append)
    head, ddim, dpm2, reason, dpm1, summary = lines
    for claim in CLAIMS:
        assert claim in head
    assert ddim.startswith("ddim")
    assert "✓ 1: 1.0" in ddim
    assert "✗" not in ddim + dpm1
    assert "✗ 3: 2.0" in dpm2
    assert "order of dpm2: claimed 3 ± 0.15, measured 3: 2.0" in reason
    assert dpm1.count("–") == 1
    assert summary.startswith("23 of 24 claims hold")


def test_a_solver_that_refuses_to_run_is_said_to():
    lines = []

    def refuse(grid, schedule):
        raise InputError("not today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOLVERS, "refuse", built(refuse))
        assert not verify(["refuse"], lines.append)
    assert sum("not today" in line for line in lines) >= 5


def test_an_unknown_name_is_refused_before_anything_is_measured():
    lines = []
    with pytest.raises(InputError, match="unknown solver 'ddjm'"):
        verify(["dpm1", "ddjm"], lines.append)
    assert not lines


def test_all_names_are_all_there_is():
    assert set(SOLVERS) < {*all_names()}
    assert "dpmpp3m+unic" in [*all_names()]
    assert all(find(name) for name in all_names())


# What users bring


MODULE = """
from functools import partial

from solvers import Solver
from solvers.singlestep import single_steps


def thirds(weight, grid, schedule):
    rows = [(2 / 3, {0: 1.0}), (1.0, {0: 1 - weight, 1: weight})]
    return single_steps("thirds", grid, schedule, "data", lambda h: rows)


right = Solver("right", partial(thirds, 3 / 4), 2, 2, "mine")
wrong = Solver("wrong", partial(thirds, 1 / 2), 2, 2, "mine")
"""


def test_a_solver_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "thirds.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "thirds", None)  # so that what is imported here is forgotten again
    del sys.modules["thirds"]
    lines = []
    assert verify(["thirds:right"], lines.append), "\n".join(lines)
    assert not verify(["thirds:wrong"], lines.append)
    assert any("order of wrong" in line for line in lines)


FINITE, TO_DATA = partial(grids.make, "logsnr", steps=8), partial(grids.make, "logsnr", steps=8, denoise=True)


@pytest.mark.parametrize(
    ("solver", "schedule", "grid"),
    [
        ("dpmpp2m", schedules.ddpm_linear(), FINITE),
        ("unipc3", schedules.flow(), TO_DATA),
        ("ddpm", schedules.edm(), FINITE),
        ("dpmpp2m", schedules.flow(t_noisy=1.0), partial(grids.make, "time", steps=8, denoise=True)),
        ("dpm3", schedules.cosine(), lambda schedule: FINITE(schedule=schedule)[::-1]),
    ],
)
def test_a_plan_from_a_file(solver, schedule, grid, tmp_path):
    find(solver).plan(grid(schedule=schedule), schedule).save(tmp_path / "plan.json")
    lines = []
    assert verify([str(tmp_path / "plan.json")], lines.append), "\n".join(lines)
    assert "one grid" in lines[1]
