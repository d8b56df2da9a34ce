"""torchdiffeq through diffode: agreement with exact solutions and planned solvers, and what it is kept from doing."""

import numpy as np
import pytest
import torch
from scipy import special

from diffode import EpsModel, InputError, ode, schedules
from diffode.noise import SeededNoise
from diffode.ode import VARIABLES
from solvers import Hooks, blackbox, sample
from solvers.blackbox import integrate
from solvers.registry import find
from tests.quick import quick

METHODS = {method.name: method for method in blackbox.METHODS} | {"euler-lambda": blackbox.Method("euler", 1, 1)}
STATES = Hooks(trajectory=True)
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]
FIXED = [name for name, method in METHODS.items() if not method.adaptive]
KW = {"shape": (16, 1, 7, 7), "dtype": torch.float64}
every_variable = pytest.mark.parametrize("variable", VARIABLES)


def noise(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def grid_in(variable, schedule, lam_s, lam_t, steps=1):
    """Equal steps in the variable, as values of λ."""
    form = VARIABLES[variable]
    v = np.linspace(form.of(schedule, lam_s), form.of(schedule, lam_t), steps + 1)
    return np.array([lam_s, *(form.lam(schedule, value) for value in v[1:-1]), lam_t])


@pytest.fixture
def times(monkeypatch):
    """Every time that torchdiffeq asks for, as it asks for it."""
    asked, odeint = [], blackbox.odeint

    def spy(func, *args, **kwargs):
        return odeint(lambda v, u: asked.append(float(v)) or func(v, u), *args, **kwargs)

    monkeypatch.setattr(blackbox, "odeint", spy)
    return asked


@pytest.fixture(scope="module")
def toy(toy):
    return lambda *args, **options: quick(toy(*args, **options))


@pytest.fixture(scope="module")
def pooled64(pooled64):
    return quick(pooled64)


@pytest.fixture(scope="module")
def truth(pooled64):
    schedule = pooled64.schedule
    x = SeededNoise(range(16))(0, torch.empty(KW["shape"], dtype=torch.float64)) * float(schedule.sigma(schedule.lam_min))
    return ode.accurate(pooled64, x, schedule.lam_min, schedule.lam_max)


@pytest.fixture(scope="module")
def inside(toy):
    """From noise(3, 1, 2, 3) at λ = −1 to λ = 1, on the vp path."""
    return ode.accurate(toy(), noise(3, 1, 2, 3), -1.0, 1.0)


@pytest.fixture(scope="module")
def across(toy):
    """From noise(3, 1, 2, 3) over the whole schedule."""
    return ode.accurate(toy(), noise(3, 1, 2, 3), toy().schedule.lam_min, toy().schedule.lam_max, tolerance=1e-8)


def rms(x):
    """Root mean square over the pixels, a number a sample."""
    return x.flatten(1).square().mean(1).sqrt()


def test_dopri5_agrees_with_the_accurate_solution(pooled64, truth):
    assert (sample(pooled64, solver="dopri5", rtol=1e-10, atol=1e-10, **KW).x - truth).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["dopri8", "rk4", "explicit_adams", "implicit_adams"])
def test_images_are_those_of_the_accurate_solution(method, pooled64, truth):
    how = {"rtol": 1e-6, "atol": 1e-6} if find(method).chooses_steps else {"steps": 100}
    assert rms(sample(pooled64, solver=method, **how, **KW).x - truth).median() < 0.01


def test_dpm3_at_600_evaluations_agrees_with_the_accurate_solution(pooled64, truth):
    """To 1e-6: the median sample on the default grid, and the rms of all on one that is denser where the images form."""
    assert rms(sample(pooled64, solver="dpm3", nfe=600, **KW).x - truth).median() < 1e-6
    ends = pooled64.schedule.lam_min, pooled64.schedule.lam_max
    within = np.linspace(*special.ndtr((np.array(ends) + 0.5) / 3), 201)[1:-1]
    lams = [ends[0], *(3 * special.ndtri(within) - 0.5), ends[1]]  # as dense as N(−0.5, 3²)
    result = sample(pooled64, solver="dpm3", nfe=600, grid=lams, **KW)
    assert rms(result.x - truth).square().mean().sqrt() < 1e-6


