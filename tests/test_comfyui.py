"""The custom node package of ComfyUI: against a stand-in of what it uses of ComfyUI, and against ComfyUI itself where that is.

    DIFFODE_COMFYUI=PATH python -m pytest -n0 tests/test_comfyui.py        PATH: a clone of ComfyUI

ComfyUI wants packages of its own; those of MISSING are replaced where they are not installed, since no sampler uses them.
"""

import importlib.util
import json
import math
import os
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from diffode import InputError, grid, schedules
from diffode.kdiffusion import sampler, sigmas_of
from docs import draw_comfyui
from solvers import find
from tests.test_readme import ROOT, part

PACKAGE = ROOT / "integrations" / "comfyui"
CLONE = os.environ.get("DIFFODE_COMFYUI")
MISSING = {"opentelemetry", "aio_pika", "torchvision", "torchaudio", "gguf", "sentencepiece", "av", "torchsde"}
NOISY = {"dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"}  # whose noise is that of a Brownian tree
SAME = {  # ComfyUI's sampler -> ours, its options, and where it is the same: the models, and whether the last σ may be 0
    "euler": ("euler", {}, "noise, v, flow", True),
    "ddim": ("euler", {}, "noise, v, flow", True),
    "heun": ("heun", {}, "noise, v", True),
    "dpm_2": ("kdpm2", {}, "noise, v", True),
    "dpmpp_2m": ("dpmpp2m", {}, "noise, v", True),
    "res_multistep": ("dpmpp2m", {"variant": "taylor"}, "noise, v", True),
    "exp_heun_2_x0": ("dpmpp2s", {"r1": 1.0, "variant": "taylor"}, "noise, v, flow", True),
    "euler_ancestral": ("euler-ancestral", {}, "noise, v", True),
    "ddpm": ("ddpm", {}, "noise, v", True),
    "dpmpp_2m_sde": ("sde-dpmpp2m", {}, "noise, v, flow", True),
    "dpmpp_2m_sde_heun": ("sde-dpmpp2m", {"variant": "taylor"}, "noise, v, flow", True),
    "dpmpp_3m_sde": ("sde-dpmpp3m-published", {}, "noise, v, flow", True),
    "lms": ("lms", {}, "noise, v", False),
    "ipndm": ("ipndm", {}, "noise, v", False),
    "uni_pc_bh2": ("unipc3", {"lower_final": True}, "noise, v", False),
}


def table():
    """The table of docs/comfyui.md."""
    rows = [
        (name, ", ".join([ours, *(f"{key}={value}" for key, value in options.items())]), models, "" if zero else "if it is not 0")
        for name, (ours, options, models, zero) in SAME.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [("ComfyUI", "ours", "models", "the last σ"), ("---",) * 4, *rows])


