"""captured: the model of a pipeline gives what the pipeline gives, for every family, or is refused in a sentence."""

import copy
import re
from functools import cache
from itertools import count

import numpy as np
import pytest
import torch

from diffode import InputError, captured, encode, log_likelihood, sample
from diffode.pipelines.weighing import weigh
from tests import pipelines
from tests.test_readme import ROOT, snippets

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own
DDIM, FLOW = ("sd", "dit", "ddim", "sd-controlnet", "sd-inpaint"), ("sd3", "flux", "ltx")  # what their schedulers do
WITH_LATENTS = ("sd", "sd-controlnet", "sd-inpaint", *FLOW)
TEXTS = ["a red bicycle", "a blue boat"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@cache
def model_of(name):
    return captured(pipelines.build(name), **pipelines.call(name))


def images_of(pipe, **call):
    """What a pipeline gives, in [−1, 1], as `decode` does."""
    return 2 * torch.as_tensor(pipe(**call, return_dict=False)[0]).movedim(-1, -3) - 1


def close(found, expected, tolerance=1e-5):
    """Of float32: what is left of 24 bits after some thousand operations on numbers of size 1."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def refused(call):
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_the_models_branches_make_what_reaches_the_scheduler(name):
    """At a t that the capture has not seen, for two samples: the pipeline is run, its step() gives what is compared."""
    pipe, model, seen = pipelines.fresh(name), model_of(name), []
    step = pipe.scheduler.step

    def kept(m, t, sample, *args, **kwargs):
        seen.append((float(t), sample, m))
        return step(m, t, sample, *args, **kwargs)

    pipe.scheduler.step = kept
    call = pipelines.call(name)
    pipe(**call | {"num_inference_steps": 5}, generator=generator())
    assert len(seen) == 5
    for t, x, m in seen[1:4]:
        lam = float(model.schedule.lam(t / (1000 if model.clock == "1000t" else 1)))
        scale = 1 if name != "sdxl" else np.exp(lam) / np.sqrt(1 + np.exp(2 * lam))  # of Euler, which steps x/α
        both = model.taking([0, 0]) if model.condition else model
        found = both((scale * x[:1]).repeat(2, *[1] * (x.ndim - 1)), lam, model.predicts)
        close(found / m.abs().max(), m[:1, : x.shape[1]].expand_as(found) / m.abs().max(), 2e-5)


def grid_of(pipe, model):
    """The λ of a pipeline that has run, by DDIM's labels or the σ of a flow."""
    scheduler = pipe.scheduler
    if model.schedule.path.name == "flow":
        sigmas = scheduler.sigmas.double().numpy()
        with np.errstate(divide="ignore"):
            return np.log1p(-sigmas) - np.log(sigmas)
    last = np.inf if scheduler.config.set_alpha_to_one else model.schedule.lam(0)
    return np.append(model.schedule.lam(scheduler.timesteps.numpy()), last)


@pytest.mark.parametrize("name", DDIM + FLOW)
def test_sampling_gives_the_images_of_the_pipeline(name):
    """DDIM and Euler for a flow are Euler's method for the same equation; `decode` is the pipeline's own."""
    pipe, model = pipelines.fresh(name), model_of(name)
    x = torch.randn(1, *model.shape, generator=generator())
    call = pipelines.call(name) | ({"latents": x} if name in WITH_LATENTS else {})
    if name == "sd-inpaint":  # whose masked image is encoded with the generator's next draw
        model = captured(pipe, **call, generator=generator())
    expected = images_of(pipe, **call, generator=generator())
    found = sample(model, x=x, solver="ddim", grid=grid_of(pipe, model)).x
    close(model.decode(found) if model.decode else found.clamp(-1, 1), expected)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_videos_are_decoded_as_the_pipeline_decodes_them(name):
    """A run of no steps: its scheduler is asked for none, and hands on the latents."""
    model, pipe = model_of(name), pipelines.fresh(name)
    x = torch.randn(2, *model.shape, generator=generator())
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: (x[:1], step(*args, **kwargs))
    expected = images_of(pipe, **pipelines.call(name))
    assert model.decode(x).shape == (2, *expected.shape[1:])
    assert torch.equal(model.decode(x)[:1], expected)


def test_a_list_of_prompts_gives_a_row_for_each():
    pipe = pipelines.fresh("sd")
    call = pipelines.call("sd") | {"prompt": TEXTS}
    model, turns = captured(pipe, **call), [0, 1, 0]
    x = torch.randn(3, *model.shape, generator=generator())
    expected = images_of(pipe, **call | {"prompt": [TEXTS[i] for i in turns]}, latents=x)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    result = sample(model.taking(turns), x=x, solver="ddim", grid=grid_of(pipe, model))
    close(model.decode(result.x), expected)
    assert result.calls == 4  # both branches by one call, as the pipeline does


def test_guidance_is_taken_apart():
    """Its weight can be changed, and where it is 1 the branch away is not called."""
    model, other = model_of("sd"), captured(pipelines.build("sd"), **pipelines.call("sd") | {"guidance_scale": 2.5})
    ((weight, changes),) = model.guidance.towards
    assert (weight, changes, other.guidance.towards[0][0]) == (5.0, {}, 2.5)
    x = torch.randn(1, *model.shape, generator=generator())
    close(model.guided(2.5, **model.guidance.null)(x, 0.0), other(x, 0.0))
    plain = captured(pipelines.build("sd"), **pipelines.call("sd") | {"guidance_scale": 1.0})
    assert plain.guidance is None
    close(model.replace(guidance=None)(x, 0.0), plain(x, 0.0))


def test_rescaled_guidance_is_a_rule():
    call = pipelines.call("sd") | {"guidance_rescale": 0.7, "guidance_scale": 7.5, "prompt": TEXTS}
    model = captured(pipelines.build("sd"), **call)
    assert model.guidance.towards[0][0] == 7.5
    assert str(model.guidance.rules[0]) == "rescaled(0.7)"


def test_what_is_not_of_a_sample_is_shared():
    """Flux's positions; the embedded guidance has a row per sample."""
    rows = {name: getattr(value, "shape", None) for name, value in model_of("flux").condition.items()}
    assert rows["img_ids"] is rows["txt_ids"] is None
    assert rows["guidance"] == (1,)


@pytest.mark.parametrize("kind", ["EulerDiscrete", "HeunDiscrete", "PNDM", "DPMSolverMultistep", "diffode"])
def test_the_model_is_the_same_whatever_the_scheduler(kind):
    """Those that step x/α among them."""
    import diffusers

    from diffode import DiffodeScheduler

    pipe, model = pipelines.fresh("sd"), model_of("sd")
    replaces = DiffodeScheduler if kind == "diffode" else getattr(diffusers, f"{kind}Scheduler")
    pipe.scheduler = replaces.from_config(pipe.scheduler if kind == "diffode" else pipe.scheduler.config)
    x = torch.randn(1, *model.shape, generator=generator())
    assert torch.equal(captured(pipe, **pipelines.call("sd"))(x, -1.0), model(x, -1.0))


def test_edm_is_called_with_the_scaled_state_and_its_own_clock():
    """c_in x and log(σ)/4, which the capture itself compares with what the pipeline made."""
    from diffusers import EDMEulerScheduler

    pipe = pipelines.fresh("sd")
    pipe.scheduler = EDMEulerScheduler()
    model = captured(pipe, **pipelines.call("sd"))
    assert (model.predicts, model.clock, model.schedule.path.name) == ("edm", "c_noise", "ve")


def test_gradients_flow_and_float64_works():
    """Of the model in float64, by central differences."""
    model = model_of("sd").replace(network=copy.deepcopy(model_of("sd").network)).to("cpu", torch.float64)
    x = torch.randn(1, *model.shape, dtype=torch.float64, generator=generator()).requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator(1))
    (gradient,) = torch.autograd.grad(model(x, 0.0).square().sum(), x)
    with torch.no_grad():
        ends = [model(x + h * direction, 0.0).square().sum() for h in (1e-4, -1e-4)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-4)


