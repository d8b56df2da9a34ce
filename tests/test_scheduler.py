"""DiffodeScheduler in pipelines of diffusers: the same numbers as diffode's own loop and as diffusers' schedulers (agreement.py),
its face, and what it refuses."""

import re
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("diffusers") is None or find_spec("transformers") is None:
    pytest.skip("needs diffusers and transformers", allow_module_level=True)

import diffusers

import diffode
from diffode import DiffodeScheduler, EpsModel, InputError, Plan, schedules
from solvers import find, run
from tests.agreement import (
    DIFFERENCES,
    DOCUMENT,
    IN_TWO,
    OF_EACH_KIND,
    TABLE,
    cells,
    differing,
    final,
    half,
    listed,
    ours,
    parted,
    relative,
)
from tests.pipelines import SD, fresh, normal

SAID = "DeprecationWarning", "FutureWarning", "UserWarning"  # by diffusers, transformers and numpy of each other
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in SAID]
CELLS = cells()
DDIM = diffusers.DDIMScheduler(**SD)


def mark(cell):
    return pytest.param(
        cell, id="-".join((cell.family, cell.feature, cell.against, cell.solver)), marks=[pytest.mark.slow] * cell.slow
    )


@pytest.mark.parametrize("cell", [mark(cell) for cell in CELLS])
def test_the_final_latents_agree(cell):
    """To float32: 1e-5 of their size, in five steps. The slow ones are every solver in every family."""
    assert cell.measure() <= cell.bound


def test_the_document_lists_these_cells_and_what_they_keep():
    rows = {tuple(row[:3]): float(row[3]) for row in listed()}
    assert list(rows) == list(dict.fromkeys(cell.name for cell in CELLS))
    for cell in CELLS:
        assert rows[cell.name] <= cell.bound


def test_bfloat16_is_as_far_from_float32_as_with_diffusers():
    """To rounding, which two orders of operations share but for chance."""
    assert half() <= 1.3


def test_the_document_lists_where_images_differ():
    rows = listed("differences")
    assert [row[0] for row in rows] == list(DIFFERENCES)
    assert [row[0] for row in listed("in two")] == list(IN_TWO)
    assert min(float(row[2]) for row in rows) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("setting", DIFFERENCES)
def test_images_differ_where_the_document_says_so(setting):
    """By what it says, which is rounded to one digit: by half at most."""
    row = next(row for row in listed("differences") if row[0] == setting)
    assert float(differing(setting)[2]) == pytest.approx(float(row[2]), rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_TWO)
def test_a_base_and_a_refiner_differ_from_one_run_as_the_document_says(name):
    """Rounded to one digit."""
    off = dict(listed("in two"))[name]
    assert parted(*IN_TWO[name]) == pytest.approx(float(off), rel=0.5, abs=1e-6)


