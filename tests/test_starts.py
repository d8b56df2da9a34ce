"""Runs that begin with data, noised to a λ in the middle: where they begin, what they spend, and what comes out.

On data N(m, s²) the ODE is linear, and its solution from λ to μ is known:  x_μ = α_μ m + sqrt(v_μ/v_λ) (x_λ − α_λ m),
v = α² s² + σ². So what data d becomes is known seed by seed, and its law, N(·, σ_λ² v_μ/v_λ) for each d.
"""

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, schedules
from diffode.noise import SeededNoise
from solvers import SOLVERS, Budget, encode, find, gaussian, sample

M, S = 0.4, 0.7
SCHEDULES = {
    "ddpm": schedules.ddpm_linear(),
    "vp": schedules.vp_linear(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "cosine": schedules.cosine(),
}
VP, DDPM = SCHEDULES["vp"], SCHEDULES["ddpm"]
DATA = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def model_of(schedule, **fields):
    """The exact ε of data N(M, S²): σ (x − α m)/v."""

    def network(x, lam):
        lam = lam.double().view(-1, 1)
        alpha, sigma = (torch.as_tensor(f(lam.numpy())) for f in (schedule.alpha, schedule.sigma))
        return (sigma * (x - alpha * M) / (alpha**2 * S**2 + sigma**2)).to(x.dtype)

    return EpsModel(network, schedule, clock="lam", shape=(3,), **fields)


def weights(schedule, lam):
    alpha, sigma = float(schedule.alpha(lam)), float(schedule.sigma(lam))
    return alpha, sigma, alpha**2 * S**2 + sigma**2


def noised(schedule, lam, x=DATA, seed=0):
    alpha, sigma, _ = weights(schedule, lam)
    return alpha * x + sigma * SeededNoise(range(seed, seed + len(x)))(0, x)


def solution(schedule, lam, mu, x_lam):
    (alpha_s, _, v_s), (alpha_t, _, v_t) = weights(schedule, lam), weights(schedule, mu)
    return alpha_t * M + (v_t / v_s) ** 0.5 * (x_lam - alpha_s * M)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_named_grid_begins_at_exactly_that_lambda(name):
    schedule = SCHEDULES[name]
    lam = float(schedule.lam(0.37 * schedule.t_noisy + 0.63 * schedule.t_clean)) if name != "edm" else 0.123
    for named in grid.GRIDS:
        for denoise in (False, True):
            lams = Budget(grid=named, from_lam=lam, denoise=denoise).lams(schedule, 6)
            assert lams[0] == lam
            assert len(lams) == 7
            assert lams[-1] == (np.inf if denoise else schedule.lam_max)
            whole = grid.make(named, dataclasses.replace(schedule, t_noisy=float(schedule.t(lam))), 6, denoise=denoise)
            np.testing.assert_allclose(lams[1:], whole[1:], rtol=0, atol=1e-9)


def test_the_whole_schedule_is_the_start_at_its_noisy_end():
    for name, schedule in SCHEDULES.items():
        whole, begun = (Budget(from_lam=lam).lams(schedule, 9) for lam in (None, schedule.lam_min))
        np.testing.assert_allclose(whole, begun, rtol=0, atol=1e-9, err_msg=name)


def test_a_list_is_what_lies_after_the_start():
    values = [-5.0, -2.0, 0.0, 2.0, 4.5]
    assert Budget(grid=values, from_lam=-1).lams(VP).tolist() == [-1, 0, 2, 4.5]
    assert Budget(grid=values, from_lam=-2).lams(VP).tolist() == [-2, 0, 2, 4.5]
    assert Budget(grid=values, from_lam=-2, denoise=True).lams(VP).tolist() == [-2, 0, 2, 4.5, np.inf]
    with pytest.raises(InputError, match="3 steps where 4"):
        Budget(grid=values, from_lam=-1).lams(VP, 4)


def test_a_lambda_of_a_list_within_rounding_of_the_start_is_the_start():
    grid = [-4.0, -1.0, 0.0, 2.0]
    for off in (1e-12, 1e-10, 1e-8):
        begun = find("dpmpp2m").prepare(Budget(grid=grid, from_lam=-1 - off), VP)
        np.testing.assert_allclose(begun.grid, [-1, 0, 2], rtol=0, atol=2 * off)
    assert Budget(grid=grid, from_lam=-1.01).lams(VP).tolist() == [-1.01, -1, 0, 2]
    with pytest.raises(InputError, match="no λ of the grid is above 3"):
        Budget(grid=grid, from_lam=3).lams(VP)
    assert Budget(grid=grid, from_lam=3, denoise=True).lams(VP).tolist() == [3, np.inf]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if find(name).has_plan])