@every_variable
@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_the_equation_and_stays_between_the_ends(method, variable, toy, inside, times):
    """Ends inside the schedule, where no one else would refuse a call; times in float64 need no putting back."""
    asked = []
    model = toy().watched(lambda evaluation, lam, m: asked.append(lam))
    x, grid = noise(3, 1, 2, 3), grid_in(variable, model.schedule, -1.0, 1.0, 100)
    result = integrate(METHODS[method], model, x, grid, rtol=1e-6, atol=1e-6, variable=variable)
    assert (result.x - inside).abs().max() < (0.02 if METHODS[method].order == 1 else 1e-3)
    assert result.nfe == result.calls == len(asked) == len(times)
    low, high = sorted(VARIABLES[variable].of(model.schedule, [-1.0, 1.0]))
    assert low - 1e-15 <= min(times) <= max(times) <= high + 1e-15
    assert -1 <= min(asked) <= max(asked) <= 1
    assert asked[0] == pytest.approx(-1, abs=1e-14)


@every_variable
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_cross_the_whole_schedule(method, variable, toy, across):
    model, x = toy(), noise(3, 1, 2, 3)
    ends = np.array([model.schedule.lam_min, model.schedule.lam_max])
    result = integrate(METHODS[method], model, x, ends, rtol=1e-5, atol=1e-5, variable=variable)
    assert (result.x - across).abs().max() < 5e-3


@every_variable
@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_short_way_is_not_overshot(method, variable, toy, times):
    """Shorter than the first step that torchdiffeq would try by the size of the drift, which is small where it is noisy."""
    model, ends = toy(), np.array([-1.0, -0.99])
    integrate(METHODS[method], model, noise(3, 1, 2, 3), ends, variable=variable)
    low, high = sorted(VARIABLES[variable].of(model.schedule, ends))
    assert low - 1e-15 <= min(times) <= max(times) <= high + 1e-15


@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
@every_variable
def test_variables_on_every_path(path, variable, toy):
    model, x = toy(path), noise(3, 1, 2, 3)
    result = integrate(METHODS["dopri5"], model, x, np.array([-1.0, 1.0]), rtol=1e-8, atol=1e-8, variable=variable)
    assert (result.x - ode.accurate(model, x, -1.0, 1.0, tolerance=1e-10)).abs().max() < 1e-7


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@every_variable
def test_variables_there_and_back(name, variable):
    """To 1e-9 and never out of the ends, also from a v that rounding put outside."""
    schedule, form = schedules.make(name), VARIABLES[variable]
    ends = schedule.lam_min, schedule.lam_max
    lam_of = form.inverse(schedule, *ends)
    lams = np.linspace(*ends, 101)
    back = np.array([lam_of(v) for v in form.of(schedule, lams)])
    assert abs(back - lams).max() < 1e-9
    assert ends[0] <= back.min()
    assert back.max() <= ends[1]
    v_s, v_t = form.of(schedule, np.array(ends))
    out = 1e-6 * (v_t - v_s)
    assert [lam_of(v_s - out), lam_of(v_t + out)] == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize("method", ["dopri5", "heun2"])
