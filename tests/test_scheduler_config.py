"""Schedules of tables and flows, and what the configurations of diffusers' schedulers say, against diffusers itself."""

import inspect
import json

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, prediction, sample, schedules
from diffode.models.card import Card
from diffode.schedule import Schedule
from diffode.scheduler_config import BETAS, DEFAULTS, EDM, FLOW, PLAIN, trained_as

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of theirs
LABELS = np.arange(1000)
ON_TABLES = [*DEFAULTS, *PLAIN]
NEEDS = "torchsde"  # which some schedulers of diffusers are not made without


def theirs(name, **config):
    try:
        return getattr(diffusers, name)(**config)
    except ImportError as error:
        pytest.skip(f"diffusers: {error}") if NEEDS in str(error) else pytest.fail(str(error))


def bars(schedule, labels=LABELS):
    return schedule.alpha(schedule.lam(labels)) ** 2


def assert_same_table(scheduler, schedule):
    """ᾱ to 1e-6, since theirs is a product in float32."""
    exact = scheduler.alphas_cumprod.double().numpy()
    assert abs(bars(schedule, np.arange(len(exact))) - exact).max() < 1e-6
    assert len(schedule.knots) == len(exact)


@pytest.mark.parametrize("name", ON_TABLES)
def test_every_scheduler_of_a_table_with_its_own_defaults(name):
    """From its whole configuration, with and without its name, from its name alone, and from itself."""
    steps = {"num_train_timesteps": 100}
    scheduler = theirs(name, **steps)
    for config in ({**scheduler.config, "_class_name": name}, scheduler.config, {"_class_name": name, **steps}, scheduler):
        assert_same_table(scheduler, Schedule.from_config(config))


def test_no_scheduler_of_a_table_is_missing():
    """Those of diffusers that take a beta_schedule."""
    everything = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    taking = {name for name in everything if "beta_schedule" in inspect.signature(getattr(diffusers, name).__init__).parameters}
    assert taking - {*DEFAULTS, *PLAIN} == set()


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_table(kind, zero_snr):
    """By the scheduler that knows the table."""
    if kind == "exp":
        scheduler = theirs("HeunDiscreteScheduler", beta_schedule=kind)
    else:
        scheduler = theirs("DDPMScheduler", beta_schedule=kind, rescale_betas_zero_snr=zero_snr)
    schedule = trained_as({**scheduler.config, "_class_name": type(scheduler).__name__})["schedule"]
    assert_same_table(scheduler, schedule)
    assert (schedule.lam_min == -np.inf) == (zero_snr and kind != "exp")


@pytest.mark.parametrize("config", [{}, {"rescale_betas_zero_snr": True}, {"snr_shift_scale": 1.5, "beta_schedule": "linear"}])
def test_cogvideox_shifts_its_snr(config):
    scheduler = theirs("CogVideoXDDIMScheduler", **config)
    assert_same_table(scheduler, Schedule.from_config({**scheduler.config, "_class_name": "CogVideoXDDIMScheduler"}))


def test_trained_betas_are_taken_as_they_are():
    betas = np.random.default_rng(0).uniform(1e-4, 0.02, 1000)
    scheduler = theirs("DDIMScheduler", trained_betas=betas.tolist())
    assert_same_table(scheduler, Schedule.from_config(dict(scheduler.config)))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"])