def test_the_table_is_generated():
    assert part((ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8"), "comfyui") == table()


class KSAMPLER:
    def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006
        self.sampler_function, self.extra_options = sampler_function, extra_options


def package(name="custom_nodes_diffode"):
    """The package, as ComfyUI imports it under a name of its choice, where it is to be found while it is run."""
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules.pop(name) if before is None else sys.modules.update({name: before})
    return module


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """The package, with a stand-in of ComfyUI and an empty folder of plans."""
    names = ("comfy", "comfy.k_diffusion", "comfy.k_diffusion.sampling", "comfy.samplers")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    modules["comfy.samplers"].KSAMPLER = KSAMPLER
    modules["comfy.samplers"].KSampler = SimpleNamespace(SAMPLERS=["euler"])
    made = package()
    monkeypatch.setattr(made, "FOLDER", tmp_path)
    return made


def model_of(sampling):
    """What the node is given of a model."""
    return SimpleNamespace(get_model_object={"model_sampling": sampling}.__getitem__)


class CONST:
    pass


class Flow(CONST):
    """ComfyUI's table of a flow of this shift: σ at u = 1/T, ..., 1."""

    def __init__(self, shift, count=1000):
        u = torch.arange(1, count + 1) / count
        self.sigmas = shift * u / (1 + (shift - 1) * u)


TABLE = torch.tensor(np.exp(-schedules.scaled_linear().lam(np.arange(1000))), dtype=torch.float32)  # of Stable Diffusion
MODEL = model_of(SimpleNamespace(sigmas=TABLE))


def test_samplers_are_registered_once(nodes):
    import comfy.k_diffusion.sampling
    import comfy.samplers

    package()
    names = [f"diffode_{name.replace('-', '_')}" for name in nodes.REGISTERED]
    assert ["euler", *names] == comfy.samplers.KSampler.SAMPLERS
    for name, known in zip(nodes.REGISTERED, names, strict=True):
        assert getattr(comfy.k_diffusion.sampling, f"sample_{known}").solver.name == name


@pytest.mark.parametrize("name", [os.path.basename, lambda folder: f"/home/a_x_b/{folder}"], ids=["its folder", "its path"])
def test_it_is_imported_under_the_names_that_comfyui_gives(nodes, name):
    """In the folder that the documents say; some versions of ComfyUI name a module by its folder alone."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "comfyui.md", PACKAGE / "README.md")]
    first, second = (set(re.findall(r"custom_nodes/([\w-]+)", text)) for text in texts)
    assert first == second
    assert package(name(*first)).NODE_CLASS_MAPPINGS.keys() == nodes.NODE_CLASS_MAPPINGS.keys()


@pytest.mark.parametrize("missing", ["diffode", "solvers.options"])
def test_what_is_missing_is_said(nodes, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"pip install PATH_TO_DIFFODE.* as comfyui-diffode: .*{missing}"):
        package()


def test_a_folder_named_diffode_is_refused(nodes):
    with pytest.raises(ImportError, match="a folder that is not named diffode itself"):
        package("diffode")


def test_every_sampler_that_the_node_offers_runs(nodes):
    """On a point mass, which each meets, in the last step to σ = 0."""
    inputs = nodes.DiffodeSampler.INPUT_TYPES()["required"]
    assert inputs["plan"][0] == ["none"]
    for name in inputs["solver"][0]:
        (made,) = nodes.DiffodeSampler().make(name, "", "none")
        x = made.sampler_function(
            lambda x, s: torch.full_like(x, 0.5), torch.ones(1, 2), torch.tensor([9.0, 2.0, 0.5, 0.0]), disable=True
        )
        torch.testing.assert_close(x, torch.full_like(x, 0.5))


def test_options_are_text(nodes):
    (made,) = nodes.DiffodeSampler().make("dpmpp2m", " start=single, lower_final = true,", "none")
    assert made.sampler_function.options == {"start": "single", "lower_final": True}


@pytest.mark.parametrize(
    ("solver", "options", "plan", "said"),
    [
        ("ddim", "eta", "none", "name=value, with commas between them, not 'eta'"),
        ("ddim", "etaa=1", "none", "did you mean eta"),
        ("ddim", "eta=much", "none", "the option eta of ddim is a number"),
        ("os:system", "", "none", "there is no solver 'os:system'"),
        ("ddim", "", "../mine.json", "there is no plan"),
    ],
)
def test_errors_are_sentences(nodes, solver, options, plan, said):
    with pytest.raises(InputError, match=said):
        nodes.DiffodeSampler().make(solver, options, plan)


def test_a_plan_lies_in_the_folder(nodes, tmp_path):
    plan = find("unipc3").plan([-2.5, -1.0, 0.5, math.inf], schedules.scaled_linear())
    plan.save(tmp_path / "mine.json")
    assert nodes.plans() == ["none", "mine.json"]
    (sigmas,) = nodes.DiffodeGrid().make(MODEL, "time", 5, 1.0, "mine.json")
    torch.testing.assert_close(sigmas, sigmas_of(plan))
    with pytest.raises(InputError, match="has no options: leave 'eta=1' out"):
        nodes.DiffodeSampler().make("ddim", "eta=1", "mine.json")
    (made,) = nodes.DiffodeSampler().make("ddim", "", "mine.json")
    made.sampler_function(lambda x, s: x / 2, torch.ones(1, 2), sigmas, disable=True)
    first = nodes.DiffodeSampler.IS_CHANGED(plan="mine.json", solver="ddim")
    find("ddim").plan([-2.5, 0.5, math.inf], schedules.scaled_linear()).save(tmp_path / "mine.json")
    assert nodes.DiffodeGrid.IS_CHANGED(plan="mine.json") != first
    assert nodes.DiffodeGrid.IS_CHANGED(plan="none") == ""


def test_the_grid_in_time_is_comfyuis_normal(nodes):
    """Equal steps in the label, log σ between labels linear, and 0 (comfy.samplers.normal_scheduler)."""
    (sigmas,) = nodes.DiffodeGrid().make(MODEL, "time", 7, 1.0, "none")
    t = np.linspace(999, 0, 7)
    expected = np.exp(np.interp(t, np.arange(1000), np.log(TABLE.double().numpy())))
    np.testing.assert_allclose(sigmas.numpy(), [*expected, 0.0], rtol=1e-6)
    (part,) = nodes.DiffodeGrid().make(MODEL, "time", 3, 0.5, "none")
    assert torch.equal(part, nodes.DiffodeGrid().make(MODEL, "time", 6, 1.0, "none")[0][-4:])
    assert len(nodes.DiffodeGrid().make(MODEL, "time", 3, 0.0, "none")[0]) == 0


@pytest.mark.parametrize("shift", [1.0, 3.0, math.exp(1.15)])
def test_the_grid_in_time_of_a_flow_has_its_shift(nodes, shift):
    (sigmas,) = nodes.DiffodeGrid().make(model_of(Flow(shift)), "time", 4, 1.0, "none")
    u = torch.linspace(1, 0, 5)
    torch.testing.assert_close(sigmas, shift * u / (1 + (shift - 1) * u), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", grid.GRIDS)
@pytest.mark.parametrize("sampling", [SimpleNamespace(sigmas=TABLE), Flow(3.0)], ids=["table", "flow"])
def test_every_grid_falls_to_0(nodes, name, sampling):
    assert list(grid.GRIDS) == nodes.DiffodeGrid.INPUT_TYPES()["required"]["grid"][0]
    (sigmas,) = nodes.DiffodeGrid().make(model_of(sampling), name, 10, 1.0, "none")
    assert len(sigmas) == 11
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert 0.99 < float(sigmas[0] / sampling.sigmas[-1]) <= 1


@pytest.mark.parametrize("denoise", [1e-3, 1e-320])
def test_too_many_steps_are_refused(nodes, denoise):
    with pytest.raises(InputError, match="steps / denoise must be a whole number from 1 to 100000"):
        nodes.DiffodeGrid().make(MODEL, "time", 10000, denoise, "none")


@pytest.mark.parametrize(("name", "of"), [("logsnr", np.log), ("karras", lambda ratio: ratio ** (1 / 7))])
def test_grids_of_a_flow_are_what_the_document_says(nodes, name, of):
    """Equal steps to 1e-2: float32 has 1 − σ = 3e-5 to 2e-3 of it."""
    (sigmas,) = nodes.DiffodeGrid().make(model_of(Flow(3.0)), name, 6, 1.0, "none")
    sigmas, u = sigmas[:-1].double().numpy(), np.array([0.9999, 1 / 1000])
    np.testing.assert_allclose(sigmas[[0, -1]], 3 * u / (1 + 2 * u), rtol=1e-4)
    np.testing.assert_allclose(np.diff(of(sigmas / (1 - sigmas)), 2), 0, atol=1e-2)


def test_the_workflow_is_of_these_nodes(nodes):
    """example.json: every link joins an output to an input of its type, and our widgets have values that they take."""
    flow = json.loads((PACKAGE / "example.json").read_text(encoding="utf-8"))
    by_id = {node["id"]: node for node in flow["nodes"]}
    for number, source, slot, target, into, kind in flow["links"]:
        assert by_id[source]["outputs"][slot]["type"] == by_id[target]["inputs"][into]["type"] == kind
        assert by_id[target]["inputs"][into]["link"] == number
    ours = {node["type"]: node for node in flow["nodes"] if node["type"].startswith("Diffode")}
    assert set(ours) == set(nodes.NODE_CLASS_MAPPINGS)
    assert draw_comfyui.TITLES == nodes.NODE_DISPLAY_NAME_MAPPINGS
    assert draw_comfyui.SVG.read_text(encoding="utf-8") == draw_comfyui.drawing()
    for kind, node in ours.items():
        widgets = {
            name: spec for name, spec in nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()["required"].items() if name != "model"
        }
        assert tuple(widgets) == draw_comfyui.WIDGETS[kind]
        for (allowed, *_), value in zip(widgets.values(), node["widgets_values"], strict=True):
            assert value in allowed if isinstance(allowed, list) else isinstance(value, int | float | str)


# From here on ComfyUI itself.


class Missing:
    """A finder, asked last, of modules that are not installed: they have every attribute."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in MISSING else None

    def create_module(self, spec):
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module):
        pass


class Network(torch.nn.Module):
    """A denoiser's network of four channels and a context, in ComfyUI's face."""

    def __init__(self, device=None, operations=None, **_):
        super().__init__()
        self.dtype = torch.float32
        self.weight = torch.nn.Parameter(0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), requires_grad=False)

    def forward(self, x, t, context=None, control=None, transformer_options=None, **_):
        added = context.mean((1, 2)).view(-1, 1, 1, 1) + 0.1 * torch.sin(t / 300).view(-1, 1, 1, 1)
        return torch.tanh(torch.einsum("ij,bjhw->bihw", self.weight, x) + added)


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI: its modules by name, and model(kind), a ModelPatcher of a BaseModel with Network."""
    if not CLONE:
        pytest.skip("DIFFODE_COMFYUI=PATH names no clone of ComfyUI")
    sys.path.append(CLONE)
    sys.meta_path.append(Missing())
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sample

    kinds = {"noise": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}
    cpu = torch.device("cpu")

    def model(kind):
        config = SimpleNamespace(
            unet_config={},
            latent_format=comfy.latent_formats.SD15(),
            manual_cast_dtype=None,
            custom_operations=torch.nn,
            optimizations={},
            memory_usage_factor=1.0,
            sampling_settings={"shift": 3.0} if kind == "flow" else {},
        )
        made = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[kinds[kind]], cpu, Network)
        return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)

    return SimpleNamespace(model=model, samplers=comfy.samplers, sample=comfy.sample, nodes=package())


CONDS = [[torch.full((1, 3, 8), 0.2), {}]], [[torch.zeros(1, 3, 8), {}]]
LATENT = torch.sin(torch.arange(512.0)).view(2, 4, 8, 8)


def sampled(comfy, model, chosen, sigmas, cfg=7.0, seed=5, latent=None, **options):
    """What ComfyUI's SamplerCustom calls: a batch of two."""
    latent = torch.zeros(2, 4, 8, 8) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed)
    sigmas = sigmas.clone()  # uni_pc writes to it
    return comfy.sample.sample_custom(model, noise, cfg, chosen, sigmas, *CONDS, latent, seed=seed, disable_pbar=True, **options)