def test_the_snippets_of_the_document_run(capsys):
    found = re.findall(r"<!-- snippet: tests run this -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    scope = {"pipe": fresh("sd")}
    for code in found:
        exec(code, scope)
    assert scope["image"].size == (16, 16)
    assert capsys.readouterr().out.endswith("sde-dpmpp2m DDIMScheduler\n")


def test_the_document_lists_the_pipelines_that_look_at_the_class_of_their_scheduler():
    """Of the version that it names; isinstance, counters and tables, found in the installed source, of deprecated ones too."""
    text = DOCUMENT.read_text(encoding="utf-8")
    if not diffusers.__version__.startswith(re.search(r"Of diffusers (\d+\.\d+);", text)[1]):
        pytest.skip("another version of diffusers than the document names")
    looks = re.compile(
        r"isinstance\(\s*(?:self\.)?scheduler, \w+|original_inference_steps|scheduler\.(?:_step_index|model_outputs|betas|eta)\b"
    )
    tables = re.compile(
        r"scheduler\.(?:alphas\w*|_get_variance|schedule|step_correct|set_sigmas)\b|does not support using a scheduler"
    )
    folder, sources = Path(diffusers.__file__).parent / "pipelines", {}
    for path in folder.rglob("pipeline_*.py"):
        sources[path.relative_to(folder).with_suffix("").as_posix()] = path.read_text(encoding="utf-8")
    expected = {name for name, source in sources.items() if looks.search(source) or tables.search(source)}
    assert expected == set(re.findall(r"`([\w/]+/pipeline_\w+)`", text))


def scheduler(config=DDIM, steps=4, **settings):
    made = DiffodeScheduler.from_config(config, **{"solver": "ddim", **settings})
    if steps:
        made.set_timesteps(steps)
    return made


def driven(made, network, x, **step):
    """A loop as pipelines have it: the last state."""
    for t in made.timesteps:
        x = made.step(network(made.scale_model_input(x, t), t), t, x, return_dict=False, **step)[0]
    return x


def tanh(x, t):
    return torch.tanh(x + t / 1000)


# ---- its face


def test_the_face_before_and_after_set_timesteps():
    made = scheduler(solver="heun", steps=None)
    assert made.order == 2
    assert len(made) == 1000
    assert made.begin_index is made.step_index is made.num_inference_steps is None
    made.set_timesteps(4, device="cpu")
    assert made.num_inference_steps == 4
    assert made.timesteps.dtype == made.sigmas.dtype == torch.float32
    assert made.timesteps.tolist() == [751, 501, 501, 251, 251, 1, 1]  # to σ = 0 in one evaluation, as diffusers' Heun
    assert len(made.sigmas) == 8
    assert made.sigmas[-1] == 0
    assert made.config.steps_offset == 1
    assert made.plan.nfe == 7


@pytest.mark.parametrize("solver", OF_EACH_KIND)
def test_timesteps_are_the_clocks_and_sigmas_the_levels_of_all_evaluations(solver):
    made = scheduler(solver=solver, grid="logsnr", denoise=True)
    lams = np.array([stage.lam for stage in made.plan.stages if stage.evaluate])
    assert len(made.timesteps) == made.plan.nfe
    schedule = schedules.scaled_linear()
    np.testing.assert_allclose(made.timesteps, schedule.t(lams), rtol=1e-6)
    np.testing.assert_allclose(made.sigmas, [*np.exp(-lams), 0], rtol=1e-6)


def test_step_returns_the_state_and_x0_by_name_or_as_a_tuple():
    made, again, x = scheduler(), scheduler(), normal(2, 3)
    by_name = made.step(0.1 * x, made.timesteps[0], x)
    state, x0 = again.step(0.1 * x, again.timesteps[0], x, return_dict=False)
    assert by_name.prev_sample is not None
    assert torch.equal(by_name.prev_sample, state)
    alpha, sigma = (float(f(made.plan.grid[0])) for f in (schedules.scaled_linear().alpha, schedules.scaled_linear().sigma))
    torch.testing.assert_close(x0, (x - sigma * 0.1 * x) / alpha, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_name.pred_original_sample, x0)
    assert made.step_index == 1


@pytest.mark.parametrize(("config", "path"), [(DDIM, "vp"), (diffusers.FlowMatchEulerDiscreteScheduler(), "flow")])
def test_noise_is_added_by_the_path(config, path):
    made = scheduler(config)
    x, noise = normal(2, 3), normal(2, 3, seed=1)
    schedule = schedules.scaled_linear() if path == "vp" else schedules.flow(0, 1)
    alpha, sigma = (torch.tensor(f(made.plan.grid[1:3]), dtype=torch.float32)[:, None] for f in (schedule.alpha, schedule.sigma))
    torch.testing.assert_close(made.add_noise(x, noise, made.timesteps[1:3]), alpha * x + sigma * noise)
    torch.testing.assert_close(made.scale_noise(x, made.timesteps[1:2], noise), alpha[0] * x + sigma[0] * noise)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noise_is_added_at_any_timestep_with_and_without_a_run(name):
    """As in training, by diffusers' own; to what float32 has of its ᾱ."""
    theirs, x, noise = getattr(diffusers, name)(), normal(3, 3), normal(3, 3, seed=1)
    times = theirs.timesteps[[3, 497, 988]]
    add = theirs.add_noise if name == "DDIMScheduler" else lambda x, noise, times: theirs.scale_noise(x, times, noise)
    for steps in (None, 4):
        made = scheduler(theirs, steps=steps)
        torch.testing.assert_close(made.add_noise(x, noise, times), add(x, noise, times), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="outside the clock"):
        made.add_noise(x, noise, times + 1000)


def test_the_noise_is_that_of_the_generator_or_the_global_one():
    """Draw k is the k-th tensor, though heun-churn uses the second first; one generator per sample as diffusers has them."""
    made, x = scheduler(solver="heun-churn"), normal(2, 3, 4)
    draws = sorted({stage.draw for stage in made.plan.stages} - {None})
    assert draws[0] > 1
    one = driven(made, tanh, x, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    made.set_timesteps(4)
    assert torch.equal(driven(made, tanh, x), one)
    made.set_timesteps(4)
    both = driven(made, tanh, x, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    for row, seed in enumerate((5, 6)):
        made.set_timesteps(4)
        alone = driven(made, tanh, x[row : row + 1], generator=[torch.Generator().manual_seed(seed)])
        torch.testing.assert_close(alone[0], both[row])


def test_it_is_copied_in_the_middle_of_a_run():
    made, x = scheduler(solver="unipc3", steps=6), normal(2, 3)
    for t in made.timesteps[:3]:
        x = made.step(tanh(x, t), t, x).prev_sample
    other, y = deepcopy(made), x
    for t in made.timesteps[3:]:
        x = made.step(tanh(x, t), t, x).prev_sample
    for t in other.timesteps[3:]:
        y = other.step(tanh(y, t), t, y).prev_sample
    assert torch.equal(x, y)


@pytest.mark.parametrize("solver", ["unipc3", "heun"])
def test_gradients_flow_through_a_run(solver):
    """Those of diffode's own loop."""
    made, grads = scheduler(solver=solver, steps=3), []
    model = EpsModel(tanh_of_batch, schedules.scaled_linear())
    for end in (lambda x: driven(made, tanh, x), lambda x: run(made.plan, model, x, differentiable=True).x):
        x = normal(2, 3).requires_grad_()
        end(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_a_run_that_begins_later_is_that_of_the_rest_of_the_grid():
    """Said by set_begin_index, or by the first timestep that `step` is given."""
    x = normal(2, 3)
    for told in (True, False):
        made = scheduler(solver="heun", steps=5)
        plan = find("heun").plan(made.plan.grid[2:], schedules.scaled_linear())
        expected = run(plan, EpsModel(tanh_of_batch, schedules.scaled_linear()), x).x
        if told:
            made.set_begin_index(4)
        state = x
        for t in made.timesteps[4:]:
            state = made.step(tanh(state, t), t, state).prev_sample
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


def test_a_run_begins_with_the_first_of_equal_timesteps():
    """UniPC rounds 150 shifted times to whole labels, of which the first two are one."""
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=16.0)
    made = scheduler(unipc, solver="unipc2", clock="pipeline", steps=150)
    assert made.timesteps[0] == made.timesteps[1]
    made.step(normal(1, 4), made.timesteps[0], normal(1, 4))
    assert made.step_index == 1


def tanh_of_batch(x, t):
    return tanh(x, t[0])


def test_half_precision_keeps_what_it_was_not_told_to_change():
    """The state goes on in float32: rounded to bfloat16 between steps it is as far off as bfloat16 rounds, once, not once a step.
    Where the pipeline changed a number, its own is taken."""
    made, x = scheduler(steps=50), normal(64, 16)
    wide = driven(made, lambda x, t: torch.zeros_like(x), x)
    made.set_timesteps(50)
    narrow = driven(made, lambda x, t: torch.zeros_like(x), x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    scale = float(wide[0, 0] / x[0, 0])
    torch.testing.assert_close(narrow, (scale * x.bfloat16().float()).bfloat16(), rtol=0, atol=0)
    made.set_timesteps(2)
    state = made.step(torch.zeros_like(x).bfloat16(), made.timesteps[0], x.bfloat16()).prev_sample.clone()
    state[0] = 7
    after = made.step(torch.zeros_like(state), made.timesteps[1], state).prev_sample
    assert (after[0] == after[0, 0]).all()


def test_the_replaced_scheduler_comes_back():
    made = scheduler(solver="dpmpp2m", lower_final=True)
    again = diffusers.DDIMScheduler.from_config(made.config)
    assert {**again.config, "_class_name": ""} == {**again.config, "_class_name": ""} | {key: DDIM.config[key] for key in SD}
    other = DiffodeScheduler.from_config(made)
    assert dict(other.config) == dict(made.config)
    assert DiffodeScheduler.from_config(made, solver="unipc3").config.options == {}
    assert DiffodeScheduler.from_config(dict(made.config)).config.replaced == "DDIMScheduler"


def test_keys_of_the_replaced_class_are_changed_beside_options():
    made = scheduler(solver="dpmpp2m", timestep_spacing="trailing", lower_final=True)
    assert made.config.timestep_spacing == "trailing"
    assert made.config.options == {"lower_final": True}
    assert made.timesteps[0] == 999


def test_a_plan_is_saved_with_the_pipeline(tmp_path):
    pipe = fresh("sd")
    grid = scheduler(steps=4).plan.grid
    plan = find("unipc2").plan(grid, schedules.scaled_linear())
    plan.save(tmp_path / "plan.json")
    expected = final(ours(pipe, plan), "sd")
    assert torch.equal(final(ours(pipe, str(tmp_path / "plan.json")), "sd"), expected)
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "plan.json").unlink()
    pipe.scheduler = DiffodeScheduler.from_pretrained(tmp_path / "scheduler")
    assert pipe.scheduler.config.solver == "unipc2"
    assert Plan.from_text(pipe.scheduler.config.plan) == plan
    assert torch.equal(final(pipe, "sd"), expected)
    with pytest.raises(InputError, match="the plan has 4 steps, and the pipeline asks for 5: call it with num_inference_steps=4"):
        pipe.scheduler.set_timesteps(5)
    pipe.scheduler.set_timesteps(4)
    pipe.scheduler.set_begin_index(1)
    with pytest.raises(InputError, match="cannot begin with evaluation 1"):
        pipe.scheduler.step(normal(1, 2), pipe.scheduler.timesteps[1], normal(1, 2))


@pytest.mark.parametrize("grid", ["time", "karras", "tau-linear", [-2.0, 0.0, 1.0, 2.5, 3.5]])
def test_a_grid_of_diffode(grid):
    made = scheduler(solver="dpmpp2m", grid=grid, denoise=grid == "tau-linear")
    assert made.plan.nfe == 4
    assert made.init_noise_sigma == pytest.approx(float(schedules.scaled_linear().sigma(made.plan.grid[0])))


def test_clocks_are_exact_or_those_of_the_pipeline():
    """Wan's scheduler cuts the digits behind the point off; its network takes them."""
    flow = fresh("wan").scheduler
    exact, listed = (scheduler(flow, solver="dpmpp2s", clock=clock) for clock in ("exact", "pipeline"))
    flow.set_timesteps(4)
    assert listed.timesteps[::2].tolist() == flow.timesteps.tolist()
    assert torch.equal(listed.timesteps, exact.timesteps.floor())
    assert not torch.equal(listed.timesteps, exact.timesteps)
    np.testing.assert_allclose(exact.timesteps, 1000 * exact.sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("replaced", ["FlowMatchEulerDiscreteScheduler", "DDIMScheduler"])
def test_an_offset_lets_solvers_begin_beside_pure_noise(replaced):
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    config = getattr(diffusers, replaced)(**(zero_snr if replaced == "DDIMScheduler" else {}))
    with pytest.raises(InputError, match=r"no solver in noise form can leave λ = -inf.*offset=1e-4"):
        scheduler(config, solver="heun")
    made = scheduler(config, solver="heun", offset=1e-4)
    assert made.plan.path.at(made.plan.grid[0])[0] == pytest.approx(1e-4)
    assert 996 < made.timesteps[0] < 1000


@pytest.mark.parametrize("solver", ["pndm", "dpm3"])
def test_img2img_by_a_solver_whose_steps_are_uneven_is_refused(solver):
    """pndm's first steps cost four; those of dpm3 begin with every third evaluation."""
    made = scheduler(solver=solver, steps=6)
    made.set_begin_index(4)
    with pytest.raises(InputError, match=rf"{solver} cannot begin with evaluation 4 of \d+"):
        made.step(normal(1, 2), made.timesteps[4], normal(1, 2))


def test_a_corrector_undoes_what_a_callback_changed_as_in_diffusers():
    """UniPC's corrector begins again from the state before: both schedulers keep the change in the network's answer alone."""
    unipc = diffusers.UniPCMultistepScheduler(**TABLE, solver_order=2)
    ends = []
    for made in (unipc, scheduler(unipc, solver="unipc2")):
        made.set_timesteps(6)
        x = normal(2, 3)
        for i, t in enumerate(made.timesteps):
            x = made.step(tanh(x, t), t, x).prev_sample + 0.1 * (i == 2)
        ends.append(x)
    assert relative(ends[1], ends[0]) < 1e-5


# ---- what the replaced class says


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
def test_the_spacing_is_that_of_the_class(name, spacing):
    """Its timesteps, each once."""
    skip = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    theirs = getattr(diffusers, name)(**TABLE, timestep_spacing=spacing, **skip)
    theirs.set_timesteps(10)
    expected = list(dict.fromkeys(theirs.timesteps.tolist()))
    if not theirs.config.get("set_alpha_to_one", True) and expected[-1] == 0:
        expected = expected[:-1]  # a step from label 0 to label 0
    torch.testing.assert_close(scheduler(theirs, steps=10).timesteps, torch.tensor(expected).float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("key", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
def test_sigmas_are_those_of_the_class(name, key):
    """1e-4 at the ends, where float32 has 1 − ᾱ to four digits; DEIS lists its last one twice."""
    theirs = getattr(diffusers, name)(**TABLE, **{key: True})
    theirs.set_timesteps(8)
    made = scheduler(theirs, solver="dpmpp2m", steps=8)
    expected = theirs.sigmas[:-2] if name.startswith("DEIS") else theirs.sigmas[:-1]
    torch.testing.assert_close(made.sigmas[: len(expected)], expected.float(), rtol=1e-4, atol=0)


def test_sigmas_that_grow_to_data_are_read():
    """Mochi's: the time of its network grows from noise to data."""
    theirs, x = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), normal(2, 3)
    made = scheduler(theirs, solver="euler")
    theirs.set_timesteps(4)
    torch.testing.assert_close(made.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(made.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)
    x_theirs = x
    for t in theirs.timesteps:
        x_theirs = theirs.step(tanh(x_theirs, t), t, x_theirs).prev_sample
    assert relative(driven(made, tanh, x), x_theirs) < 1e-6


@pytest.mark.parametrize(("name", "clips"), [("DDPMScheduler", True), ("CogVideoXDDIMScheduler", False), ("TCDScheduler", False)])
def test_x0_is_clipped_where_the_class_does_it(name, clips):
    """Two of diffusers have the key, True by default, and do nothing with it."""
    made = scheduler(getattr(diffusers, name)(clip_sample=True))
    x = 5 * normal(2, 3)
    x0 = made.step(torch.zeros_like(x), made.timesteps[-1], x).pred_original_sample
    assert (float(x0.abs().max()) <= 1) == clips


def test_learned_variances_are_cut_off():
    """As the pipelines of DeepFloyd IF hand them on."""
    made, x = scheduler(), normal(2, 3, 4, 4)
    predicted = normal(2, 6, 4, 4, seed=1)
    state = made.step(predicted, made.timesteps[0], x).prev_sample
    assert torch.equal(state, scheduler().step(predicted[:, :3].contiguous(), made.timesteps[0], x).prev_sample)


@pytest.mark.parametrize("given", [{"timesteps": [801, 401, 101]}, {"sigmas": [9.0, 2.0, 0.5]}])
def test_custom_ones_are_read_for_a_class_that_has_none(given):
    """diffusers' DDIM takes neither."""
    made = scheduler(steps=None)
    made.set_timesteps(**given)
    lams = schedules.scaled_linear().lam(given["timesteps"]) if "timesteps" in given else -np.log(given["sigmas"])
    np.testing.assert_allclose(made.plan.grid[:3], lams, rtol=1e-12)
    assert len(made.plan.grid) == 4


@pytest.mark.parametrize("name", ["FlowMatchHeunDiscreteScheduler", "SASolverScheduler"])
def test_custom_sigmas_of_flow_matching_are_shifted_for_a_class_that_has_none(name):
    """As FlowMatchEuler and UniPC shift them, whose σ begin and end in other digits: 1e-3."""
    sigmas = np.linspace(1, 0.2, 5)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    config = {"shift": 3.0} if name.startswith("Flow") else flow
    made = scheduler(getattr(diffusers, name)(**config), solver="dpmpp2m", steps=None)
    made.set_timesteps(sigmas=sigmas)
    for theirs in (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), diffusers.UniPCMultistepScheduler(**flow)):
        theirs.set_timesteps(sigmas=sigmas)
        torch.testing.assert_close(made.sigmas, theirs.sigmas, rtol=1e-3, atol=1e-6)


def test_custom_sigmas_are_shifted_by_a_mu():
    dynamic = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
    dpm = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **dynamic)
    theirs, made = diffusers.FlowMatchEulerDiscreteScheduler(**dynamic), scheduler(dpm, solver="dpmpp2m", steps=None)
    for one in (made, theirs):
        one.set_timesteps(sigmas=np.linspace(1, 0.2, 5), mu=1.15)
    torch.testing.assert_close(made.sigmas, theirs.sigmas)


def test_arguments_of_the_classes_own_make_its_timesteps():
    """The LCM pipelines give `original_inference_steps` always, None by default."""
    theirs, made = diffusers.LCMScheduler(), scheduler(diffusers.LCMScheduler(), steps=None)
    for given in ({"original_inference_steps": None}, {"original_inference_steps": 20, "strength": 0.5}):
        theirs.set_timesteps(4, **given)
        made.set_timesteps(4, **given)
        assert made.timesteps.tolist() == theirs.timesteps.tolist()
    with pytest.raises(InputError, match="`original_inference_steps` is of the spacing of the replaced scheduler"):
        scheduler(diffusers.LCMScheduler(), steps=None, grid="time").set_timesteps(4, original_inference_steps=20)


# ---- what it refuses, in one sentence

FLOW = diffusers.FlowMatchEulerDiscreteScheduler()
IN_CONFIG = {
    "unknown solver": (DDIM, {"solver": "unipc33"}, "unknown solver 'unipc33': did you mean unipc3"),
    "adaptive": (DDIM, {"solver": "dpm23"}, "dpm23 has no plan, and a pipeline calls its network at times that are known before"),
    "torchdiffeq": (DDIM, {"solver": "dopri5"}, "dopri5 has no plan"),
    "option": (DDIM, {"etta": 1.0}, "ddim has no option 'etta': did you mean eta"),
    "Karras' σ of a class without": (
        DDIM,
        {"use_karras_sigmas": True},
        'DDIMScheduler has no key `use_karras_sigmas`: give grid="karras", or replaced="EulerDiscreteScheduler", which has it',
    ),
    "a key of another class": (DDIM, {"flow_shift": 3.0}, 'has no key `flow_shift`: give replaced="DPMSolverMultistepScheduler"'),
    "a method": (DDIM, {"solver_order": 3}, 'here `solver` says the method, as solver="dpmpp2m"'),
    "a method of the class": (
        diffusers.UniPCMultistepScheduler(**TABLE),
        {"solver_type": "bh1"},
        "`solver_type` is of the method of another scheduler",
    ),
    "value of an option": (DDIM, {"eta": "much"}, "the option eta of ddim must be a number"),
    "grid": (DDIM, {"grid": "logsnrr"}, "unknown grid 'logsnrr': did you mean logsnr"),
    "grid of one": (DDIM, {"grid": [0.0]}, "`grid` must be a name, or a list of 2 to"),
    "clock": (DDIM, {"clock": "t"}, "`clock` must be exact or pipeline, not 't'"),
    "clock of a grid": (DDIM, {"clock": "pipeline", "grid": "time"}, 'clock="pipeline" is of the spacing of the replaced'),
    "denoise": (DDIM, {"denoise": 1}, "`denoise` must be True or False, not 1"),
    "offset": (DDIM, {"offset": -1.0}, "`offset` must be a number of at least 0 and at most 0.5, not -1.0"),
    "no scheduler": (3, {}, "`config` must be a scheduler of diffusers, as pipe.scheduler, or its configuration, not 3"),
    "no schedule": (diffusers.IPNDMScheduler(), {}, "the configuration of 'IPNDMScheduler' says of no table of β"),
    "no class": (
        dict(DDIM.config),
        {},
        'a configuration without the name of its class is no scheduler.*replaced="DDIMScheduler"',
    ),
    "class": (dict(DDIM.config), {"replaced": "Scheduler"}, "'Scheduler' is no scheduler of diffusers"),
    "no scheduler class": (dict(DDIM.config), {"replaced": "UNet2DModel"}, "'UNet2DModel' is no scheduler of diffusers"),
    "options": ({"_class_name": "DiffodeScheduler", "options": 3}, {"solver": None}, "`options` must be a dict of the solver's"),
    "a solver in a file": (
        {"_class_name": "DiffodeScheduler", "solver": "os:path"},
        {"solver": None},
        "nothing that a file names is",
    ),
    "a plan in a file": ({"_class_name": "DiffodeScheduler", "plan": "{}"}, {"solver": None}, "configuration is not a plan"),
}
if find_spec("torchsde") is None:
    IN_CONFIG["a package"] = (dict(DDIM.config), {"replaced": "DPMSolverSDEScheduler"}, "takes torchsde, which is not installed")


@pytest.mark.parametrize("case", IN_CONFIG)
def test_a_bad_configuration_is_one_error(case):
    config, settings, message = IN_CONFIG[case]
    with pytest.raises(InputError, match=message) as error:
        scheduler(config, steps=None, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (DDIM, {}, "DDIMScheduler cannot make these timesteps"),
        (DDIM, {"num_inference_steps": 0}, "`num_inference_steps` must be a whole number from 1 to"),
        (DDIM, {"num_inference_steps": 1001}, "cannot be larger than"),
        (DDIM, {"timesteps": [101, 401]}, "strictly increasing"),
        (DDIM, {"timesteps": [1001, 401]}, "t = 1001 is outside the clock"),
        (DDIM, {"timesteps": "few"}, "`timesteps` must be a list of"),
        (DDIM, {"sigmas": [1e9, 1.0]}, "outside the schedule"),
        (FLOW, {"timesteps": [1000.0], "sigmas": [1.0, 0.5]}, "should have the same length"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), {"timesteps": [900.0, 100.0]}, "give `sigmas`"),
        (DDIM, {"timesteps": [801, 1], "sigmas": [9.0, 1.0]}, "DDIMScheduler does not take both `timesteps` and `sigmas`"),
        (
            diffusers.DPMSolverMultistepScheduler(**TABLE),
            {"timesteps": [801, 1], "sigmas": [9.0, 1.0]},
            "does not take both",
        ),
        (DDIM, {"num_inference_steps": 4, "steps": 4}, "set_timesteps of DDIMScheduler has no argument 'steps': leave it out"),
        (diffusers.ScoreSdeVeScheduler(), {"num_inference_steps": 10}, "lists 2000 sigmas for 10 timesteps, so"),
        (diffusers.DDIMInverseScheduler(), {"num_inference_steps": 4}, "strictly increasing"),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), {"num_inference_steps": 4}, "`mu` must be passed"),
    ],
)
def test_bad_timesteps_are_one_error(config, arguments, message):
    made = scheduler(config, steps=None)
    with pytest.raises(InputError, match=message) as error:
        made.set_timesteps(**arguments)
    assert "\n" not in str(error.value)


