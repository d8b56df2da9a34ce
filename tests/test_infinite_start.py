"""Schedules that begin at pure noise, λ = −∞: flow from t = 1, cosine from t = 1, tables rescaled to zero terminal SNR."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from diffode import EpsModel, InputError, encode, grid, sample, schedules
from experiments.metrics.sample_card import read_card
from solvers import SOLVERS
from solvers.registry import all_names, find

STEPS = 5
BETAS = np.linspace(1e-4, 0.02, 1000)


def rescaled(betas):
    """Algorithm 1 of Lin et al. (2024): sqrt(ᾱ) shifted and scaled so that its last value is 0 and its first stays."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - np.concatenate([[root[0]], root[1:] / root[:-1]]) ** 2


SCHEDULES = {
    "flow from 1 to 0": schedules.flow(0.0, 1.0),
    "flow from 1": schedules.flow(t_noisy=1.0),
    "cosine from 1": schedules.cosine(t_noisy=1.0),
    "zero terminal SNR": schedules.ddpm_table(rescaled(BETAS)),
}
NOISE_FORM = {name for name in SOLVERS if name.startswith(("dpm2", "dpm3", "dpm-fast", "deis", "ipndm", "pndm", "heun", "rk:"))}


def straight(schedule, target=0.5):
    """The exact network of a point mass at `target`: x̂0 = target at every λ. So every deterministic solver ends exactly there."""
    return EpsModel(lambda x, t: torch.full_like(x, target), schedule, "data")


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", [name for name in all_names() if find(name).has_plan])
def test_a_point_mass_is_met_from_pure_noise_or_the_solver_says_which_one_to_take(name, schedule):
    """By default: no grid is named. Noisy solvers are met in the mean, and in the last step to σ = 0 exactly."""
    prepared = {"solver": name, "steps": STEPS, "shape": (3, 4), "dtype": torch.float64, "denoise": True}
    if find(name).build is not None and name.removesuffix("+unic") in NOISE_FORM:
        with pytest.raises(InputError, match=r"in noise form can leave λ = -inf.*take one in data form"):
            sample(straight(schedule), **prepared)
        return
    x = sample(straight(schedule), **prepared).x
    torch.testing.assert_close(x, torch.full_like(x, 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["dpmpp12", "dpmpp23"])
def test_adaptive_pairs_in_data_form_begin_there(name, schedule):
    x = sample(straight(schedule), solver=name, grid=[-np.inf, 4.0, np.inf], shape=(3, 4), dtype=torch.float64).x
    torch.testing.assert_close(x, torch.full_like(x, 0.5), rtol=0, atol=1e-12)
    with pytest.raises(InputError, match=r"dpm23.*data form"):
        sample(straight(schedule), solver="dpm23", grid=[-np.inf, 4.0], shape=(3, 4))


def test_it_is_ddim_of_diffusers_on_trailing_labels():
    """rescale_betas_zero_snr and timestep_spacing="trailing": labels 999, 799, ..., then σ = 0, with a velocity network."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(STEPS)
    labels = scheduler.timesteps.tolist()
    assert labels == [999, 799, 599, 399, 199]

    def velocity(x, t, **_):
        return torch.sin(3 * x + 0.002 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)))

    schedule = schedules.ddpm_table(scheduler.betas.double().numpy())
    x = theirs = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in labels:
        theirs = scheduler.step(velocity(theirs, [t]), t, theirs).prev_sample
    model = EpsModel(velocity, schedule, "velocity", clock="label")
    ours = sample(model, x=x, solver="ddim", grid=[*schedule.lam(labels), np.inf]).x
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # their table is in float32


def test_the_grids_that_begin_there():
    """logsnr has no equal steps there and says what does; time, quadratic and lists begin there; denoise adds no second end."""
    for name, schedule in SCHEDULES.items():
        assert grid.default(schedule) == "time"
        for spacing in ("time", "quadratic"):
            for denoise in (False, True):
                lams = grid.make(spacing, schedule, STEPS, denoise=denoise)
                assert len(lams) == STEPS + 1
                assert lams[0] == -np.inf
                assert (lams[-1] == np.inf) == (denoise or name == "flow from 1 to 0")
        for spacing in ("logsnr", "karras"):
            with pytest.raises(InputError, match=r'use grid="time"'):
                grid.make(spacing, schedule, STEPS)
        assert grid.make([-np.inf, 0.0, 2.0], schedule)[0] == -np.inf
    assert grid.default(schedules.flow()) == "logsnr"


def test_a_noise_network_says_nothing_there():
    model = straight(SCHEDULES["cosine from 1"]).replace(predicts="noise")
    with pytest.raises(InputError, match=r"predicts noise does not determine data where α = 0"):
        sample(model, solver="ddim", nfe=STEPS, shape=(2, 3))
    assert sample(model, solver="ddim", grid=[-5.0, 0.0, 4.0], shape=(2, 3)).x.isfinite().all()


def test_nothing_is_encoded_to_pure_noise():
    model, x = straight(SCHEDULES["flow from 1"]), torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"cannot be run backwards from λ = .* to -inf: give a grid with finite ends"):
        encode(model, x, nfe=STEPS)
    assert encode(model, x, grid=[-5, -2, 0, 2, 4.6]).x.isfinite().all()


MODULE = """
from diffode import EpsModel, schedules
model = EpsModel(lambda x, t: 0.3 * x, schedules.flow(0.0, 1.0), "flow", shape=(1, 8, 8))
turned = EpsModel(lambda x, t: 0.3 * x, schedules.cosine(t_noisy=1.0), "velocity", shape=(1, 8, 8))
"""


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "begins_at_noise:model", "--nfe", "3"],
        ["--model", "begins_at_noise:model", "--nfe", "1"],
        ["--model", "begins_at_noise:model", "--nfe", "3", "--denoise", "--trajectory"],
        ["--model", "begins_at_noise:turned", "--grid=-inf,-3,0,3", "--save-plan", "plan.json", "--out", "list.npz"],
        ["--model", "begins_at_noise:model", "--solver", "dpmpp23", "--grid=-inf,4,inf", "--out", "adaptive.npz"],
    ],
    ids=" ".join,
)
def test_the_command_line_samples_from_there(options, tmp_path, monkeypatch):
    """The card is JSON, and the job that it holds is the same one: the output exists, and is made again to the same bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "begins_at_noise.py").write_text(MODULE)
    command = ["sample", "--n", "2", *(options if "--solver" in options else ["--solver", "dpmpp2m", *options])]
    first = CliRunner().invoke(cli.main, command)
    assert first.exit_code == 0, first.output + repr(first.exception)
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".png", ".npz")}
    assert made
    (card,) = (json.loads(path.read_text(), parse_constant=pytest.fail) for path in tmp_path.rglob("*.*.json"))
    assert card["grid"][0] == "-inf"
    if "--out" in options:
        out = options[options.index("--out") + 1]
        assert "from λ = -inf" in read_card(out, 2).lines(2)[1]
    assert CliRunner().invoke(cli.main, [*command, "--overwrite"]).exit_code == 0
    assert {path: path.read_bytes() for path in made} == made