def test_encode_and_back_and_likelihood():
    """Near the data, since the equation of an untrained network is stiff at the noisy end: back to 5 percent of the way there."""
    model = model_of("sd")
    x = 0.5 * torch.randn(1, *model.shape, generator=generator())
    there = encode(model, x, solver="dpm3", nfe=24, to_lam=2.0).x
    back = sample(model, x=there, solver="dpm3", nfe=24, from_lam=2.0, noise=None).x
    assert (back - x).abs().max() < 0.05 * (there - x).abs().max()
    assert torch.isfinite(log_likelihood(model, x, encode, solver="ddim", nfe=2).log_p).all()


def state_of(pipe):
    """All that a capture might change."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [
        (len(module._forward_hooks), len(module._forward_hooks_with_kwargs), "forward" in vars(module)) for module in modules
    ]
    scheduler = {name: copy.deepcopy(value) for name, value in vars(pipe.scheduler).items()}
    return dict(vars(pipe)), hooks, repr(scheduler), torch.random.get_rng_state().tolist()


def interrupting(module, args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends", ["well", "with an error", "by Ctrl-C"])
def test_the_pipeline_is_left_as_it_was(ends):
    pipe, source = pipelines.fresh("sd"), generator(5)
    before, state, own = images_of(pipe, **pipelines.call("sd"), generator=generator(1)), state_of(pipe), source.get_state()
    call = pipelines.call("sd") | {"generator": source}
    if ends == "well":
        captured(pipe, **call).decode(torch.zeros(1, 4, 8, 8))
    elif ends == "with an error":
        refused(lambda: captured(pipe, **call, clip_skip=100))
    else:
        hook = pipe.unet.conv_out.register_forward_pre_hook(interrupting)
        with pytest.raises(KeyboardInterrupt):
            captured(pipe, **call)
        hook.remove()
    assert state_of(pipe) == state
    assert torch.equal(source.get_state(), own)
    assert torch.equal(images_of(pipe, **pipelines.call("sd"), generator=generator(1)), before)


def guided_by_step():
    """A pipeline of which the weight of guidance, which is read once a step, is another after three."""
    from diffusers import StableDiffusionPipeline

    reads = count()
    weight = property(lambda self: 5.0 if next(reads) < 3 else 1.5)
    guided = type("Guided", (StableDiffusionPipeline,), {"guidance_scale": weight})
    return guided(**pipelines.build("sd").components, requires_safety_checker=False)


def video_as_images():
    """A pipeline that steps (batch · frames, ...) of a network for (batch, channels, frames, ...)."""
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    parts = {name: pipelines.build("sd").components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
    return TextToVideoSDPipeline(**parts, unet=UNet3DConditionModel(**pipelines.UNET | blocks))


def two_transformers(second):
    from diffusers import WanPipeline

    parts = pipelines.build("wan").components
    return WanPipeline(**parts | {"transformer_2": second(parts["transformer"])}, boundary_ratio=0.6)


def of_kind(kind, name, **changes):
    import diffusers

    return getattr(diffusers, kind)(**pipelines.build(name).components, **changes)


REFUSED = {
    "guidance that changes": (guided_by_step, "sd", {}, "changes with t"),
    "a callback": (lambda: pipelines.build("sd"), "sd", {"callback_on_step_end": print}, "callback_on_step_end may change"),
    "held frames": (
        lambda: of_kind("LTXImageToVideoPipeline", "ltx"),
        "ltx",
        {"image": pipelines.normal(1, 3, 32, 32)},
        "held frames",
    ),
    "a reshaped state": (video_as_images, "sd", {"num_frames": 3}, "reshapes the state"),
    "an early end": (lambda: pipelines.build("sdxl"), "sdxl", {"denoising_end": 0.5}, "denoising_end"),
    "a state of no numbers": (
        lambda: pipelines.build("sd"),
        "sd",
        {"latents": torch.full((1, 4, 8, 8), np.nan)},
        "not finite",
    ),
    "steps in words": (lambda: pipelines.build("sd"), "sd", {"num_inference_steps": "few"}, "num_inference_steps"),
    "a mask": (
        lambda: of_kind("StableDiffusionInpaintPipeline", "sd", requires_safety_checker=False),
        "sd-inpaint",
        {},
        "between its steps",
    ),
    "a second transformer": (lambda: two_transformers(copy.deepcopy), "wan", {}, "transformer_2"),
    "skipped layers": (lambda: pipelines.build("sd3"), "sd3", {"skip_guidance_layers": [0]}, "called in one way"),
    "perturbed attention": (
        lambda: of_kind("StableDiffusionPAGPipeline", "sd", requires_safety_checker=False, pag_applied_layers=["mid"]),
        "sd",
        {},
        "perturbed attention",
    ),
    "a ControlNet for some steps": (
        lambda: pipelines.build("sd-controlnet"),
        "sd-controlnet",
        {"control_guidance_end": 0.5},
        "conditioning_scale",
    ),
    "a ControlNet that guesses": (
        lambda: pipelines.build("sd-controlnet"),
        "sd-controlnet",
        {"guess_mode": True},
        "down_block_additional_residuals",
    ),
    "an unknown argument": (lambda: pipelines.build("sd3"), "sd3", {"promt": "a red bicycle"}, "did you mean prompt"),
    "a failing call": (lambda: pipelines.build("sd"), "sd", {"clip_skip": 100}, "cannot be run with these arguments"),
    "no prompt": (lambda: pipelines.build("sd"), "sd", {"prompt": None}, "cannot be run with these arguments"),
    "steps that are none": (lambda: pipelines.build("sd"), "sd", {"height": "x"}, "cannot be run with these arguments"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_function_of_x_and_t_is_refused(what):
    make, name, changes, said = REFUSED[what]
    pipelines.build(name)
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    assert said in refused(lambda: captured(pipe, **pipelines.call(name) | changes))


def test_what_is_no_pipeline_is_refused():
    for given in (None, 5, "folder", torch.nn.Linear(1, 1), object()):
        assert "pipeline of diffusers" in refused(lambda: captured(given, prompt="a"))  # noqa: B023
    pipe = pipelines.fresh("sd")
    pipe.unet = copy.deepcopy(pipe.unet).to("meta")
    assert "unet is on meta" in refused(lambda: captured(pipe, **pipelines.call("sd")))


def test_latents_of_another_shape_are_not_decoded():
    for x in (torch.zeros(1, 4, 8, 9), torch.zeros(0, 4, 8, 8), None, "x"):
        assert "latents (batch, " in refused(lambda: model_of("sd").decode(x))  # noqa: B023


def test_weights_that_explain_nothing_are_refused():
    """A product is no sum; and sums that are: three branches, and a sign."""
    a, b, c = torch.randn(3, 2, 3, 40, generator=generator())
    assert "no weighted sum" in refused(lambda: weigh([[a[0], b[0]]], [a[0] * b[0]]))
    assert "no weighted sum" in refused(lambda: weigh([[a[0]]], [2 * a[0]]))
    assert weigh([[a[0], b[0], c[0]]], [7.5 * a[0] - 6.0 * b[0] - 0.5 * c[0]])[:2] == ([7.5, -6.0, -0.5], 1)
    assert weigh([[a[0], b[0]]], [3 * b[0] - 4 * a[0]])[:2] == ([4.0, -3.0], -1)


def branches_of(dtype, spread):
    """Outputs with a prompt and without at three points, which differ by `spread` of their size."""
    with_prompt = [torch.randn(1, 4, 8, 8, generator=generator(i)) for i in range(3)]
    without = [(c + spread * torch.randn(c.shape, generator=generator(9 + i))).to(dtype) for i, c in enumerate(with_prompt)]
    return [c.to(dtype) for c in with_prompt], without


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_guidance_in_half_precision_is_told_from_its_rounding(dtype, spread):
    """Weights are those given; rescaling is found; what is normalized, or of one branch and scaled, is refused. All of it is done
    in the dtype, as pipelines do."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    c, u = branches_of(dtype, spread)
    for weight in (3.0, 9.0):
        m = [b + weight * (a - b) for a, b in zip(c, u, strict=True)]
        assert weigh(list(zip(c, u, strict=True)), m) == ([weight, 1 - weight], 1, 0.0)
        assert weigh(list(zip(u, c, strict=True)), [-each for each in m]) == ([1 - weight, weight], -1, 0.0)
        assert weigh(list(zip(c, u, strict=True)), [each.float() for each in m]) == ([weight, 1 - weight], 1, 0.0)
        wide = [b.float() + weight * (a.float() - b.float()) for a, b in zip(c, u, strict=True)]
        assert weigh(list(zip(c, u, strict=True)), wide)[0] == pytest.approx([weight, 1 - weight], abs=1e-6)
        normed = [each * (a.norm(dim=1, keepdim=True) / each.norm(dim=1, keepdim=True)) for a, each in zip(c, m, strict=True)]
        assert "cfg_normalization" in refused(lambda: weigh(list(zip(c, u, strict=True)), normed))  # noqa: B023
        rescaled = [rescale_noise_cfg(each, a, 0.2) for a, each in zip(c, m, strict=True)]
        assert weigh(list(zip(c, u, strict=True)), rescaled) == ([weight, 1 - weight], 1, 0.2)
    assert "no weighted sum" in refused(lambda: weigh([[each] for each in c], [0.97 * each for each in c]))
    three = [b + 7.0 * (a - i) + 1.5 * (i - b) for a, b, i in zip(c, u, reversed(u), strict=True)]
    assert weigh(list(zip(c, reversed(u), u, strict=True)), three)[0] == pytest.approx([7.0, -5.5, -0.5], abs=0.02)