JUNK = [-1, 1.5, float("nan"), "x", "", b"x", [], ["a"], {}, object(), len, torch.zeros(2, 2), 10**5000, True, 3j, "a\nb" * 99]


@pytest.mark.parametrize("key", ["config", "grid", "clock", "denoise", "offset", "replaced", "solver"])
def test_any_bad_setting_is_one_error(key):
    for junk in JUNK:
        if key == "denoise" and junk is True:
            continue
        with pytest.raises(InputError) as error:
            scheduler(**{"config": DDIM, "steps": None, key: junk})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["num_inference_steps", "timesteps", "sigmas", "device"])
def test_any_bad_argument_of_set_timesteps_is_one_error(key):
    made = scheduler(steps=None)
    for junk in JUNK:
        with pytest.raises(InputError) as error:
            made.set_timesteps(**{"num_inference_steps": 4} | {key: junk})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["model_output", "timestep", "sample", "generator"])
def test_any_bad_argument_of_step_is_one_error(key):
    for junk in JUNK:
        made, x = scheduler(solver="sde-dpmpp2m"), normal(2, 3)
        with pytest.raises(InputError) as error:
            made.step(**{"model_output": x, "timestep": made.timesteps[0], "sample": x} | {key: junk})
        assert "\n" not in str(error.value)