def test_the_budget_is_of_the_rest(solver):
    """Exactly the evaluations that are asked for, from that λ on, in a plan whose history starts there."""
    step = find(solver).nfe_per_step
    nfe = 20 if solver == "pndm" else 6 * step
    prepared = find(solver).prepare(Budget(nfe=nfe, from_lam=-0.5), VP)
    assert prepared.nfe == nfe
    assert prepared.plan.grid[0] == prepared.grid[0] == -0.5
    assert prepared.noised
    assert prepared.plan == find(solver).plan(prepared.grid, VP, **prepared.options)


@pytest.mark.parametrize(("solver", "order"), {"ddim": 1, "dpm3": 3, "dpmpp2m": 2, "unipc3": 3, "deis-rho": 2}.items())
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_start_converges_to_the_closed_form_seed_by_seed(name, solver, order):
    """The state at λ is α d + σ z to the bit; the end is the solution from there, with an error of the solver's order."""
    schedule, errors = SCHEDULES[name], []
    x_lam = noised(schedule, 0.3)
    for steps in (40, 80):
        result = sample(model_of(schedule), x=DATA, from_lam=0.3, solver=solver, steps=steps, trajectory=True)
        assert result.trajectory[0][0] == 0.3
        assert torch.equal(result.trajectory[0][1], x_lam)
        errors.append(float((result.x - solution(schedule, 0.3, schedule.lam_max, x_lam)).abs().max()))
    assert errors[1] < 0.03
    assert np.log2(errors[0] / errors[1]) > order - 0.15


@pytest.mark.parametrize("solver", ["dpm23", "bosh3"])
def test_adaptive_solvers_begin_there_too(solver):
    result = sample(model_of(VP), x=DATA, from_lam=0.3, solver=solver, rtol=1e-3, atol=1e-3)
    assert (result.x - solution(VP, 0.3, VP.lam_max, noised(VP, 0.3))).abs().max() < 0.02


def test_a_start_of_data_has_the_law_of_the_full_path():
    """Data of the model's own law, noised to λ, is x_λ of the full path in law, so the ends are: mean α m, variance v, both to
    four standard errors; and for one image the spread around its own mean is σ_λ sqrt(v_μ/v_λ)."""
    shape, lam, mu = (400, 30), -0.4, VP.lam_max
    (alpha, _, v), (alpha_s, sigma_s, v_s) = weights(VP, mu), weights(VP, lam)
    x0 = M + S * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = {"model": model_of(VP).replace(shape=(30,)), "solver": "dpm3", "nfe": 60}
    for x in (sample(shape=shape, dtype=torch.float64, **run).x, sample(x=x0, from_lam=lam, **run).x):
        assert abs(x.mean() - alpha * M) < 4 * (v / x.numel()) ** 0.5
        assert abs(x.var() / v - 1) < 4 * (2 / x.numel()) ** 0.5
    one, spread = sample(x=x0[:1].expand(shape), from_lam=lam, **run).x, sigma_s * (v / v_s) ** 0.5
    mean = alpha * M + (v / v_s) ** 0.5 * alpha_s * (x0[:1] - M)
    assert ((one.mean(0) - mean).abs() < 4 * spread / shape[0] ** 0.5).all()
    assert abs((one - mean).std() / spread - 1) < 4 / (2 * one.numel()) ** 0.5


@pytest.mark.parametrize(("solver", "order"), {"ddpm": 1, "sde-dpmpp1": 1, "sde-dpmpp2m": 2}.items())
def test_stochastic_solvers_keep_the_law_from_any_start(solver, order):
    """From the exact law at λ the plan of the rest ends with the exact variance, up to its order; no Monte Carlo."""
    plans = [find(solver).prepare(Budget(steps=steps, from_lam=-0.4), VP).plan for steps in (100, 200)]
    errors = [abs(gaussian.variance(plan, S) / gaussian.exact(plan, plan.grid[-1], S) - 1) for plan in plans]
    assert errors[1] < 0.03
    assert np.log2(errors[0] / errors[1]) > order - 0.15