def keyed(comfy, model, name, **options):
    """What ComfyUI's KSampler calls."""
    latent = options.pop("latent_image", torch.zeros(2, 4, 8, 8))
    noise = comfy.sample.prepare_noise(latent, 5)
    return comfy.sample.sample(model, noise, 8, 7.0, name, "karras", *CONDS, latent, seed=5, disable_pbar=True, **options)


def agree(a, b, rtol=1e-5):
    """Relative to the largest number; 1e-5 is float32's rounding over eight steps at guidance 7."""
    assert float((a - b).abs().max()) <= rtol * float(a.abs().max())
    assert float(a.std()) > 0.1


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, row in SAME.items() for kind in row[2].split(", ")])
def test_it_is_the_same_as_comfyuis_own(comfy, name, kind):
    """A flow is begun at its second σ, since ComfyUI's SDE samplers move σ = 1, which ours need not; euler from σ = 1 too."""
    ours, options, _, zero = SAME[name]
    model = comfy.model(kind)
    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple" if kind == "flow" else "karras", 8
    )
    sigmas = sigmas[kind == "flow" and name != "euler" :][: None if zero else -1]
    made = sampler(ours, **options)
    if name in NOISY:
        from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler

        if not isinstance(sys.modules["torchsde"], ModuleType):
            pytest.skip("torchsde is not installed")
        ends = float(sigmas[sigmas > 0].min()), float(sigmas.max())

        def made(model, x, sigmas, made=made, **kw):
            return made(model, x, sigmas, noise_sampler=BrownianTreeNoiseSampler(x, *ends, seed=5, cpu=True), **kw)

    theirs = sampled(comfy, model, comfy.samplers.sampler_object(name), sigmas)
    agree(sampled(comfy, model, comfy.samplers.KSAMPLER(made), sigmas), theirs)