def test_the_sigmas_of_k_diffusion(name):
    """σ/α at every label, in one table of β, and read as a table of σ. Theirs is 1 − ᾱ and its like in float32."""
    scheduler = theirs(name, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    exact = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt().numpy()
    of_betas = Schedule.from_config({**scheduler.config, "_class_name": name})
    for schedule in (of_betas, schedules.from_sigmas(exact), schedules.from_sigmas(torch.as_tensor(exact), "ve")):
        lam = schedule.lam(LABELS)
        assert abs(schedule.sigma(lam) / schedule.alpha(lam) / exact - 1).max() < 1e-4
    assert abs(np.exp(-schedules.from_sigmas(exact).lam(LABELS)) / exact - 1).max() < 1e-12


def test_from_sigmas_is_linear_in_lam_between_labels():
    schedule = schedules.from_sigmas([0.1, 0.5, 4.0, 9.0], path="ve")
    t = np.linspace(0, 3, 50)
    exact = np.exp(np.interp(t, np.arange(4), np.log([0.1, 0.5, 4.0, 9.0])))
    np.testing.assert_allclose(schedule.sigma(schedule.lam(t)), exact, rtol=1e-12)
    np.testing.assert_allclose(schedule.t(schedule.lam(t)), t, atol=1e-12)
    inner = np.array([0.25, 1.5, 2.75])
    central = (schedule.lam(inner + 1e-6) - schedule.lam(inner - 1e-6)) / 2e-6
    np.testing.assert_allclose(schedule.rate(inner), central, rtol=1e-7)
    assert schedule.t(schedule.knots).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_shifted_flow(shift, reverse):
    """λ = log((1 − u)/u) − log s on the grid `time`, which runs over all of [0, 1]; the clock is σ, or 1 − σ, there and back."""
    schedule = schedules.flow(0.0, 1.0, shift, reverse)
    lams = grid.make("time", schedule, 10)
    u = np.linspace(1, 0, 11)[1:-1]
    np.testing.assert_allclose(lams[1:-1], np.log((1 - u) / u) - np.log(shift), rtol=0, atol=1e-12)
    assert (lams[0], lams[-1]) == (-np.inf, np.inf)
    sigma = shift * u / (1 + (shift - 1) * u)
    np.testing.assert_allclose(schedule.t(lams[1:-1]), 1 - sigma if reverse else sigma, rtol=0, atol=1e-14)
    np.testing.assert_allclose(schedule.lam(schedule.t(lams[1:-1])), lams[1:-1], rtol=0, atol=1e-12)
    t = schedule.t(lams[1:-1])
    central = (schedule.lam(t + 1e-7) - schedule.lam(t - 1e-7)) / 2e-7
    np.testing.assert_allclose(schedule.rate(t), central, rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"shift": 3.0}, {"shift": 3.0, "reverse": True}, {"reverse": True}])
@pytest.mark.parametrize("name", ["logsnr", "karras", "time", "quadratic"])
def test_every_grid_of_a_flow(how, name):
    """The grids in λ and σ̄ know nothing of shift and direction; `time` and `quadratic` do not know the direction."""
    schedule = schedules.flow(**how)
    lams = grid.make(name, schedule, 7)
    assert lams[[0, -1]].tolist() == [schedule.lam_min, schedule.lam_max]
    forwards = schedules.flow(**how | {"reverse": False})
    np.testing.assert_allclose(lams, grid.make(name, forwards, 7), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW[:3])
def test_flow_matching_of_diffusers(name, shift):
    """The σ of its training steps, u = 1, 0.999 ... 0.001, and the times it calls the network with."""
    scheduler = theirs(name, shift=shift)
    trained = trained_as({**scheduler.config, "_class_name": name})
    assert (trained["predicts"], trained["clock"]) == ("flow", "1000t")
    schedule = trained["schedule"]
    lams = grid.make("time", schedule, 1000)[:-1]
    assert abs(schedule.sigma(lams) - scheduler.sigmas[:1000].double().numpy()).max() < 1e-6
    if name == FLOW[0]:
        assert abs(1000 * schedule.t(lams) - scheduler.timesteps.double().numpy()).max() < 1e-3


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_that_depends_on_the_resolution(kind):
    """As Flux's pipeline asks for it, with u from 1 to 1/n and its μ."""
    scheduler = theirs(FLOW[0], use_dynamic_shifting=True, time_shift_type=kind)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.9)
    schedule = Schedule.from_config({**scheduler.config, "_class_name": FLOW[0]}, mu=0.9)
    assert abs(schedule.sigma(grid.make("time", schedule, 8)) - scheduler.sigmas.double().numpy()).max() < 1e-6