def test_branches_that_differ_in_their_last_digits_have_the_weight_that_is_given():
    c, u = branches_of(torch.bfloat16, 0.0005)
    assert 0 < float((c[0] != u[0]).double().mean()) < 0.5
    m = [b + 3.5 * (a - b) for a, b in zip(c, u, strict=True)]
    assert weigh(list(zip(c, u, strict=True)), m) == ([3.5, -2.5], 1, 0.0)


def test_a_pipeline_in_half_precision():
    """Of the weight that it is given, to the last digit, and rescaled."""
    built = pipelines.build("sd")
    parts = {name: copy.deepcopy(part) for name, part in built.components.items()}
    pipe = type(built)(**parts, requires_safety_checker=False).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert captured(pipe, **pipelines.call("sd")).guidance.towards[0][0] == 5.0
    model = captured(pipe, **pipelines.call("sd") | {"guidance_scale": 3.0, "guidance_rescale": 0.2})
    assert (model.guidance.towards[0][0], str(model.guidance.rules[0])) == (3.0, "rescaled(0.2)")


def test_equal_rows_are_rows():
    """One prompt twice with one seed is no copy that guidance makes; with another the rows differ in nothing else."""
    seeds = {"prompt": TEXTS[:1] * 2, "generator": [generator(1), generator(1)]}
    model = captured(pipelines.build("sd"), **pipelines.call("sd") | seeds)
    assert model.guidance.towards[0][0] == 5.0
    assert model.condition["encoder_hidden_states"].shape[0] == 2