def test_the_rest_of_the_full_path_is_its_end():
    """From the state of a full path at a λ of its grid, with noise=None, a one-step method goes on to the same bits."""
    full = sample(model_of(VP), n=4, solver="dpm2", steps=10, trajectory=True)
    lam, x = full.trajectory[4]
    rest = sample(model_of(VP), x=x, from_lam=lam, noise=None, grid=full.plan.grid, solver="dpm2")
    assert rest.plan.grid == full.plan.grid[4:]
    assert torch.equal(rest.x, full.x)


@pytest.mark.parametrize("name", SCHEDULES)
def test_to_lam_and_back(name):
    """encode to λ only is the closed form backwards, and from there the way back is data again."""
    schedule = SCHEDULES[name]
    encoded = encode(model_of(schedule), DATA, to_lam=-0.2, solver="dpm3", nfe=90)
    assert encoded.plan.grid[-1] == -0.2
    assert encoded.nfe == 90
    assert (encoded.x - solution(schedule, schedule.lam_max, -0.2, DATA)).abs().max() < 1e-4
    back = sample(model_of(schedule), x=encoded.x, from_lam=-0.2, noise=None, solver="dpm3", nfe=90)
    assert back.plan.grid == encoded.plan.grid[::-1]
    assert (back.x - DATA).abs().max() < 1e-4


def test_labels_only_networks_start_at_a_label_and_have_its_noise():
    model = EpsModel(lambda x, t: 0.1 * x, DDPM, clock="label", shape=(3,))
    for named in ("time", "quadratic"):
        result = sample(model, x=DATA, from_lam=-0.123, steps=5, grid=named, trajectory=True)
        lam, x = result.trajectory[0]
        label = round(float(DDPM.t(-0.123)))
        assert lam == float(DDPM.lam(label))
        assert torch.equal(x, noised(DDPM, lam))
        assert np.allclose(DDPM.t(result.plan.grid), np.round(DDPM.t(result.plan.grid)), atol=1e-9)


def test_after_label_0_there_is_no_step():
    model = EpsModel(lambda x, t: 0.1 * x, DDPM, clock="label", shape=(3,))
    for run in (lambda: sample(model, x=DATA, from_lam=4.6), lambda: encode(model, DATA, to_lam=4.6)):
        with pytest.raises(InputError, match=r"λ = 4\.6 is nearest to label 0"):
            run()


@pytest.mark.parametrize("strength", [0.01, 0.02, 0.29, 0.58, 0.6, 0.999, 1.0, 1])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m", "unipc3", "dpm2", "rk4", "sde-dpmpp2m"])
def test_strength_runs_the_last_steps_of_the_full_grid(solver, strength):
    for denoise in (False, True) if solver != "rk4" else (False,):
        full = find(solver).prepare(Budget(steps=50, denoise=denoise), VP)
        part = find(solver).prepare(Budget(steps=50, denoise=denoise, strength=strength), VP)
        run = max(min(int(50 * strength), 50), 1)  # StableDiffusionImg2ImgPipeline.get_timesteps; it has no least
        assert part.grid.tolist() == full.grid[50 - run :].tolist()
        assert part.noised
        assert not full.noised
        if part.plan is not None:
            assert part.plan == find(solver).plan(full.grid[50 - run :], VP)


def test_strength_is_of_the_evaluations_and_of_the_paper_s_sub_sequences_too():
    assert find("dpm2").prepare(Budget(nfe=50, strength=0.6), VP).nfe == 30
    assert find("dpmpp2m").prepare(Budget(nfe=50, strength=0.6), VP).nfe == 30
    tau = find("ddim").prepare(Budget(steps=50, grid="tau-linear", denoise=True), DDPM, labels_only=True)
    rest = find("ddim").prepare(Budget(steps=50, grid="tau-linear", denoise=True, strength=0.5), DDPM, labels_only=True)
    assert rest.grid.tolist() == tau.grid[25:].tolist()


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("solver", "spacing"),  # DDIM with linspace steps by T // n, which misses its own timesteps
    [("ddim", "leading"), ("ddim", "trailing"), *(("dpmpp2m", spacing) for spacing in ("leading", "trailing", "linspace"))],
)
def test_equals_img2img_of_diffusers(solver, spacing, strength):
    """get_timesteps, add_noise and the loop of StableDiffusionImg2ImgPipeline, with two schedulers and the exact ε."""
    diffusers = pytest.importorskip("diffusers")
    table = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": spacing}
    if solver == "ddim":
        scheduler = diffusers.DDIMScheduler(**table, clip_sample=False)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(**table, final_sigmas_type="zero")
    n = 20
    scheduler.set_timesteps(n)
    begin = max(n - min(int(n * strength), n), 0)
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
    network = model_of(DDPM)
    randn_tensor = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
    z = randn_tensor(DATA.shape, generator=torch.Generator().manual_seed(9)).double()
    x = scheduler.add_noise(DATA, z, timesteps[:1].repeat(4))
    for t in timesteps:
        x = scheduler.step(network(x, float(DDPM.lam(int(t)))), t, x, return_dict=False)[0]
    lams = [float(DDPM.lam(int(t))) for t in scheduler.timesteps]
    generator = torch.Generator().manual_seed(9)
    ours = sample(network, x=DATA, grid=lams, denoise=True, strength=strength, solver=solver, seed=generator)
    assert ours.nfe == len(timesteps)
    assert (ours.x - x).abs().max() < 2e-5  # diffusers has its table in float32