def test_a_dpm_solver_of_diffusers_on_a_flow():
    scheduler = theirs("DPMSolverMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    trained = trained_as({**scheduler.config, "_class_name": "DPMSolverMultistepScheduler"})
    assert (trained["predicts"], trained["clock"], trained["schedule"].name) == ("flow", "1000t", "flow")
    assert dict(trained["schedule"].options)["shift"] == 3.0


def test_inverted_sigmas_are_a_flow_whose_clock_runs_to_the_data():
    trained = trained_as({"_class_name": FLOW[0], "invert_sigmas": True, "num_train_timesteps": 500})
    assert (trained["predicts"], trained["clock"]) == ("reverse-flow", "500t")
    assert dict(trained["schedule"].options)["reverse"] is True


@pytest.mark.parametrize("name", [*FLOW, *EDM])
def test_a_configuration_without_the_name_of_its_scheduler(name):
    """As pipe.scheduler.config is: nothing but its keys says what it is."""
    config = dict(theirs(name, **({} if name == FLOW[3] else {"num_train_timesteps": 500})).config)
    if name == FLOW[3]:
        with pytest.raises(InputError, match="without _class_name"):
            trained_as(config)  # it has one key that all have
    else:
        known, found = trained_as(config | {"_class_name": name}), trained_as(config)
        assert (known["predicts"], known["clock"], repr(known["schedule"])) == (
            found["predicts"],
            found["clock"],
            repr(found["schedule"]),
        )


def test_one_step_of_flow_matching_is_theirs():
    """Euler's step there is ddim's here, over the whole of [0, 1], and the network is called with the same times."""
    scheduler = theirs(FLOW[0], shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6))
    times, seen = [], []

    def network(x, t):
        seen.append(float(t[0]))
        return torch.tanh(x + t[:, None] / 1000)

    x = start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in scheduler.timesteps:
        times.append(float(t))
        x = scheduler.step(network(x, t.double().expand(2)), t, x).prev_sample
    seen.clear()
    model = EpsModel(network, **trained_as(dict(scheduler.config) | {"_class_name": FLOW[0]}))
    ours = sample(model, solver="ddim", steps=6, grid="time", x=start).x
    np.testing.assert_allclose(seen, times, rtol=1e-6)
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EDM)
def test_edm_of_diffusers(name):
    """x̂0 and the network's input and clock are those of the scheduler's own preconditioning."""
    scheduler = theirs(name)
    trained, sigma_data = trained_as({**scheduler.config, "_class_name": name}), scheduler.config.sigma_data
    schedule, seen = trained["schedule"], []

    def network(x, t):
        seen.append((x, t))
        return torch.tanh(x)

    assert np.exp(-np.array([schedule.lam_max, schedule.lam_min])) == pytest.approx(
        [scheduler.config.sigma_min, scheduler.config.sigma_max]
    )
    y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.5, 3.0):
        lam = -np.log(sigma)
        found = EpsModel(network, **trained)(y * float(schedule.alpha(lam)), lam, "data")
        sigma = torch.tensor(sigma, dtype=torch.float64)
        exact = scheduler.precondition_outputs(y, torch.tanh(scheduler.precondition_inputs(y, sigma)), sigma)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
        x, t = seen[-1]
        torch.testing.assert_close(x, scheduler.precondition_inputs(y, sigma), rtol=0, atol=1e-12)
        assert t[0] == pytest.approx(float(scheduler.precondition_noise(sigma)), abs=1e-12)
    assert f"edm({sigma_data:g})" in {trained["predicts"], "edm(0.5)", "edm(1)"}


def test_sigma_data_is_in_the_name_of_the_prediction():
    assert trained_as({"_class_name": "EDMEulerScheduler", "sigma_data": 0.7})["predicts"] == "edm(0.7)"
    with pytest.raises(InputError, match="v_prediction with sigma_data = 1"):
        trained_as({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"})


def test_stable_audios_angle_is_the_clock():
    """CosineDPMSolverMultistep's precondition_noise, without torchsde: 2/π arctan σ."""
    trained = trained_as({"_class_name": "CosineDPMSolverMultistepScheduler"})
    assert (trained["predicts"], trained["clock"], trained["schedule"].name) == ("velocity", "angle", "vp_sigma")
    assert np.exp(-trained["schedule"].lam_min) == pytest.approx(500)


def test_stable_video_diffusions_clock_is_continuous():
    """EulerDiscrete divides by sqrt(σ² + 1), calls with log(σ)/4, and makes x̂0 = c_skip x + c_out v."""
    config = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}
    scheduler = theirs("EulerDiscreteScheduler", **config, use_karras_sigmas=True)
    scheduler.set_timesteps(5)
    trained = trained_as({**scheduler.config, "_class_name": "EulerDiscreteScheduler"})
    y, seen = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), []

    def network(x, t):
        seen.append(t)
        return torch.tanh(x)

    t, sigma = scheduler.timesteps[2], float(scheduler.sigmas[2])
    inner = scheduler.scale_model_input(y, t)
    exact = scheduler.step(torch.tanh(inner), t, y).pred_original_sample
    found = EpsModel(network, **trained)(inner, -np.log(sigma), "data")
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    assert float(seen[0][0]) == pytest.approx(float(t), abs=1e-6)


