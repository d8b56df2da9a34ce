"""Solvers as samplers of k-diffusion: the same numbers as its own, and as ours, in its face."""

import inspect
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, schedules
from diffode.kdiffusion import sampler, sigmas_of
from solvers import ALIASES, Hooks, Plan, find, run
from solvers.hosts.sigmas import lams_of, on_path
from solvers.registry import all_names
from tests.references.make_kdiffusion import FILE, SAME, churned_start, denoiser, sigmas, wave, waves
from tests.test_breaking_api import NO_TEXT, each, refused
from tests.test_readme import ROOT, part, snippets

PLANNED = [name for name in [*all_names(), *ALIASES] if find(name).has_plan]
SIGMAS = torch.tensor([14.6, 5.0, 2.2, 1.0, 0.5, 0.2, 0.05, 0.0])
FLOW = torch.linspace(1, 0, 7)
EXACT = {name: 1e-12 for name, *_ in SAME} | {"dpm_fast": 1e-6}  # which rounds its two ends to float32
NONE = {  # why no solver is the same
    "euler, dpm_2 with s_churn": ("heun-churn", "churn is an option of heun-churn alone"),
    "dpm_2_ancestral, dpmpp_2s_ancestral with eta > 0": (
        "euler-ancestral, sde-dpmpp2m",
        "a second-order step to a smaller σ, and noise after it, is none of ours",
    ),
    "dpmpp_sde": ("sde-dpmpp2m", "it spends two evaluations and two draws on a step, and is none of ours"),
    "dpm_adaptive": ("dpm12, dpm23", "ours have an error and a step length per sample, so the steps are others"),
}


def _called(name, options):
    return ", ".join([name, *(f"{option}={value}" for option, value in options.items())])


def _begins_beyond(options):
    return options.get("s_tmax", 0) == math.inf


def table():
    """The table of docs/comfyui.md."""
    lines = ["| k-diffusion | ours | largest difference, in float64 |", "|---|---|---|"]
    for name, theirs, ours, options in SAME:
        left, right = _called(name, theirs), _called(ours, options)
        lines.append(f"| {left} | {right} | below {EXACT[name]:.0e}{', begun at σ̂, see below' * _begins_beyond(options)} |")
    return "\n".join([*lines, *(f"| {name} | nearest: {ours} | not the same: {why} |" for name, (ours, why) in NONE.items())])


@pytest.mark.parametrize("row", range(len(SAME)), ids=[f"{name}-{i}" for i, (name, *_) in enumerate(SAME)])
def test_it_is_the_same_as_k_diffusions_own(row):
    """In float64, with the same noise. 1e-12: rounding, over 8 steps from σ = 14.6."""
    name, _, ours, options = SAME[row]
    grid, expected = sigmas(name), torch.tensor(json.loads(FILE.read_text())["x"][row], dtype=torch.float64)
    x, grid = churned_start(grid, options["s_churn"]) if _begins_beyond(options) else (wave(0) * grid[0], grid)
    x = sampler(ours, **options)(denoiser, x, grid, disable=True, noise_sampler=waves())
    torch.testing.assert_close(x.flatten(), expected, rtol=0, atol=EXACT[name])


