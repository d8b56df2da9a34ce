"""Planned solvers: ends, evaluations, options, names, and the way back."""

import itertools
import re

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, schedules
from diffode.noise import SeededNoise
from solvers import SOLVERS, Budget, Hooks, encode, run, sample
from solvers.options import parse
from solvers.registry import find

PLANNED = [name for name, entry in SOLVERS.items() if entry.has_plan]
ODE = [name for name in PLANNED if not find(name).stochastic]
CORRECTED = [f"{name}+unic" for name in ODE if find(name).unic_order]


TO_ZERO = re.compile("(deis-rho|lms|i?pndm)(\\+unic)?$")  # whose step to σ̄ = 0 is a step like any other


@pytest.mark.parametrize("solver", PLANNED)
def test_ends(solver, pooled64):
    """One, two and three steps, also to σ = 0: finite, evaluations as declared, and never outside the grid."""
    asked = []
    model = pooled64.watched(lambda evaluation, lam, m: asked.append(lam))
    for steps, denoise in itertools.product([1, 2, 3], [False, True]):
        asked.clear()
        result = sample(model, solver=solver, steps=steps, denoise=denoise, shape=(4, 1, 7, 7), dtype=torch.float64)
        assert torch.isfinite(result.x).all()
        assert result.nfe == result.plan.nfe == len(asked)
        if solver not in ("dpm-fast", "pndm"):
            assert result.nfe == find(solver).nfe_per_step * (steps - denoise) + denoise
        assert min(asked) == result.plan.grid[0]
        assert max(asked) <= pooled64.schedule.lam_max