def test_a_grid_of_other_steps_than_the_pipeline_asks_for():
    with pytest.raises(InputError, match="the grid has 2 steps, and the pipeline asks for 4: call it with num_inference_steps=2"):
        scheduler(grid=[-2.0, 0.0, 2.0])


def test_a_step_that_cannot_be():
    x, made = normal(2, 3), scheduler(steps=None)
    with pytest.raises(InputError, match="no timesteps yet: call set_timesteps"):
        made.step(x, 1, x)
    made.set_timesteps(2)
    with pytest.raises(InputError, match=r"no step begins at timestep 3: give one of scheduler\.timesteps"):
        made.step(x, 3, x)
    state = made.step(x, made.timesteps[0], x).prev_sample
    with pytest.raises(InputError, match=r"a run began with a batch \(2, 3\) and goes on with \(1, 3\)"):
        made.step(x[:1], made.timesteps[1], state[:1])
    with pytest.raises(InputError, match="the network returned"):
        made.step(x[:, :2], made.timesteps[1], state)
    made.step(x, made.timesteps[1], state)
    with pytest.raises(InputError, match="ddim has made its 2 evaluations: begin a new run, as set_timesteps does"):
        made.step(x, made.timesteps[1], state)


AT_DEFAULT = {
    **dict.fromkeys(("eta", "s_churn", "s_tmin"), 0.0),
    "s_tmax": float("inf"),
    "s_noise": 1.0,
    "prev_timestep": torch.tensor(501),
    **dict.fromkeys(("variance_noise", "per_token_timesteps", "pred_original_sample", "order", "mask")),
}


@pytest.mark.parametrize("name", AT_DEFAULT)
def test_arguments_of_other_schedulers_steps_are_refused_unless_they_do_nothing(name):
    """UnCLIP's `prev_timestep` is the next one of its list."""
    made, x = scheduler(), normal(2, 3)
    for value in (0.5, float("nan"), normal(2, 3), "x"):
        with pytest.raises(InputError, match=f"`{name}` is of another scheduler's step"):
            made.step(x, made.timesteps[0], x, **{name: value})
    made.step(x, made.timesteps[0], x, **{name: AT_DEFAULT[name]}, use_clipped_model_output=True)
    assert made.step_index == 1


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    monkeypatch.delitem(sys.modules, "solvers.hosts.scheduler")
    monkeypatch.delitem(vars(diffode), "DiffodeScheduler")
    with pytest.raises(
        InputError, match=r"DiffodeScheduler takes diffusers, which is not installed: pip install 'diffode\[hub\]'"
    ):
        from diffode import DiffodeScheduler  # noqa: F401


def test_diffode_itself_imports_no_diffusers():
    """Nor does the loop that it drives."""
    assert "DiffodeScheduler" not in diffode.__all__  # `from diffode import *` needs none
    assert "DiffodeScheduler" in dir(diffode)
