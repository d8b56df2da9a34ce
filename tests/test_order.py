"""Order of what `verify` does not measure: options, exact starting values, the last steps, the way back.

That every solver has its declared order, on two paths and two grids, is the first claim of `verify`, which test_verify.py runs on
all of them. Here a few are measured on the other two pairs of path and grid by default, and all on all four with `-m slow`.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import schedules
from diffode.ode import accurate
from solvers import SOLVERS, run
from solvers.gaussian import exact, variance
from solvers.hooks import Hooks
from solvers.registry import find
from tests import reference
from tests.quick import quick

PLANNED = [name for name, entry in SOLVERS.items() if entry.has_plan]
ODE = [name for name in PLANNED if not find(name).stochastic]
STOCHASTIC = [name for name in PLANNED if find(name).stochastic]
CORRECTED = [f"{name}+unic" for name in ODE if find(name).unic_order]
MULTISTEP = [name for name in ODE if "start" in find(name).options]
LAM_S, LAM_T = -1.0, 1.0
SCHEDULES = {"vp": schedules.vp_linear(), "flow": schedules.flow()}
EVERYWHERE = [(path, spacing) for path in SCHEDULES for spacing in ("logsnr", "karras")]


def sampled(cases, by_default):
    """All cases, each a tuple or a single value, for `-m slow`; those of `by_default` always."""
    assert set(by_default) <= set(cases)
    every = {case: case if isinstance(case, tuple) else (case,) for case in cases}
    return [pytest.param(*values, marks=[] if case in by_default else pytest.mark.slow) for case, values in every.items()]


class Trajectories:
    """Eight states of a mixture at LAM_S, and the same trajectories at any later λ."""

    def __init__(self, model):
        self.model = model
        generator = torch.Generator().manual_seed(0)
        x0 = model.network.sample(8, seed=1)
        z = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
        self.x = float(model.schedule.alpha(LAM_S)) * x0 + float(model.schedule.sigma(LAM_S)) * z
        self.known = {LAM_S: self.x}

    def at(self, lam):
        if lam not in self.known:
            self.known[lam] = accurate(self.model, self.x, LAM_S, lam, 1e-13)
        return self.known[lam]

    def solve(self, entry, lams, exact_states=0, **options):
        """The solver's final states; its first `exact_states` states replaced by the true ones."""
        true = {lam: self.at(lam) for lam in lams[:exact_states]}
        plan = entry.plan(lams, self.model.schedule, **options)
        return run(plan, self.model, self.x, Hooks(on_commit=lambda u, lam: true.get(lam, u))).x

    def error(self, entry, lams, **options):
        return rms(self.solve(entry, lams, **options) - self.at(LAM_T))


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.fixture(scope="module")
def trajectories(toy):
    return {path: Trajectories(quick(toy(path, schedule))) for path, schedule in SCHEDULES.items()}


def between(spacing, steps):
    """LAM_S to LAM_T in equal steps of λ, or of σ̄^(1/7)."""
    if spacing == "logsnr":
        return np.linspace(LAM_S, LAM_T, steps + 1)
    values = -7 * np.log(np.linspace(np.exp(-LAM_S / 7), np.exp(-LAM_T / 7), steps + 1))
    return np.array([LAM_S, *values[1:-1], LAM_T])


def declared(entry):
    """The order, and how closely it can be measured: the 17 conditions of order 5 hold exactly for rk:dopri5 (it checks them),
    but its constant is so small that orders 6 and 7 outweigh it until rounding does."""
    return pytest.approx(entry.order, abs=0.5 if entry.name == "rk:dopri5" else 0.15)


def slope(errors):
    return np.log2(errors[0] / errors[1])


def measured(trajectory, entry, spacing, first=13, **options):
    """Of the first doubling from `first` steps that ends below 1e-11, where rounding is still far, or of the last affordable."""
    first *= 2 if "published" in entry.name else 1  # the term by which published third-order formulas are of order 2 is small
    most, steps = first * {1: 4, 2: 8, 3: 8, 4: 8, 5: 32}[entry.order], 2 * first
    errors = [trajectory.error(entry, between(spacing, n), **options) for n in (first, steps)]
    while errors[1] > 1e-11 and steps < most:
        steps *= 2
        errors = [errors[1], trajectory.error(entry, between(spacing, steps), **options)]
    return slope(errors)