def test_registered_samplers_are_ksamplers(comfy):
    for name in comfy.nodes.REGISTERED:
        known = f"diffode_{name.replace('-', '_')}"
        assert known in comfy.samplers.KSampler.SAMPLERS
        for kind in ("v", "flow"):
            assert torch.isfinite(keyed(comfy, comfy.model(kind), known)).all()
    agree(keyed(comfy, comfy.model("noise"), "diffode_dpmpp2m"), keyed(comfy, comfy.model("noise"), "dpmpp_2m"))


@pytest.mark.parametrize("kind", ["noise", "v"])
@pytest.mark.parametrize(
    "options",
    [{"denoise": 0.5}, {"start_step": 3}, {"last_step": 5}, {"start_step": 2, "last_step": 5, "force_full_denoise": True}],
)
def test_a_part_of_a_schedule(comfy, kind, options):
    """img2img, and the two parts of KSampler (Advanced)."""
    model, latent = comfy.model(kind), {"latent_image": LATENT}
    agree(keyed(comfy, model, "diffode_dpmpp2m", **latent, **options), keyed(comfy, model, "dpmpp_2m", **latent, **options))


def test_a_mask_holds_the_latent(comfy):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6] = 1
    for kind, ours, theirs in (("noise", "diffode_dpmpp2m", "dpmpp_2m"), ("flow", "diffode_ddim", "euler")):
        model, options = comfy.model(kind), {"latent_image": LATENT, "noise_mask": mask}
        x = keyed(comfy, model, ours, **options)
        agree(x, keyed(comfy, model, theirs, **options))
        torch.testing.assert_close(x[:, :, :2], LATENT[:, :, :2], rtol=0, atol=1e-4)
        assert not torch.allclose(x[:, :, 2:6], LATENT[:, :, 2:6], atol=0.1)


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_guidance_and_its_own_function(comfy, cfg):
    model, sigmas, seen = comfy.model("noise"), torch.tensor([14.0, 5.0, 1.0, 0.0]), []

    def rule(args):
        seen.append(args["cond_scale"])
        return args["uncond"] + args["cond_scale"] / 2 * (args["cond"] - args["uncond"])

    plain = sampled(comfy, model, comfy.samplers.KSAMPLER(sampler("heun")), sigmas, cfg)
    agree(plain, sampled(comfy, model, comfy.samplers.sampler_object("heun"), sigmas, cfg))
    model.set_model_sampler_cfg_function(rule, disable_cfg1_optimization=True)
    ruled = sampled(comfy, model, comfy.samplers.KSAMPLER(sampler("heun")), sigmas, cfg)
    agree(ruled, sampled(comfy, model, comfy.samplers.sampler_object("heun"), sigmas, cfg))
    assert seen == [cfg] * 10
    assert not torch.allclose(plain, ruled)