def test_one_prompt_is_for_any_number_of_samples():
    model = model_of("sd")
    x = torch.randn(3, *model.shape, generator=generator())
    close(model(x, 0.0), torch.cat([model(each, 0.0) for each in x.split(1)]))
    model.handed(model.condition, x)["encoder_hidden_states"].view(
        -1
    )  # as HunyuanDiT does; an error for rows that are one in memory


def test_arguments_that_the_network_takes_items_out_of():
    """The residuals of a T2I-Adapter: a list that the network empties, at each call."""
    import diffusers

    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    with pipelines.seeded():
        unet = diffusers.UNet2DConditionModel(**pipelines.UNET | blocks).eval()
        adapter = diffusers.T2IAdapter(channels=[4, 8], num_res_blocks=1, downscale_factor=2)
    parts = pipelines.build("sd").components | {"unet": unet, "adapter": adapter}
    parts.pop("image_encoder", None)
    pipe = diffusers.StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    model = captured(pipe, **pipelines.call("sd") | {"image": pipelines.normal(1, 3, 16, 16).sigmoid()})
    residuals = model.condition["down_intrablock_additional_residuals"]
    assert sample(model, solver="ddim", nfe=2, n=1).x.isfinite().all()
    assert len(residuals) == 2


def test_a_state_that_is_scaled_with_what_follows_it():
    """Latents and the image to be enlarged, which are scaled as one."""
    import diffusers

    with pipelines.seeded():
        unet = diffusers.UNet2DModel(**pipelines.PLAIN_UNET | {"in_channels": 6, "out_channels": 3}).eval()
        coder = diffusers.VQModel(latent_channels=3, norm_num_groups=2, num_vq_embeddings=8).eval()
    pipe = diffusers.LDMSuperResolutionPipeline(coder, unet, pipelines.fresh("ddim").scheduler)
    pipe.set_progress_bar_config(disable=True)
    model = captured(pipe, image=pipelines.normal(1, 3, 8, 8).clamp(-1, 1))
    assert (model.shape, model.condition["beyond_x"].shape) == ((3, 8, 8), (1, 3, 8, 8))