CASES = [(solver, path, spacing) for solver in ODE + CORRECTED for path, spacing in EVERYWHERE]
NOT_VERIFIED = [("vp", "karras"), ("flow", "logsnr")]
FEW = [(solver, *where) for solver in ("ddim", "dpm3", "dpmpp3m", "unipc3", "rk:rk4") for where in NOT_VERIFIED]


@pytest.mark.parametrize(("solver", "path", "spacing"), sampled(CASES, FEW))
def test_order_is_the_declared_one(solver, spacing, path, trajectories):
    """A multistep method that is started with single steps of its order has it."""
    entry = find(solver)
    options = {"start": "single"} if "start" in entry.options else {}
    assert measured(trajectories[path], entry, spacing, **options) == declared(entry)


CASES = [(solver, path, spacing) for solver in MULTISTEP for path, spacing in EVERYWHERE]


@pytest.mark.parametrize(
    ("solver", "path", "spacing"), sampled(CASES, [case for case in CASES if case[1:] == ("flow", "karras")])
)
def test_order_from_exact_values_is_the_declared_one(solver, spacing, path, trajectories):
    """So has one whose first states are the true ones, whatever it made of them itself; UniPC evaluates before it corrects, so
    there they are those of its own start of full order. Few enough steps are exact from 104 on."""
    entry = find(solver)
    options = {"start": "single", "exact_states": 1} if solver.startswith("unipc") else {"exact_states": 5}
    assert measured(trajectories[path], entry, spacing, first=26, **options) == declared(entry)


RAMPS = [name for name in MULTISTEP + CORRECTED if find(name).ramp_order]  # `verify` measures all of them: "as started"


@pytest.mark.parametrize("solver", sampled(RAMPS, ["dpmpp3m", "unipc3"]))
def test_a_ramp_has_the_order_it_is_said_to_leave(solver, trajectories):
    """What a ramp of orders 1, 2, ... adds to the error, against a start with single steps, is of order `ramp_order`."""
    entry, trajectory = find(solver), trajectories["vp"]
    added = []
    for steps in (100, 200):
        ramp, single = (trajectory.solve(entry, between("logsnr", steps), start=start) for start in ("ramp", "single"))
        added.append(rms(ramp - single))
    assert slope(added) == pytest.approx(min(entry.ramp_order, entry.order), abs=0.15)


NOISY = STOCHASTIC + [f"{name}+unic" for name in STOCHASTIC if find(name).unic_order]  # `verify` measures all of them


@pytest.mark.parametrize(
    ("solver", "path", "s"),
    sampled(
        [(solver, path, s) for solver in NOISY for path in SCHEDULES for s in (0.5, 2.0)],
        [("ddpm", "flow", 0.5), ("sde-dpmpp3m", "vp", 2.0), ("sa-solver", "flow", 0.5)],
    ),
)
def test_weak_order_on_gaussian_data_is_the_declared_one(solver, path, s):
    """The variance of the output, exact arithmetic on the table, approaches α² s² + σ² with the declared order."""
    entry, schedule = find(solver), SCHEDULES[path]
    # A window of σ̄ that opens in the middle of a grid is a window of whole steps; order is for one that does not move.
    options = {"s_tmin": 0.0, "s_tmax": np.inf} if "s_tmin" in entry.options else {}
    errors = []
    for steps in (400, 800):
        plan = entry.plan(np.linspace(-2.0, 2.0, steps + 1), schedule, **options)
        errors.append(abs(variance(plan, s) / exact(plan, 2.0, s) - 1))
    assert slope(errors) == pytest.approx(entry.order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("solver", ["deis-t", "deis-rho", "deis-lambda", "lms"])
def test_adams_methods_of_every_order(solver, order, trajectories):
    entry, trajectory = find(solver), trajectories["vp"]
    errors = [trajectory.error(entry, between("karras", n), order=order, start="single") for n in (75, 150)]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_equal_steps_in_sigma_bar(order, trajectories):
    """Its weights are those of equal steps in σ̄, where it is of order 4; elsewhere, as declared, of order 2."""
    entry, trajectory = find("ipndm"), trajectories["vp"]
    errors = []
    for steps in (100, 200):
        values = -np.log(np.linspace(np.exp(-LAM_S), np.exp(-LAM_T), steps + 1))
        errors.append(trajectory.error(entry, np.array([LAM_S, *values[1:-1], LAM_T]), order=order, start="single"))
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("tail", "order"), [(0, 2), (1, 2), (2, 3)])
def test_dpm_fast_is_of_the_order_of_its_last_steps(tail, order, trajectories):
    """One last step of order 1 has a local error of order 2, one of order 2 a local error of order 3."""
    errors = [trajectories["vp"].error(find("dpm-fast"), between("logsnr", n), tail=tail) for n in (100, 200)]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_deis_rho_rk_of_every_order(order, trajectories):
    errors = [trajectories["vp"].error(find("deis-rho-rk"), between("logsnr", n), order=order) for n in (25, 50)]
    assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", [name for name in ODE if name.startswith("rk:")])