@pytest.mark.parametrize(("variable", "v_s", "v_t"), [("lam", -1.1, 1.1), ("sigma_bar", 2.2, 0.7), ("t", 0.6, 0.35)])
def test_a_float32_state_does_not_leave_the_ends(method, variable, v_s, v_t, toy, times):
    """torchdiffeq rounds its time to the dtype of the state; these ends round outwards."""
    asked = []
    model = toy(dtype=torch.float32).watched(lambda evaluation, lam, m: asked.append(lam))
    ends = np.array([VARIABLES[variable].lam(model.schedule, v) for v in (v_s, v_t)])
    x = noise(3, 1, 2, 3, dtype=torch.float32)
    assert integrate(METHODS[method], model, x, ends, variable=variable).x.dtype == torch.float32
    assert min(times) < min(v_s, v_t) or max(times) > max(v_s, v_t)
    assert ends[0] <= min(asked) <= max(asked) <= ends[1]


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name != "lam"])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_are_of_their_order(method, variable, toy, inside):
    """In λ, `verify` measures it."""
    model, x, errors = toy(), noise(3, 1, 2, 3), []
    for steps in (40, 80) if METHODS[method].order < 4 else (80, 160):
        grid = grid_in(variable, model.schedule, -1.0, 1.0, steps)
        difference = integrate(METHODS[method], model, x, grid, variable=variable).x - inside
        errors.append(float(difference.square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(METHODS[method].order, abs=0.15)


@every_variable
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_there_and_back_along_the_grid(method, variable, toy):
    model, x, grid = toy(), noise(3, 1, 2, 3), np.linspace(-1.0, 1.0, 100)
    how = {"rtol": 1e-9, "atol": 1e-9, "variable": variable}
    there = integrate(METHODS[method], model, x, grid, **how)
    assert (integrate(METHODS[method], model, there.x, grid[::-1], **how).x - x).abs().max() < 1e-8


def test_euler_in_sigma_bar_is_ddim(toy):
    model, x = toy(), noise(3, 1, 2, 3)
    grid = np.linspace(model.schedule.lam_min, model.schedule.lam_max, 8)
    euler = integrate(METHODS["euler-lambda"], model, x, grid, variable="sigma_bar")
    assert (euler.x - find("ddim").on(grid, model.schedule).solve(model, x).x).abs().max() < 1e-12


def test_a_sample_alone_does_not_depend_on_its_batch(mixture64):
    """To 1e-12, though the tolerance is 1e-2: the same steps are taken, with the sample's own label, guided."""
    x, y = noise(4, 1, 28, 28), torch.tensor([0, 7, 3, 9])
    ends = np.array([-1.0, 2.0])

    def solve(rows, per_sample):
        model = mixture64.labelled(y[rows]).guided(2.0, y=y.flip(0)[rows])
        return integrate(METHODS["dopri5"], model, x[rows], ends, rtol=1e-2, atol=1e-2, per_sample=per_sample)

    alone, together = solve([0, 1, 2, 3], True), solve([0, 1, 2, 3], False)
    singles = [solve([i], False) for i in range(4)]
    assert (alone.x - torch.cat([single.x for single in singles])).abs().max() < 1e-12
    assert (alone.x[[3, 1]] - solve([3, 1], True).x).abs().max() < 1e-12
    assert rms(alone.x - together.x).min() > 1e-6
    assert alone.nfe == max(single.nfe for single in singles)
    assert alone.calls == sum(single.calls for single in singles) == 2 * sum(single.nfe for single in singles)


@pytest.mark.parametrize(("variable", "per_sample"), [("lam", False), ("sigma_bar", True), ("t", False)])
def test_dense_output_agrees_with_the_accurate_solution(variable, per_sample, toy):
    """To torchdiffeq's interpolation, which at inner λ is less exact than the steps; the steps are as without it."""
    model, x = toy(), noise(3, 1, 2, 3)
    grid = np.linspace(-2.0, 2.0, 6)
    how = {"rtol": 1e-8, "atol": 1e-8, "variable": variable, "per_sample": per_sample}
    result = integrate(METHODS["dopri5"], model, x, grid, STATES, **how)
    assert [lam for lam, _ in result.trajectory] == list(grid)
    exact = x
    for (lam_s, _), (lam_t, state) in zip(result.trajectory, result.trajectory[1:], strict=False):
        exact = ode.accurate(model, exact, lam_s, lam_t)
        assert (state - exact).abs().max() < 2e-6
    short = integrate(METHODS["dopri5"], model, x, grid[[0, -1]], **how)
    assert torch.equal(result.x, short.x)
    assert torch.equal(result.x, result.trajectory[-1][1])
    assert (result.nfe, result.calls, short.trajectory) == (short.nfe, short.calls, ())


def test_options_reach_torchdiffeq_by_name(toy):
    lams = [-4.0, 0.0, 4.0]
    how = {"rtol": 1e-4, "variable": "t", "per_sample": True}
    result = sample(toy(), solver="dopri5", grid=lams, shape=(2, 1, 2, 3), dtype=torch.float64, trajectory=True, **how)
    x = result.trajectory[0][1]
    assert [lam for lam, _ in result.trajectory] == lams
    assert torch.equal(result.x, integrate(METHODS["dopri5"], toy(), x, np.array(lams), STATES, **how).x)


@every_variable
@pytest.mark.parametrize("method", FIXED)
def test_the_trajectory_of_a_fixed_method_is_its_steps(method, variable, toy):
    model, x = toy(), noise(3, 1, 2, 3)
    grid = grid_in(variable, model.schedule, -1.0, 1.0, 14)
    result = integrate(METHODS[method], model, x, grid, STATES, variable=variable)
    assert [lam for lam, _ in result.trajectory] == list(grid)
    for steps in (1, 8, 14):
        part = integrate(METHODS[method], model, x, grid[: steps + 1], variable=variable)
        assert (result.trajectory[steps][1] - part.x).abs().max() < 1e-13


@pytest.mark.parametrize(("method", "nfe"), [("euler-lambda", 7), ("midpoint", 8), ("heun2", 8), ("heun3", 9), ("rk4", 12)])
def test_fixed_methods_spend_what_they_are_given(method, nfe, mixture32):
    assert sample(mixture32, solver=method, nfe=nfe, shape=(1, 1, 28, 28)).nfe == nfe


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"solver": "dopri5", "nfe": 20}, "adaptive"),
        ({"solver": "explicit_adams", "nfe": 20}, "give steps"),
        ({"solver": "dopri5", "rtol": -1.0}, "positive"),
        ({"solver": "dopri5", "denoise": True}, "finite"),
        ({"solver": "dopri5", "rtol": 1e-9, "atol": 1e-9, "max_nfe": 50}, "spent 50 evaluations by λ = "),
        ({"solver": "explicit_adams", "steps": 9, "grid": "karras"}, "equal steps"),
        ({"solver": "dopri5", "eta": 1.0}, "no option"),
        ({"solver": "rk4", "steps": 5, "rtol": 1e-3}, "no option"),
    ],
)
def test_what_it_cannot_do_is_said(options, what, mixture32):
    with pytest.raises(InputError, match=what):
        sample(mixture32, shape=(1, 1, 28, 28), **options)


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("dopri5", {"variable": "s"}, "`variable` must be lam or sigma_bar or t, not 's'"),
        ("explicit_adams", {"variable": "t"}, "equal steps in t"),
        ("implicit_adams", {"variable": "sigma_bar"}, "equal steps in σ̄"),
        ("implicit_adams", {"rtol": 1e-15, "atol": 1e-15}, r"stopped at λ = .* after \d+ evaluations \(.*did not converge"),
        ("bosh3", {"max_nfe": 30, "per_sample": True}, r"bosh3 on sample 0 spent 30 evaluations by λ = -?\d.* of 1:"),
    ],
)
def test_errors_say_where(method, options, what, toy):
    calls = []
    model, grid = toy().watched(lambda *call: calls.append(call)), np.linspace(-1, 1, 10)
    with pytest.raises(InputError, match=what):
        integrate(METHODS[method], model, noise(3, 1, 2, 3), grid, **options)
    assert len(calls) <= 10_000


@every_variable
def test_an_underflow_says_where(variable, times):
    """Of a network that jumps at λ = 0.5, beyond what any step can follow."""
    model = EpsModel(lambda x, lam: torch.where(lam[:1] < 0.5, x, 1e30), schedules.vp_linear(), clock="lam")
    with pytest.raises(InputError, match=r"dopri5 stopped at λ = 0.5 after \d+ evaluations \(underflow") as error:
        integrate(METHODS["dopri5"], model, noise(2, 3), np.array([-1.0, 1.0]), variable=variable)
    assert f"after {len(times)} evaluations" in str(error.value)


@every_variable
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_an_output_that_is_not_finite_is_named(method, variable):
    calls = []
    model = EpsModel(lambda x, t: x / (t[:1] > 0.5), schedules.vp_linear()).watched(lambda *call: calls.append(call))
    grid = np.linspace(model.schedule.lam_min, model.schedule.lam_max, 20)
    with pytest.raises(InputError, match=r"not finite at λ = -?\d.*evaluation \d+") as error:
        integrate(METHODS[method], model, noise(2, 3), grid, variable=variable)
    assert f"evaluation {len(calls)}:" in str(error.value)