def test_the_seed_decides_the_noise(comfy):
    model = comfy.model("noise")
    made, sigmas = comfy.samplers.KSAMPLER(sampler("sde-dpmpp2m")), torch.tensor([14.0, 5.0, 1.0, 0.3])
    first, again, other = (sampled(comfy, model, made, sigmas, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_preview_and_the_interrupt(comfy):
    seen = []

    def preview(step, x0, x, steps):
        seen.append((step, x0.shape, x.shape, steps))
        if len(seen) == 9:
            raise InterruptedError

    model = comfy.model("v")
    keyed(comfy, model, "diffode_heun", callback=preview)
    assert seen == [(step, (2, 4, 8, 8), (2, 4, 8, 8), 8) for step in range(8)]
    with pytest.raises(InterruptedError):
        keyed(comfy, model, "diffode_heun", callback=preview)


def test_grids_of_comfyuis_models(comfy):
    for kind in ("noise", "v", "flow"):
        model = comfy.model(kind)
        (ours,) = comfy.nodes.DiffodeGrid().make(model, "time", 8, 1.0, "none")
        named = "simple" if kind == "flow" else "normal"
        theirs = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), named, 8)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in (("karras", "karras"), ("logsnr", "exponential")):
        model = comfy.model("v")
        expected = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), theirs, 8)
        torch.testing.assert_close(comfy.nodes.DiffodeGrid().make(model, ours, 8, 1.0, "none")[0], expected, rtol=1e-5, atol=1e-6)


def test_errors_reach_the_user(comfy):
    with pytest.raises(ValueError, match="give one sample at a time"):
        sampled(comfy, comfy.model("noise"), comfy.samplers.KSAMPLER(sampler("dpm23")), torch.tensor([14.0, 1.0, 0.0]))