@pytest.mark.parametrize("betas", [np.linspace(1e-4, 0.02, 1000), np.array([0.1, 0.2, 0.3])])
def test_zero_terminal_snr_is_algorithm_1(betas):
    """√ᾱ: the first value stays, the last is 0, and all between are moved by one affine map (Lin et al., 2024, Alg. 1)."""
    found = schedules.zero_terminal_snr(betas)
    before, after = (np.sqrt(np.cumprod(1 - b)) for b in (betas, found))
    assert after[0] == before[0]
    assert (found[-1], after[-1]) == (1, 0)
    ratio = (after[0] - after[1:]) / (before[0] - before[1:])
    np.testing.assert_allclose(ratio, before[0] / (before[0] - before[-1]), rtol=1e-9)
    assert schedules.zero_terminal_snr(found).tolist() == found.tolist()


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.scaled_linear(zero_snr=True),
        schedules.squared_cosine(50),
        schedules.flow(0.0, 1.0, shift=3.0, reverse=True),
        schedules.vp_sigma(),
        schedules.ddpm_table([0.1, 0.2, 0.4]),
        schedules.from_sigmas(np.array([0.1, 1.0, 9.0]), "ve"),
    ],
    ids=lambda schedule: schedule.name,
)
def test_a_card_names_every_schedule(schedule):
    model = EpsModel(torch.zeros_like, schedule, "flow" if schedule.path.name == "flow" else "noise", shape=(1, 2, 2))
    read = Card.from_json(json.loads(json.dumps(Card.of(model, "unet").to_json())), "a card").make_schedule()
    assert (read.name, read.options, read.lam_min, read.lam_max) == (
        schedule.name,
        schedule.options,
        schedule.lam_min,
        schedule.lam_max,
    )
    assert repr(read) == repr(schedule)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_shift_by_resolution_is_of_a_configuration_that_has_one(name):
    with pytest.raises(InputError, match="`mu` is of a shift that depends on the resolution"):
        trained_as({"_class_name": name}, mu=1.0)


@pytest.mark.parametrize("value", [1, "yes"])
@pytest.mark.parametrize("flag", ["rescale_betas_zero_snr", "use_flow_sigmas", "use_dynamic_shifting", "invert_sigmas"])
def test_flags_are_true_or_false(flag, value):
    flow = flag in ("use_dynamic_shifting", "invert_sigmas")
    with pytest.raises(InputError, match=f"`{flag}` must be True or False"):
        trained_as({"_class_name": "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler", flag: value})


def test_all_digits_of_sigma_data_count():
    predicts = trained_as({"_class_name": "EDMEulerScheduler", "sigma_data": 0.123456789})["predicts"]
    n = np.hypot(0.8, 0.6 * 0.123456789)  # F = (σ x0/σ_data − σ_data α ε)/n, ε = (x − α x0)/σ
    assert prediction.convert("data", predicts, 0.6, 0.8)[0] == pytest.approx(-0.123456789 * 0.6 / 0.8 / n, rel=1e-14)


def test_it_needs_no_diffusers():
    import subprocess
    import sys

    code = "import sys; from diffode.scheduler_config import trained_as; trained_as({'_class_name': 'DDIMScheduler'}); "
    subprocess.run([sys.executable, "-c", code + "assert not {'diffusers', 'torch'} & sys.modules.keys()"], check=True)