def test_runge_kutta_in_lam(solver, trajectories):
    """In place of σ̄, in which they are by default."""
    entry = find(solver)
    assert measured(trajectories["vp"], entry, "karras", variable="lam") == declared(entry)


@pytest.mark.parametrize("solver", [name for name in ODE if name.startswith("rk:")])
def test_runge_kutta_in_data_form(solver, trajectories):
    entry = find(solver)
    assert measured(trajectories["vp"], entry, "karras", prediction="data") == declared(entry)


@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("solver", ["unipc1", "unipc2", "unipc3", "unipc4"])
def test_unipc_in_all_its_forms(solver, variant, prediction, trajectories):
    entry = find(solver)
    options = {"variant": variant, "prediction": prediction, "start": "single"}
    assert measured(trajectories["flow"], entry, "logsnr", **options) == declared(entry)


@pytest.mark.parametrize(
    ("solver", "options"),
    [("dpm2", {"r1": 0.3}), ("dpm2", {"r1": 1.0}), ("dpmpp2s", {"r1": 0.75})]
    + [(solver, {"variant": "taylor"}) for solver in ("dpm2", "dpmpp2s", "dpm2m", "dpmpp2m")]
    + [("dpm3", {"r1": r1, "r2": r2}) for r1, r2 in ((0.25, 0.5), (0.5, 0.75), (0.3, 1.0), (0.5, 2 / 3))]
    + [("dpmpp3s", {"r1": 0.25, "r2": 0.5})],
)
def test_options_keep_the_order(solver, options, trajectories):
    entry = find(solver)
    assert measured(trajectories["vp"], entry, "logsnr", **options) == declared(entry)


@pytest.mark.parametrize("solver", [name for name in MULTISTEP if name != "unipc1"])
def test_lowering_the_final_order_costs_no_order_but_one_step(solver, trajectories):
    """Last steps of orders 2 and 1 have local errors of orders 3 and 2: what they add to the error is of order 2."""
    entry, trajectory, added = find(solver), trajectories["vp"], []
    for steps in (100, 200):
        lowered, full = (trajectory.solve(entry, between("logsnr", steps), lower_final=lower) for lower in (True, False))
        added.append(rms(lowered - full))
    assert slope(added) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    "solver", sampled([name for name in ODE if not name.startswith("rk:")], ["ddim", "dpm3", "dpmpp2m", "unipc3", "pndm"])
)
def test_running_backwards_has_the_same_order(solver, trajectories):
    """Data to noise over the reversed grid: the same theorem, from the other end."""
    entry, trajectory = find(solver), trajectories["vp"]
    options = {"start": "single"} if "start" in entry.options else {}
    errors = []
    for n in (100, 200) if entry.order > 3 else (50, 100):
        plan = entry.plan(between("logsnr", n)[::-1], trajectory.model.schedule, **options)
        errors.append(rms(run(plan, trajectory.model, trajectory.at(LAM_T)).x - trajectory.x))
    assert slope(errors) == declared(entry)


def test_algorithm_5_is_of_order_2_away_from_its_r2(trajectories):
    """Why dpm3 does not expand the paper's formula for other r2: the published generalisation loses an order."""
    trajectory, errors = trajectories["vp"], []
    for steps in (25, 50):
        state = trajectory.x
        for lam_s, lam_t in pairwise(between("logsnr", steps)):
            state = reference.dpm_solver_3(lam_s, lam_t, state, trajectory.model, r1=0.25, r2=0.5)
        errors.append(rms(state - trajectory.at(LAM_T)))
    assert slope(errors) == pytest.approx(2, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm2", 2), ("dpm3", 3), ("dpmpp2m", 2)])
def test_order_on_the_shipped_mixture(solver, order, mixture64):
    """The same on the 784 pixels and 30 components that come with it."""
    trajectory = Trajectories(mixture64)
    errors = [trajectory.error(find(solver), between("logsnr", steps)) for steps in (25, 50)]
    assert slope(errors) == pytest.approx(order, abs=0.15)