def test_the_table_is_generated():
    assert part((ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8"), "k-diffusion") == table()


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("name", PLANNED)
def test_every_planned_solver_is_run_as_by_our_loop(name, path):
    """To float32's rounding; the model is called with the very σ of the grid, the callback once per step with the state that it
    begins from, and what either was given is not written to later."""
    grid = SIGMAS if path == "ve" else FLOW * 0.98
    solver, calls, steps = find(name), [], []
    schedule = schedules.edm(0.0, 15.0) if path == "ve" else schedules.flow(0.0, 1.0)

    def model(x, sigma, scale):
        d = scale * denoiser(x.double(), sigma.double()).float()
        calls.append((x, x.clone(), sigma, d, d.clone()))
        return d

    x, sigma = wave(0).float(), grid.double().numpy()
    with np.errstate(divide="ignore"):
        lams = (np.log1p(-sigma) if path == "flow" else 0) - np.log(sigma)
    end = sampler(name, path=path)(model, x, grid, {"scale": 0.9}, steps.append, True, noise_sampler=waves())
    plan, draws = solver.plan(lams, schedule), [wave(k).float() for k in range(40)]
    ours = run(plan, EpsModel(lambda x, s: model(x, s, 0.9), schedule, "data", clock="sigma"), x, Hooks(lambda k, _: draws[k])).x
    torch.testing.assert_close(end, ours, rtol=1e-5, atol=1e-5)
    called = {float(sigma[0]) for _, _, sigma, _, _ in calls}
    n = len(grid) - 1
    assert [step["i"] for step in steps] == list(range(n))
    assert all(torch.equal(kept, then) for x, was, _, d, d_was in calls[: plan.nfe] for kept, then in ((x, was), (d, d_was)))
    for step in steps:
        assert step["sigma"] == grid[step["i"]]
        assert step["sigma_hat"] == step["sigma"] or name == "heun-churn"
        assert float(step["sigma_hat"]) in called
        assert any(step["denoised"] is d and step["x"] is x for x, _, _, d, _ in calls)


@pytest.mark.parametrize("name", PLANNED)
def test_a_point_mass_is_met_from_the_pure_noise_of_a_flow(name):
    """Exactly but for rounding, since the last step is to σ = 0; noise-form solvers leave the first step to Euler's method."""
    evaluated = []

    def model(x, sigma):
        evaluated.append(sigma)
        return torch.full_like(x, 0.5)

    x = sampler(name, path="flow")(model, wave(0), FLOW.double(), disable=True)
    torch.testing.assert_close(x, torch.full_like(x, 0.5), rtol=0, atol=1e-11)
    assert evaluated[0].eq(1).all()


@pytest.mark.parametrize("name", PLANNED)
def test_a_solver_that_can_leave_pure_noise_does_so_itself(name):
    """What can is found here by trying; the host knows it beforehand."""
    noises = [wave(k) for k in range(20)]
    x = sampler(name, path="flow")(denoiser, wave(0), FLOW.double(), disable=True, noise_sampler=waves())
    schedule, solver = schedules.flow(0.0, 1.0), find(name)
    lams = lams_of(FLOW.double(), schedule.path)
    host, hooks = EpsModel(denoiser, schedule, "data", clock="sigma"), Hooks(lambda k, _: noises[k])
    try:
        own = run(solver.plan(lams, schedule), host, wave(0), hooks).x
    except InputError:  # it cannot leave λ = −∞
        first = run(find("ddim").plan(lams[:2], schedule), host, wave(0), hooks).x
        own = run(solver.plan(lams[1:], schedule), host, first, hooks).x
    torch.testing.assert_close(x, own, rtol=0, atol=1e-12)


def test_noise_form_solvers_leave_pure_noise_by_eulers_method():
    sample, grid, x0 = sampler("heun", path="flow"), FLOW.double(), denoiser(wave(0), torch.ones(2, dtype=torch.float64))
    first = wave(0) + (grid[1] - 1) * (wave(0) - x0)
    rest = sample(denoiser, first, grid[1:], disable=True)
    torch.testing.assert_close(sample(denoiser, wave(0), grid, disable=True), rest, rtol=0, atol=1e-12)
    torch.testing.assert_close(sample(denoiser, wave(0), torch.tensor([1.0, 0.0]), disable=True), x0)


@pytest.mark.parametrize("name", ["heun", "dpm3", "ddim"])
def test_two_parts_of_a_schedule_are_the_whole_of_a_one_step_method(name):
    sample, x = sampler(name), 14.6 * wave(0)
    middle = sample(denoiser, x, SIGMAS[:4].double(), disable=True)
    parts = sample(denoiser, middle, SIGMAS[3:].double(), disable=True)
    torch.testing.assert_close(parts, sample(denoiser, x, SIGMAS.double(), disable=True), rtol=0, atol=1e-12)


def test_rising_sigmas_lead_from_data_to_noise_and_back():
    """With errors of order 2, 200 steps each way: to 1e-3."""
    up = torch.logspace(-1.3, 1.1, 200, dtype=torch.float64)
    x = sampler("dpmpp2m")(denoiser, wave(0), up, disable=True)
    assert float(x.std()) > 8
    torch.testing.assert_close(sampler("dpmpp2m")(denoiser, x, up.flip(0), disable=True), wave(0), rtol=0, atol=1e-3)


def test_steps_of_no_length_are_left_out():
    twice, steps = torch.tensor([2.0, 1.0, 1.0, 0.3, 0.3, 0.0]), []
    x = sampler("dpmpp2m")(denoiser, wave(0), twice, None, steps.append, True)
    torch.testing.assert_close(x, sampler("dpmpp2m")(denoiser, wave(0), torch.tensor([2.0, 1.0, 0.3, 0.0]), disable=True))
    assert [float(step["sigma"]) for step in steps] == pytest.approx([2.0, 1.0, 0.3])
    for nothing in ([], [2.0], [2.0, 2.0]):
        assert sampler("heun")(None, x, torch.tensor(nothing)) is x


@pytest.mark.parametrize("name", ["sde-dpmpp2m", "sde-dpmpp3m", "dpmpp3m-published", "unipc4", "sa-solver", "heun"])
def test_sigmas_that_are_almost_the_same_are_one(name):
    """No plan has a step of that length, whose weights would be differences of huge numbers."""
    close, other = at(10.0, 10.0 - 1e-6, 3.0, 3.0 - 1e-6, 1.0, 0.0), at(10.0, 3.0, 1.0, 0.0)
    x, expected = (
        sampler(name)(denoiser, wave(0), sigmas.double(), disable=True, noise_sampler=waves()) for sigmas in (close, other)
    )
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_sigmas_of_a_flow_near_1_are_not_the_same():
    """Though within 1e-5 of each other: 1 − σ is twice that of the one before."""
    steps, near = [], torch.tensor([1.0, 1 - 1e-6, 1 - 2e-6, 1 - 4e-6, 0.5, 0.0, 0.0], dtype=torch.float64)
    sampler("dpmpp2m", path="flow")(denoiser, wave(0), near, None, steps.append, True)
    assert [step["sigma"] for step in steps] == near[:5].tolist()


def test_sigmas_may_be_a_list():
    x = sampler("unipc3")(denoiser, wave(0), SIGMAS.tolist(), disable=True)
    assert torch.equal(x, sampler("unipc3")(denoiser, wave(0), SIGMAS, disable=True))


def test_a_sampler_has_the_name_of_a_function():
    assert sampler("rk:heun2").__name__ == "sample_diffode_rk_heun2"
    assert sampler("sa-solver").__name__ == "sample_diffode_sa_solver"


def test_half_precision_is_widened_for_the_loop():
    seen = []
    x = sampler("unipc3")(lambda x, s: seen.append((x.dtype, s.dtype)) or x / 2, wave(0).bfloat16(), SIGMAS, disable=True)
    assert x.dtype == torch.bfloat16
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_of_another_path_takes_the_same_steps(name):
    """x is scaled at each λ, and the rest is as it was: a plan made on vp becomes that which is made on ve, or on flow. But for
    deis-t and pndm, which take their steps in the clock of the schedule."""
    lams = np.array([-2.5, -1.0, 0.3, 1.2, 2.0, np.inf])
    for path in ("ve", "flow"):
        schedule = {"ve": schedules.edm(0.0, 20.0), "flow": schedules.flow(0.0, 1.0)}[path]
        plan = on_path(find(name).plan(lams, schedules.vp_sigma(1e-3, 20.0)), schedule.path)
        if not name.startswith(("deis-t", "pndm")):
            np.testing.assert_allclose(plan.matrix(), find(name).plan(lams, schedule).matrix(), rtol=1e-9, atol=1e-12)


def test_a_plans_file_is_for_its_own_sigmas(tmp_path):
    lams = [-2.5, -1.0, 0.3, 1.2, 2.0, math.inf]
    file = str(tmp_path / "mine.json")
    find("unipc3").plan(lams, schedules.ddpm_linear()).save(file)
    grid = sigmas_of(Plan.load(file))
    torch.testing.assert_close(grid, torch.tensor(lams).neg().exp())
    x = sampler(file)(denoiser, wave(0) * grid[0], grid, disable=True)
    torch.testing.assert_close(x, sampler("unipc3")(denoiser, wave(0) * grid[0], grid, disable=True), rtol=0, atol=1e-6)
    flow = sigmas_of(lams, "flow")
    torch.testing.assert_close(flow, torch.sigmoid(-torch.tensor(lams)))
    sampler(Plan.load(file), path="flow")(denoiser, wave(0), flow, disable=True)
    with pytest.raises(InputError, match=r"mine\.json is a plan of 5 steps from σ = 12\.1825 to 0, .* give diffode\.kdiffusion"):
        sampler(file)(denoiser, wave(0), SIGMAS, disable=True)
    churned = find("heun-churn").plan(lams, schedules.edm())  # whose states go back
    torch.testing.assert_close(sigmas_of(churned), grid)
    sampler(churned)(denoiser, wave(0), grid, disable=True)


def test_noise_is_drawn_by_the_seed_as_in_comfyui_or_by_torch():
    grid, x = SIGMAS[:3], wave(0).float()
    sample = sampler("euler-ancestral")
    generator = torch.Generator().manual_seed(8)
    drawn = iter([torch.randn(x.shape, generator=generator) for _ in range(2)])
    expected = sample(lambda x, s, **_: x / 2, x, grid, disable=True, noise_sampler=lambda *_: next(drawn))
    assert torch.equal(sample(lambda x, s, seed: x / 2, x, grid, {"seed": 7}, disable=True), expected)
    torch.manual_seed(8)
    assert torch.equal(sample(lambda x, s: x / 2, x, grid, disable=True), expected)
    assert torch.isfinite(sample(lambda x, s, seed: x / 2, x, grid, {"seed": 2**64 - 1}, disable=True)).all()


@pytest.mark.parametrize("name", [name for name in PLANNED if find(name).stochastic])
def test_noise_samplers_are_called_once_per_draw_with_the_sigmas_of_its_step(name):
    """Also for the draws that are not used: of sa-solver those above σ = 1, of k-diffusion's heun each that adds no noise."""
    asked = []
    sampler(name)(denoiser, wave(0).float(), SIGMAS, disable=True, noise_sampler=lambda s, t: asked.append((s, t)) or wave(1))
    assert len(asked) >= len(SIGMAS) - 2
    assert asked == list(itertools.pairwise(SIGMAS))[: len(asked)]


def test_a_model_of_comfyui_says_its_path_and_the_scale_of_its_noise():
    class CONST:
        pass

    class Anything:
        pass

    def wrapped(*bases, **attributes):
        held = type("Held", (), {"model_sampling": type("ModelSampling", bases, attributes)()})
        model = type("Model", (), {"inner_model": type("Guider", (), {"inner_model": held}), "__call__": lambda _, x, s: x / 2})
        return model()

    for bases, path in (((Anything, CONST), "flow"), ((Anything,), "ve")):
        x = sampler("ddim")(wrapped(*bases), wave(0), FLOW[1:], disable=True)
        assert torch.equal(x, sampler("ddim", path=path)(lambda x, s: x / 2, wave(0), FLOW[1:], disable=True))
    louder, plain = (
        sampler("ddpm")(wrapped(CONST, noise_scale=scale), wave(0), FLOW[1:], disable=True, noise_sampler=noise)
        for scale, noise in ((2.0, lambda *_: wave(1)), (1.0, lambda *_: 2 * wave(1)))
    )
    torch.testing.assert_close(louder, plain)


def test_adaptive_pairs_go_between_the_ends():
    """With the default tolerances the exact end is met to 0.02. A batch is refused: a host's model is called for all of it."""
    x = 14.6 * wave(0)[:1]
    fine = torch.cat([torch.logspace(math.log10(14.6), -1.3, 400).double(), torch.zeros(1)])
    exact = sampler("dpm3")(denoiser, x, fine, disable=True)
    seen = []
    end = sampler("dpm23")(denoiser, x, SIGMAS.double(), None, seen.append, True)
    torch.testing.assert_close(end, exact, rtol=0, atol=0.02)
    assert [step["i"] for step in seen] == list(range(len(seen)))
    assert "give one sample at a time" in refused(lambda: sampler("dpm23")(denoiser, wave(0), SIGMAS, disable=True))


def test_what_is_raised_within_reaches_the_host():
    def interrupt(step):
        if step["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler("heun")(denoiser, wave(0), SIGMAS, None, interrupt, True)
    assert "not finite" in refused(lambda: sampler("heun")(lambda x, s: x / 0, wave(0), SIGMAS, disable=True))


def test_a_bar_is_shown_unless_it_is_disabled(capsys):
    sampler("ddim")(denoiser, wave(0), SIGMAS, disable=True)
    assert capsys.readouterr().err == ""
    sampler("ddim")(denoiser, wave(0), SIGMAS, disable=False)
    assert "7/7" in capsys.readouterr().err


def test_its_face_is_that_of_k_diffusion():
    names = list(inspect.signature(sampler("ddim")).parameters)
    assert names == ["model", "x", "sigmas", "extra_args", "callback", "disable", "noise_sampler"]


def at(*values):
    return torch.tensor(values)


def on(sigmas, x=None, name="ddim", **options):
    return sampler(name, **options)(denoiser, wave(0) if x is None else x, sigmas, disable=True)


def noisy(noise_sampler, **args):
    return sampler("ddpm")(lambda x, s, **_: x / 2, wave(0), SIGMAS, args, disable=True, noise_sampler=noise_sampler)


NO_SIGMAS = [
    None,
    "a",
    [0.0, 1.0],
    [[1.0], 0.0],
    at(1.0, 0.0)[None],
    at(0.0, 1.0),
    at(1.0, 2.0, 0.5),
    at(1.0, -1.0),
    at(math.inf, 1.0),
]
BAD = (
    each("solver", [*NO_TEXT[1:], "", "eular"], sampler)
    | each("path", ["vp", "", 5], lambda value: sampler("ddim", path=value))
    | each("option", [{"eta": 2}, {"etaa": 1}, {"eta": "x"}], lambda value: on(SIGMAS, **value))
    | each("sigmas", [*NO_SIGMAS, at(math.nan, 1.0), at(math.inf, 1.0), at(2.0, 1.0, 1.5)], on)
    | each("option from pure noise", [{"tau": -1.0}], lambda value: on(at(1.0, 0.0), name="sa-solver", path="flow", **value))
    | each("sigmas of a flow", [at(2.0, 0.0), at(0.5, 1.0)], lambda value: on(value, path="flow"))
    | each("x", [3, torch.ones(2).int(), torch.tensor(1.0)], lambda value: on(SIGMAS, value))
    | each("rising", [at(0.1, 1.0)], lambda value: on(value, name="ddpm"))
    | each("model", [None, 3], lambda value: sampler("ddim")(value, wave(0), SIGMAS))
    | each("extra_args", [3, "ab"], lambda value: sampler("ddim")(denoiser, wave(0), SIGMAS, value))
    | each("callback", [3, "ab"], lambda value: sampler("ddim")(denoiser, wave(0), SIGMAS, None, value))
    | each("noise_sampler", [3, "ab"], lambda value: sampler("ddpm")(denoiser, wave(0), SIGMAS, noise_sampler=value))
    | each("noise", [None, 3.0, at(1.0), wave(1)[None], wave(1)[0]], lambda value: noisy(lambda *_: value))
    | each("seed", [1.5, "a", -1, 2**64, at(3), [3]], lambda value: noisy(None, seed=value))
    | each("grid", [None, "a", [1.0], [-math.inf, 1.0], [[1.0, 2.0]]], sigmas_of)
    | each("path of sigmas", ["vp", None], lambda value: sigmas_of([0.0, 1.0], value))
)


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what):
    refused(BAD[what])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: on(at(math.nan, 1.0)), "`sigmas` must be finite numbers"),
        (lambda: on(at(1.0, 0.0)[None]), "`sigmas` must be a tensor of one axis"),
        (lambda: on(SIGMAS, name="dopri5"), "takes no step .* to σ = 0: give `sigmas` without these ends"),
        (lambda: on(FLOW[:-1], name="rk4", path="flow"), "takes no step from σ = 1 of a flow"),
        (lambda: noisy(None, seed=2**64), 'the seed in "extra_args" must be a whole number from 0 to 18446744073709551615'),
        (lambda: noisy(lambda *_: at(1.0)), r"what `noise_sampler` returns must be a tensor of shape \(2, 1, 2, 3\)"),
    ],
)
def test_messages_speak_of_what_the_host_gave(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_the_door_is_lazy():
    code = "import diffode.kdiffusion as door, sys; assert not {'torch', 'numpy', 'solvers'} & {*sys.modules}; print(dir(door))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "sampler" in shown
    import diffode.kdiffusion as door

    for name in door.__all__:
        assert callable(getattr(door, name))
        assert f"    {name} " in door.__doc__
    with pytest.raises(AttributeError, match="no attribute 'samplers'"):
        door.samplers  # noqa: B018


def test_the_snippets_of_the_document_run(capsys):
    scope = {"model": denoiser, "x": wave(0), "sigmas": SIGMAS}
    for code in snippets("docs/comfyui.md"):
        exec(code, scope)
    assert float(scope["sigmas"][0]) == pytest.approx(14.6)
    assert "'sigma_hat'" in capsys.readouterr().out
    assert torch.isfinite(scope["x"]).all()