def test_a_prepared_solver_and_a_plan_begin_with_data_too():
    model, prepared = model_of(VP), find("dpmpp2m").prepare(Budget(nfe=8, from_lam=0.1), VP)
    wanted = sample(model, x=DATA, from_lam=0.1, nfe=8, solver="dpmpp2m").x
    assert torch.equal(sample(model, x=DATA, solver=prepared).x, wanted)
    assert torch.equal(sample(model, x=DATA, solver=prepared.plan, from_lam=0.1).x, wanted)
    assert torch.equal(sample(model, x=noised(VP, 0.1), solver=prepared.plan).x, wanted)


def test_a_start_at_pure_noise_forgets_the_data():
    """λ = −∞ is a start like any other: x is then σ z alone."""
    flow = schedules.flow(t_noisy=1.0)
    model = EpsModel(lambda x, lam: x * 0.1, flow, "flow", clock="t", shape=(3,))
    of_data = sample(model, x=DATA, from_lam=-np.inf, steps=8, solver="dpmpp2m")
    assert torch.equal(of_data.x, sample(model, n=4, steps=8, solver="dpmpp2m", dtype=torch.float64).x)


BAD = {
    "strength of 0": ({"strength": 0}, "strength"),
    "strength above 1": ({"strength": 1.01}, "strength"),
    "strength below 0": ({"strength": -0.5}, "strength"),
    "no number": ({"strength": "0.6"}, "strength"),
    "not a number": ({"from_lam": np.nan}, "from_lam"),
    "a text": ({"from_lam": "0.5"}, "from_lam"),
    "both": ({"from_lam": 0.0, "strength": 0.5}, "either `from_lam` or `strength`"),
    "beyond the clean end": ({"from_lam": 99.0}, "outside the schedule"),
    "at the clean end": ({"from_lam": VP.lam_max}, "outside the schedule"),
    "before the noisy end": ({"from_lam": -99.0}, "outside the schedule"),
    "strength of an adaptive pair": ({"strength": 0.5, "solver": "dpm23"}, "from_lam"),
    "strength of torchdiffeq": ({"strength": 0.5, "solver": "dopri5"}, "from_lam"),
    "τ": ({"from_lam": 0.0, "grid": "tau-linear", "denoise": True, "steps": 9}, "strength"),
    "no data": ({"from_lam": 0.0, "x": None, "n": 4}, "give it as x"),
    "nor with strength": ({"strength": 0.4, "x": None, "n": 4}, "give it as x"),
    "data and a number": ({"from_lam": 0.0, "n": 4}, "one of n"),
    "a prepared solver": ({"from_lam": 0.0, "solver": find("ddim").prepare(Budget(4), VP)}, "has been prepared"),
    "a plan from elsewhere": ({"from_lam": 0.0, "solver": find("ddim").plan([-1, 0, 1], VP)}, "begins at λ = -1.0"),
    "a part of a plan": ({"strength": 0.5, "solver": find("ddim").plan([-1, 0, 1], VP)}, "is a plan"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_starts_are_refused(what):
    given, says = BAD[what]
    with pytest.raises(InputError, match=says):
        sample(**{"model": model_of(VP), "x": DATA, **given})


def test_encode_says_where_it_cannot_go():
    for to_lam in (99.0, VP.lam_max, -99.0, np.nan, "0"):
        with pytest.raises(InputError):
            encode(model_of(VP), DATA, to_lam=to_lam)
    with pytest.raises(InputError, match="strength"):
        find("ddim").prepare(Budget(strength=0.5), VP, backwards=True)
    assert not find("ddim").prepare(Budget(from_lam=0.5), VP, backwards=True).noised