def test_the_model_has_tensors_of_its_own():
    call = pipelines.call("flux")
    model = captured(pipelines.build("flux"), **call)
    x = torch.randn(1, *model.shape, generator=generator())
    before = model(x, 0.0)
    call["prompt_embeds"].zero_()
    assert torch.equal(model(x, 0.0), before)


@pytest.mark.parametrize(("rows", "tokens"), [(6, 6), (5, 6), (16, 16)])
def test_positions_that_have_as_many_rows_as_there_are_prompts(rows, tokens):
    """Flux's, of its tokens of text and of its 16 patches."""
    embeds = {"prompt_embeds": pipelines.normal(rows, tokens, 8), "pooled_prompt_embeds": pipelines.normal(rows, 8)}
    condition = captured(pipelines.build("flux"), **pipelines.call("flux") | embeds).condition
    assert not any(isinstance(condition[name], torch.Tensor) for name in ("txt_ids", "img_ids"))
    assert condition["pooled_projections"].shape == (rows, 8)


def test_a_decoder_is_shown_in_a_line():
    assert repr(model_of("sd").decode) == "Decode(of StableDiffusionPipeline, shape (4, 8, 8))"


def test_a_cache_is_refused():
    from diffusers.hooks import FirstBlockCacheConfig

    pipe = pipelines.fresh("flux")
    pipe.transformer = copy.deepcopy(pipe.transformer)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    assert "disable_cache()" in refused(lambda: captured(pipe, **pipelines.call("flux")))


def test_the_snippet_of_the_document_runs():
    (code,) = snippets("docs/captured.md")
    scope = {"pipe": pipelines.build("sd")}
    exec(code, scope)
    assert scope["images"].shape == (2, 3, 16, 16)
    assert scope["weaker"].guidance.towards[0][0] == 2.0


def test_the_pipeline_of_the_readme_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scope = {"pipe": pipelines.fresh("sd")}
    exec(re.search(r"<!-- in a pipeline: tests run this -->\n```python\n(.*?)```", text, re.S)[1], scope)
    assert scope["image"].size == (16, 16)
    assert scope["images"].shape == (4, 3, 16, 16)