@pytest.mark.parametrize("solver", [name for name in ODE + CORRECTED if not TO_ZERO.match(name)])
def test_the_step_to_infinity_ends_with_x0_hat(solver, pooled64):
    """The last row puts σ = 0 and α = 1: the result is the network's own x̂0 at the last finite state that it was asked for."""
    last = []

    def network(x, lam):
        last.append(pooled64(x, float(lam[0]), "data"))
        return last[-1]

    data = EpsModel(network, pooled64.schedule, "data", clock="lam")
    result = sample(data, solver=solver, steps=4, denoise=True, shape=(2, 1, 7, 7), dtype=torch.float64)
    torch.testing.assert_close(result.x, last[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [name for name in ODE if TO_ZERO.match(name)])
def test_a_step_to_sigma_bar_0_keeps_its_weights(solver):
    """Methods that step in σ̄ need no lower order at σ̄ = 0: their row there is the limit of those that stop ever closer to it."""
    schedule, lams = schedules.vp_linear(), np.linspace(-3, 3, 7)
    last, near = (find(solver).plan([*lams, lam], schedule).stages[-1] for lam in (np.inf, 17.0))
    assert len(last.c) > 1
    np.testing.assert_allclose(list(last.c.values()), list(near.c.values()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("solver", PLANNED)
def test_zero_terminal_snr(solver, steps, toy):
    """From λ = −∞, where α = 0 and the state is the noise: finite with a network that predicts flow, or refused by name."""
    model = toy("flow")
    lams = np.array([-np.inf, -1.0, 1.0, 3.0])[: steps + 1]
    schedule = schedules.flow(t_noisy=1.0)
    native = EpsModel(lambda x, lam: flow_of(model, x, lam), schedule, "flow", clock="lam")
    x = torch.randn(4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if solver not in DATA_FORM:
        with pytest.raises(InputError, match=solver):
            find(solver).plan(lams, schedule)
        return
    plan = find(solver).plan(lams, schedule)
    assert torch.isfinite(run(plan, native, x, Hooks(noise=SeededNoise(range(4)))).x).all()


DATA_FORM = [name for name in PLANNED if "pp" in name or name.startswith("unipc")] + ["ddim", "ddpm", "sa-solver"]


def flow_of(model, x, lam):
    """ε − x0 of the mixture; at λ = −∞, where it knows x0 on average only, x − E x0 at the noisiest λ it can be asked for."""
    at = max(float(lam[0]), -6.0)
    return model(x, at, "flow")


@pytest.mark.parametrize("solver", ["ddim", "dpm3", "dpmpp3m", "unipc3", "pndm"])
def test_encode_and_back(solver, toy):
    """The same grid backwards and forwards returns to the data, with an error that falls with the order: of all, by `verify`."""
    model = toy("vp")
    x0 = model.network.sample(6, seed=2) * float(model.schedule.alpha(model.schedule.lam_max))
    errors = []
    lams = {n: np.linspace(-2, 3, n + 1) for n in (40, 80)}
    for n in (40, 80):
        noise = encode(model, x0, solver=solver, grid=lams[n]).x
        back = run(find(solver).plan(lams[n], model.schedule), model, noise).x
        errors.append(float((back - x0).square().mean().sqrt()))
    order = find(solver).ramp_order or find(solver).order
    assert errors[1] < errors[0] / 2 ** (order - 0.5)


def test_encode_refuses_what_cannot_run_backwards(toy):
    model, x = toy("vp"), torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    for options, what in (
        ({"solver": "ddpm"}, "draws noise"),
        ({"solver": "ddim", "eta": 0.5}, "draws noise"),
        ({"solver": find("ddim").plan([-1.0, 1.0], model.schedule)}, "a solver's name"),
        ({"grid": [-1.0, 0.0, np.inf]}, "finite ends"),
    ):
        with pytest.raises(InputError, match=what):
            encode(model, x, **options)


def test_unic_is_asked_for_by_name(toy):
    model, kw = toy("vp"), {"shape": (2, 1, 2, 3), "dtype": torch.float64, "nfe": 9}
    assert torch.equal(sample(model, solver="dpmpp3m+unic", **kw).x, sample(model, solver="dpmpp3m", unic=True, **kw).x)
    assert sample(model, solver="dpmpp3m+unic", **kw).plan.solver == "dpmpp3m+unic"
    with pytest.raises(InputError, match=r"takes no corrector: multistep solvers do, as dpmpp2m\+unic"):
        sample(model, solver="dpm2+unic", **kw)


def test_a_solver_of_ones_own_is_found_by_module_and_name(tmp_path, monkeypatch, toy):
    (tmp_path / "mysolvers.py").write_text(
        "from solvers import Solver\nfrom solvers.dpm_solver import dpm2\nmine = Solver('mine', dpm2, 2, 2, 'me')\nother = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    kw = {"shape": (2, 1, 2, 3), "nfe": 8}
    assert torch.equal(sample(toy("vp"), solver="mysolvers:mine", **kw).x, sample(toy("vp"), solver="dpm2", **kw).x)
    for name, what in (
        ("mysolvers:other", "not a Solver"),
        ("mysolvers:none", "cannot import"),
        ("no.such:mine", "cannot import"),
    ):
        with pytest.raises(InputError, match=what):
            find(name)


def test_options_are_read_as_the_type_they_are():
    def read(name, texts):
        return parse(name, find(name).options, texts)

    assert read("unipc3", {"variant": "bh1", "lower_final": "true"}) == {"variant": "bh1", "lower_final": True}
    assert read("deis-t", {"order": "2"}) == {"order": 2}
    assert read("heun-churn", {"s_churn": "10"}) == {"s_churn": 10.0}
    for name, option, what in (
        ("deis-t", {"order": "two"}, "a whole number, not 'two'"),
        ("unipc3", {"lower_final": "yes"}, "true or false"),
        ("heun-churn", {"s_churn": "much"}, "a number"),
        ("ddim", {"order": "2"}, "no option 'order'"),
    ):
        with pytest.raises(InputError, match=what):
            read(name, option)


@pytest.mark.parametrize("nfe", range(1, 14))
@pytest.mark.parametrize("denoise", [False, True])
def test_dpm_fast_spends_any_number_of_evaluations(nfe, denoise, toy):
    if nfe == denoise:  # nothing would be left for the grid
        return
    result = sample(toy("vp"), solver="dpm-fast", nfe=nfe, denoise=denoise, shape=(1, 1, 2, 3))
    assert result.nfe == result.plan.nfe == nfe


def test_dpm_fast_ends_as_published():
    """Lu et al. (2022a), appendix: 10 = 3 + 3 + 3 + 1, 11 = 3 + 3 + 3 + 2, 12 = 3 + 3 + 3 + 2 + 1."""
    schedule = schedules.vp_linear()
    for nfe, orders in ((10, [3, 3, 3, 1]), (11, [3, 3, 3, 2]), (12, [3, 3, 3, 2, 1])):
        stages = find("dpm-fast").prepare(Budget(nfe=nfe), schedule).plan.stages[1:]
        ends = [i for i, stage in enumerate(stages, 1) if stage.commit]
        assert np.diff([0, *ends]).tolist() == orders


WRONG = [
    ("ddim", {"eta": 1.5}),
    ("ddim", {"eta": -0.1}),
    ("ddpm", {"variance": "both"}),
    ("euler-ancestral", {"eta": 2.0}),
    ("dpm-fast", {"tail": 3}),
    ("dpmpp2m", {"variant": "heun"}),
    ("dpmpp2m", {"start": "double"}),
    ("sde-dpmpp2m", {"eta": -1.0}),
    ("sde-dpmpp2m", {"start": "single"}),
    ("unipc2", {"variant": "bh3"}),
    ("unipc2", {"prediction": "velocity"}),
    ("deis-t", {"order": 5}),
    ("lms", {"order": 0}),
    ("deis-rho-rk", {"order": 1}),
    ("ipndm", {"order": 5}),
    ("heun-churn", {"s_churn": -1.0}),
    ("sa-solver", {"order": 5}),
    ("sa-solver", {"tau": -1.0}),
    ("rk:rk4", {"variable": "t"}),
    ("rk:rk4", {"variable": "lam", "prediction": "data"}),
    ("dpm1", {"eta": 0.5}),
    ("dpm2", {"r1": 0}),
    ("dpm3", {"r1": 0.5, "r2": 0.5001}),
    ("dpm3", {"r1": 2 / 3, "r2": 0.9}),
]


@pytest.mark.parametrize(("solver", "options"), WRONG)
def test_wrong_options_are_refused(solver, options):
    schedule = schedules.ddpm_linear()
    with pytest.raises(InputError):
        find(solver).plan(grid.make("logsnr", schedule, 3), schedule, **options)


@pytest.mark.parametrize(("solver", "nfe", "nearest"), [("dpm2", 7, "6 or 8"), ("dpm3", 10, "9 or 12"), ("dpm3", 1, "3")])
def test_evaluations_that_cannot_be_spent(solver, nfe, nearest, mixture32):
    with pytest.raises(InputError, match=f"nearest it can is {nearest}$"):
        sample(mixture32, solver=solver, nfe=nfe, shape=(1, 1, 28, 28))


@pytest.mark.parametrize("solver", ["dopri5", "dpm23", "rk4"])
def test_encode_with_solvers_that_have_no_plan(solver, toy):
    model = toy("vp")
    x0 = model.network.sample(6, seed=2)
    options = {"steps": 60} if solver == "rk4" else {"rtol": 1e-5, "atol": 1e-5}
    noise = encode(model, x0, solver=solver, grid=[-2.0, 3.0] if "rtol" in options else "logsnr", **options).x
    ends = [-2.0, 3.0] if "rtol" in options else [model.schedule.lam_min, model.schedule.lam_max]
    back = find("dopri5").on(ends, model.schedule, rtol=1e-6, atol=1e-6).solve(model, noise).x
    assert (back - x0).square().mean().sqrt() < 1e-3


@pytest.mark.parametrize("solver", ["dpm12", "dpmpp23"])
def test_adaptive_solvers_go_on_to_sigma_0(solver, toy):
    result = sample(toy("vp"), solver=solver, denoise=True, shape=(3, 1, 2, 3))
    assert set(result.adaptive.lam) == {np.inf}
    again = sample(
        toy("vp"),
        solver=solver,
        grid=[result.adaptive.plans[0].grid[0], result.adaptive.plans[0].grid[-2], np.inf],
        shape=(3, 1, 2, 3),
    )
    assert torch.equal(again.x, result.x)
    with pytest.raises(InputError, match="finite"):
        sample(toy("vp"), solver="dopri5", denoise=True, shape=(3, 1, 2, 3))


@pytest.mark.parametrize("solver", ["ddim", "sde-dpmpp2m", "euler-ancestral", "heun-churn", "sa-solver"])
def test_noise_cannot_be_encoded(solver, toy):
    options = {"eta": 0.5} if solver == "ddim" else {}
    for grid_ in ("logsnr", [-3.0, 0.5]):
        with pytest.raises(InputError, match=f"{solver}.* draws noise"):
            encode(toy("vp"), torch.zeros(1, 1, 2, 3, dtype=torch.float64), solver=solver, grid=grid_, **options)


def test_sampling_goes_on_from_a_state(toy):
    """encode, and back by sample(x=...); a plan from data to noise wants its data."""
    model = toy("vp")
    x0 = model.network.sample(4, seed=2)
    encoded = encode(model, x0, solver="dpm3", nfe=300, trajectory=True)
    assert len(encoded.trajectory) == 101
    back = sample(model, x=encoded.x, solver="dpm3", nfe=300).x
    assert (back - x0).abs().max() < 1e-3
    assert torch.equal(sample(model, x=x0, solver=encoded.plan).x, encoded.x)
    with pytest.raises(InputError, match="give the data as x"):
        sample(model, solver=encoded.plan, shape=(2, 1, 2, 3))
    for wrong in ({}, {"shape": (4, 1, 2, 3), "x": x0}):
        with pytest.raises(InputError, match="give one of n"):
            sample(model, **wrong)


def test_a_solver_of_ones_own_with_options_and_unic(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from solvers import Solver\nfrom solvers.dpm_multistep import dpmpp2m\n"
        "def build(grid, schedule, *, a: float | None = None, unic: bool = False):\n"
        "    return dpmpp2m(grid, schedule, unic=unic)\n"
        "mine = Solver('mine', build, 2, 1, 'me', unic_order=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert parse("mine", find("own:mine").options, {"a": "0.5"}) == {"a": 0.5}
    schedule = schedules.vp_linear()
    lams = np.linspace(-2, 2, 5)
    assert find("own:mine+unic").plan(lams, schedule).stages == find("unipc2").plan(lams, schedule).stages


@pytest.mark.parametrize("lams", [[0.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0.0], []])
def test_a_grid_goes_one_way(lams):
    with pytest.raises(InputError, match=r"all increasing or all decreasing|a list of 2 to \d+ numbers"):
        find("dpmpp2m").plan(lams, schedules.vp_linear())


def test_an_unfinished_run_says_so(toy):
    kw = {"solver": "dpm23", "shape": (2, 1, 2, 3)}
    assert sample(toy("vp"), **kw).finished
    assert not sample(toy("vp"), max_nfe=6, **kw).finished
