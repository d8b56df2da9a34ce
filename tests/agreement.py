"""How closely pipelines driven by DiffodeScheduler agree: with diffode's own loop, and with diffusers' own schedulers.

Each cell is a pipeline family and a feature, what it is compared with, and a bound on the relative difference of the final
latents. test_scheduler.py asserts the bounds, and that docs/diffusers.md lists these cells; `python -m tests.agreement` measures
all and writes the table there.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path

import torch

from diffode import DiffodeScheduler, EpsModel, captured, trained_as
from diffode.generators import GeneratorNoise
from solvers import run
from solvers.hooks import Hooks
from solvers.registry import all_names, find
from tests.pipelines import FAMILIES, SD, build, call, fresh, normal

DOCUMENT = Path(__file__).parents[1] / "docs" / "diffusers.md"
BEGIN, END = "<!-- {}: written by python -m tests.agreement -->\n", "<!-- /{} -->"
TABLE = {name: SD[name] for name in ("beta_start", "beta_end", "beta_schedule")}
PLANNED = [name for name in all_names() if find(name).has_plan]
LOOP, CAPTURED, SEED = "diffode's loop, the network replayed", "diffode's loop on the captured model", 3
EVERY = f"all {len(FAMILIES)}"
DPM, UNIPC, EULER = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"
AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]  # Align Your Steps (Sabour et al., 2024), for Stable Diffusion


@dataclass(frozen=True)
class Cell:
    """A feature of a family, with a solver, compared with `against`; slow: not measured in CI. Those that share a name
    are one row of the table, which `row` describes where the feature does not."""

    family: str
    feature: str
    solver: str
    against: str
    measure: Callable[[], float]
    bound: float = 1e-5
    slow: bool = False
    row: str = ""

    @property
    def name(self) -> tuple[str, str, str]:
        family = EVERY if self.against in (LOOP, CAPTURED) else self.family
        return family, self.row or self.feature, self.against


def relative(a, b) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def recorded(pipe, **arguments):
    """The calls of `step` that a pipeline makes, each as (output, timestep, sample, what came out), and the generator's state
    before the first."""
    calls, step, states = [], pipe.scheduler.step, []

    @wraps(step)  # whose signature pipelines look at
    def spy(output, t, sample, *args, **kwargs):
        generator = kwargs.get("generator")
        states.append(generator.get_state() if generator else torch.get_rng_state())
        made = step(output, t, sample, *args, **kwargs)
        calls.append((output.clone(), float(t), sample.clone(), made[0].clone()))
        return made

    pipe.scheduler.step = spy
    try:
        torch.manual_seed(SEED)  # of noise for which a pipeline hands on no generator
        pipe(generator=torch.Generator().manual_seed(SEED), **arguments)
    finally:
        del pipe.scheduler.step
    return calls, states[0]


def arguments_of(family, **changes):
    """Those of `call`, without decoding where that can be left out."""
    latent = {} if family in ("ddpm", "ddim", "dit") else {"output_type": "latent"}
    left_out = [key for key, value in changes.items() if value is None and key in ("num_inference_steps", "height", "width")]
    return {key: value for key, value in {**call(family), **latent, **changes}.items() if key not in left_out}


def final(pipe, family, **changes):
    """The last state of a pipeline."""
    return recorded(pipe, **arguments_of(family, **changes))[0][-1][-1]


def ours(pipe, solver, **settings):
    """The same pipeline with our scheduler in the place of its own."""
    pipe.scheduler = DiffodeScheduler.from_config(pipe.scheduler, solver=solver, **settings)
    return pipe


def loop(family, solver, **settings):
    """The worst relative difference from diffode's loop of all states, of all clocks, and of the end.

    The loop's network answers with what the pipeline's answered, call by call, so equal states are those of equal networks. DiT
    doubles its batch at each step from the first half: that half.
    """
    pipe = fresh(family)
    model = EpsModel(lambda x, t: network(x, t), **trained_as(pipe.scheduler))
    model = model.clipped() if pipe.scheduler.config.get("clip_sample") else model
    calls, state = recorded(ours(pipe, solver, **settings), **arguments_of(family))
    off, rows = [], slice(1) if family == "dit" else slice(None)

    def network(x, t):
        output, clock, sample, _ = calls[len(off)]
        off.append(max(relative(sample[rows], x[rows]), abs(clock - float(t[0])) / max(abs(clock), 1)))
        return output

    end = run(pipe.scheduler.plan, model, calls[0][2], Hooks(noise=noise_from(state, calls[0][2]))).x
    assert len(off) == len(calls)
    return max(*off, relative(calls[-1][-1][rows], end[rows]))


def noise_from(state, like):
    """Draws 1, 2, ... of a generator in this state."""
    generator = torch.Generator()
    generator.set_state(state)
    noise = GeneratorNoise(generator)
    noise(1, like)
    return noise


def on_captured(family, solver="unipc3"):
    """From diffode's loop on the model that `captured` makes of the pipeline."""
    pipe = fresh(family)
    drawn = {"generator": torch.Generator().manual_seed(SEED)} if family == "sd-inpaint" else {}  # of the picture's latents
    model = captured(pipe, **call(family), **drawn)
    model = model.clipped() if pipe.scheduler.config.get("clip_sample") else model
    calls, _ = recorded(ours(pipe, solver), **arguments_of(family))
    return relative(calls[-1][-1][:1], run(pipe.scheduler.plan, model, calls[0][2][:1]).x)


@cache
def words():
    """The embedded prompt of sd, and the empty one."""
    return build("sd").encode_prompt("a red bicycle", "cpu", 1, True)


def direct(solver, steps=3):
    """From diffode's loop around the network itself, guided, on sd."""
    pipe = ours(fresh("sd"), solver)
    conditional, unconditional = words()
    trained = trained_as(build("sd").scheduler)
    embedded = {"prompt": None, "prompt_embeds": conditional, "negative_prompt_embeds": unconditional}
    x = normal(1, 4, 8, 8, seed=7)
    end = final(pipe, "sd", num_inference_steps=steps, latents=x, **embedded)
    model = EpsModel(pipe.unet, **trained).conditioned(encoder_hidden_states=conditional)
    model = model.guided(5.0, encoder_hidden_states=unconditional, batched=True)
    noise = noise_from(torch.Generator().manual_seed(SEED).get_state(), x)
    return relative(end, run(pipe.scheduler.plan, model, x, Hooks(noise=noise)).x)


def same(family, scheduler, solver, arguments=None, settings=None, made=fresh):
    """From the class of diffusers that has this method, by name, with its configuration; None is the pipeline's own."""
    import diffusers

    pipe, arguments = made(family), {"num_inference_steps": 5, **(arguments or {})}
    if scheduler is not None:
        name, config = scheduler
        pipe.scheduler = getattr(diffusers, name)(**config)
    theirs = final(pipe, family, **arguments)
    return relative(final(ours(pipe, solver, **(settings or {})), family, **arguments), theirs)


def of(pipeline):
    """made(family): the parts of a family in another pipeline of diffusers."""

    def made(family):
        import diffusers

        parts = fresh(family).components
        safety = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = getattr(diffusers, pipeline)(**parts, **safety)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


def image_of(family):
    """What img2img begins with."""
    return normal(1, 3, 16, 16, seed=4).sigmoid()


def img2img(family, pipeline, scheduler, solver, strength, **settings):
    sizes = {"height": None, "width": None} if family == "sd" else {}
    arguments = {"image": image_of(family), "strength": strength, "num_inference_steps": 10, **sizes}
    return same(family, scheduler, solver, arguments, settings, of(pipeline))


def inpainted(solver="ddim"):
    """A network of four channels, whose latents the pipeline masks after every step."""
    arguments = {key: call("sd-inpaint")[key] for key in ("image", "mask_image")}
    return same("sd", None, solver, {**arguments, "strength": 0.8}, {}, of("StableDiffusionInpaintPipeline"))


def callback(pipe, index, t, tensors):
    """Changes the latents after the second step."""
    return {"latents": 0.9 * tensors["latents"] + 0.05} if index == 1 else {}


def half(family="sd"):
    """bfloat16 pipelines: our distance from our own in float32, over that of diffusers' scheduler from its own."""
    pipe, ends = fresh(family), {}
    for dtype in (torch.float32, torch.bfloat16):
        parts = {
            key: deepcopy(part).to(dtype) if isinstance(part, torch.nn.Module) else part for key, part in pipe.components.items()
        }
        made = type(pipe)(**parts, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
        x = normal(1, 4, 8, 8).to(dtype)
        ends[dtype, "theirs"] = final(made, family, latents=x).float()
        ends[dtype, "ours"] = final(ours(made, "ddim"), family, latents=x).float()
    off = {who: relative(ends[torch.bfloat16, who], ends[torch.float32, who]) for who in ("theirs", "ours")}
    assert off["theirs"] > 1e-4  # it is half precision
    return off["ours"] / off["theirs"]


SDXL_STEPS = {"num_inference_steps": 10, "height": 16, "width": 16}


def in_two(solver=None, scheduler=EULER):
    """The last latents of SDXL as a base, which stops at 0.6 of the noise, and a refiner that goes on from there."""
    base, refiner = (
        made_with(scheduler, solver, pipe) for pipe in (fresh("sdxl"), of("StableDiffusionXLImg2ImgPipeline")("sdxl"))
    )
    arguments = arguments_of("sdxl", **SDXL_STEPS, denoising_end=0.6)
    first = base(**arguments, generator=torch.Generator().manual_seed(SEED)).images
    rest = {"image": first, "denoising_start": 0.6, "height": None, "width": None, "num_inference_steps": 10}
    return final(refiner, "sdxl", **rest)


def made_with(scheduler, solver, pipe):
    """The pipeline with this scheduler of diffusers, or with this solver in its place."""
    import diffusers

    pipe.scheduler = getattr(diffusers, scheduler)(**TABLE, steps_offset=1, timestep_spacing="leading")
    return ours(pipe, solver) if solver else pipe


def refined():
    """From diffusers, both in two."""
    return relative(in_two("euler"), in_two())


def parted(solver=None, scheduler=EULER):
    """A run in two from that in one, by the same scheduler."""
    return relative(in_two(solver, scheduler), final(made_with(scheduler, solver, fresh("sdxl")), "sdxl", **SDXL_STEPS))


def saved(solver, **settings):
    """A pipeline that is written and read again."""
    import tempfile

    from diffusers import StableDiffusionPipeline

    pipe = ours(fresh("sd"), solver, **settings)
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        again = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is DiffodeScheduler
    return relative(final(again, "sd"), final(pipe, "sd"))


def unchanged(first, then):
    """How far what a pipeline makes is from what it makes after `first`."""
    pipe = ours(fresh("sd"), "unipc3")
    before = final(pipe, "sd")
    first(pipe)
    return relative(final(then(pipe), "sd"), before)


def copied(pipe):
    pipe.scheduler = deepcopy(pipe.scheduler)
    return pipe


def preconditioned(scheduler, config, solver="euler", drive=None):
    """A loop as the pipelines of EDM's networks have it, around a tiny one."""
    import diffusers

    weights = normal(6, 6, seed=5) / 6

    def network(x, c_noise):
        return torch.tanh(x @ weights + float(c_noise))

    def images(scheduler):
        scheduler.set_timesteps(8)
        latents = normal(2, 6, seed=6) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            predicted = network(scheduler.scale_model_input(latents, t), t)
            latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
        return latents

    theirs = getattr(diffusers, scheduler)(**config)
    return relative(images(DiffodeScheduler.from_config(theirs, solver=solver)), images(theirs))


FLOW_FAMILIES = ("sd3", "flux", "wan", "ltx")
LISTED = {"clock": "pipeline"}
ALL, THEIRS, BEFORE = "all planned solvers", "diffusers", "before"
SLOW = [f"DPM++ 2M, {kind}" for kind in ("exponential_sigmas", "beta_sigmas", "lu_lambdas", "solver_type=heun")]
SLOW += ["LMS", "Euler ancestral", "DEIS 3", "DPM++ 3M", "PNDM, skip_prk_steps=False"]
SPACINGS = "DPM++ 2M, Karras, exponential, beta and Lu's spacing"
OF_EACH_KIND = ("unipc3", "dpmpp2m", "sde-dpmpp2m", "ddim", "heun", "heun-churn", "sa-solver", "rk:rk4", "dpm2m+unic")


def cells():
    """All of them, in the order of the table."""
    found = []

    def add(family, feature, solver, against, measure, *arguments, bound=1e-5, slow=False, row="", **keywords):
        found.append(Cell(family, feature, solver, against, lambda: measure(*arguments, **keywords), bound, slow, row))

    for solver in PLANNED:
        add("sd", ALL, solver, "diffode's loop, with its network", direct, solver, slow=solver not in OF_EACH_KIND)
    for family in FAMILIES:
        for solver in PLANNED:
            slow = family != "sd" and solver not in OF_EACH_KIND[:3]
            add(family, ALL, solver, LOOP, loop, family, solver, slow=slow, **({"offset": 1e-3} if slow else {}))
    for family in FAMILIES:
        add(family, "unipc3", "unipc3", CAPTURED, on_captured, family, slow=family not in ("sd", "flux"))
    methods = [
        ("sd", "DDIM, leading", ("DDIMScheduler", SD), "ddim", {}),
        ("sd", "DDIM, leading, set_alpha_to_one=False", None, "ddim", {}),
        ("sd", "DDIM, trailing", ("DDIMScheduler", SD | {"timestep_spacing": "trailing"}), "ddim", {}),
        (
            "sd",
            "DDIM, v_prediction, rescale_betas_zero_snr, trailing",
            (
                "DDIMScheduler",
                SD | {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            ),
            "ddim",
            {},
        ),
        ("sd", "DDIM, sample", ("DDIMScheduler", SD | {"prediction_type": "sample"}), "ddim", {}),
        ("sd", "DDPM", ("DDPMScheduler", TABLE | {"clip_sample": False}), "ddpm", {}),
        ("sd", "DPM++ 2M", (DPM, TABLE), "dpmpp2m", {}),
        ("sd", "DPM++ 2M, solver_type=heun", (DPM, TABLE | {"solver_type": "heun"}), "dpmpp2m", {"variant": "taylor"}),
        ("sd", "DPM++ 2M, sigma_min", (DPM, TABLE | {"final_sigmas_type": "sigma_min"}), "dpmpp2m", {"lower_final": True}),
        ("sd", "DPM++ 3M", (DPM, TABLE | {"solver_order": 3}), "dpmpp3m-published", {"lower_final": True}),
        ("sd", "DPM++ 2M SDE", (DPM, TABLE | {"algorithm_type": "sde-dpmsolver++"}), "sde-dpmpp2m", {}),
        *(
            ("sd", f"DPM++ 2M, {kind}", (DPM, TABLE | {f"use_{kind}": True}), "dpmpp2m", LISTED)
            for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
        ),
        ("sd", "UniPC 2", (UNIPC, TABLE), "unipc2", {}),
        ("sd", "UniPC 3", (UNIPC, TABLE | {"solver_order": 3}), "unipc3", {"lower_final": True}),
        (
            "sd",
            "UniPC 2, bh1, sigma_min",
            (UNIPC, TABLE | {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
            "unipc2",
            {"variant": "bh1", "lower_final": True},
        ),
        ("sd", "DEIS 2", ("DEISMultistepScheduler", TABLE), "deis-lambda", {"order": 2, "lower_final": True}),
        ("sd", "DEIS 3", ("DEISMultistepScheduler", TABLE | {"solver_order": 3}), "deis-lambda", {"lower_final": True}),
        ("sd", "Euler, leading", (EULER, TABLE | {"timestep_spacing": "leading", "steps_offset": 1}), "euler", {}),
        ("sd", "Euler, linspace", (EULER, TABLE), "euler", LISTED),
        ("sd", "Euler, karras_sigmas", (EULER, TABLE | {"use_karras_sigmas": True}), "euler", {}),
        ("sd", "Euler ancestral", ("EulerAncestralDiscreteScheduler", TABLE), "euler-ancestral", LISTED),
        ("sd", "Heun", ("HeunDiscreteScheduler", TABLE), "heun", LISTED),
        ("sd", "KDPM2", ("KDPM2DiscreteScheduler", TABLE), "kdpm2", {}),
        ("sd", "LMS", ("LMSDiscreteScheduler", TABLE), "lms", LISTED),
        ("sd", "PNDM, skip_prk_steps=False", ("PNDMScheduler", TABLE | {"steps_offset": 1}), "pndm", {}),
        (
            "sd",
            "CogVideoX's DDIM",
            ("CogVideoXDDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
            "ddim",
            {},
        ),
        ("sdxl", "Euler, leading", None, "euler", {}),
        ("pixart", "DPM++ 2M", None, "dpmpp2m", {}),
        ("dit", "DDIM", None, "ddim", {}),
        ("sd3", "flow matching, shift", None, "euler", {}),
        ("flux", "flow matching, mu", None, "euler", {}),
        ("ltx", "flow matching, mu, shift_terminal", None, "euler", {}),
        ("wan", "UniPC 2, flow_shift", None, "unipc2", LISTED),
        (
            "wan",
            "DPM++ 2M, flow_shift",
            (DPM, {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
            "dpmpp2m",
            LISTED,
        ),
        ("ddpm", "DDPM, clip_sample", None, "ddpm", {}),
        (
            "ddpm",
            "DDPM, thresholding",
            ("DDPMScheduler", {"thresholding": True, "sample_max_value": 3.0, "clip_sample": False}),
            "ddpm",
            {},
        ),
        ("ddim", "DDIM", None, "ddim", {}),
    ]
    for family, feature, scheduler, solver, settings in methods:
        steps = {"num_inference_steps": 10 if solver in ("pndm", "ddpm") else 5}
        slow, row = (
            feature in SLOW,
            SPACINGS if feature.startswith("DPM++ 2M, ") and family == "sd" and settings is LISTED else "",
        )
        add(family, feature, solver, THEIRS, same, family, scheduler, solver, steps, settings, slow=slow, row=row)
    for family, pipeline, scheduler, solver, settings in (
        ("sd", "StableDiffusionImg2ImgPipeline", None, "ddim", {}),
        ("sd", "StableDiffusionImg2ImgPipeline", ("HeunDiscreteScheduler", TABLE), "heun", LISTED),
        ("sd", "StableDiffusionImg2ImgPipeline", (UNIPC, TABLE), "unipc2", {}),
        ("sd3", "StableDiffusion3Img2ImgPipeline", None, "euler", {}),
    ):
        for strength in (0.3, 0.6, 1.0):
            add(
                family,
                f"img2img, strength {strength}",
                solver,
                THEIRS,
                img2img,
                family,
                pipeline,
                scheduler,
                solver,
                strength,
                slow=solver in ("heun", "unipc2") and strength != 0.6,
                row="img2img, strengths 0.3, 0.6 and 1.0",
                **settings,
            )
    for family, feature, measure, arguments in (
        ("sd", "inpaint, by masks", inpainted, {}),
        ("sd-inpaint", "inpaint, nine channels", same, {}),
        ("sd-controlnet", "ControlNet", same, {}),
        ("sd", "callback that changes latents", same, {"callback_on_step_end": callback}),
        ("sd", "guidance_rescale", same, {"guidance_rescale": 0.7}),
        ("sd", "a batch of 3", same, {"num_images_per_prompt": 3}),
    ):
        given = () if measure is inpainted else (family, None, "ddim", arguments)
        add(family, feature, "ddim", THEIRS, measure, *given)
    add(
        "sd3",
        "callback that changes latents",
        "euler",
        THEIRS,
        same,
        "sd3",
        None,
        "euler",
        {"callback_on_step_end": callback},
    )
    sigmas = {"num_inference_steps": None, "sigmas": [14.6, 6.5, 2.7, 1.4, 0.65, 0.15, 0.0]}
    flow = {"num_inference_steps": None, "sigmas": [1.0, 0.7, 0.4, 0.1]}
    aligned = {"num_inference_steps": None, "timesteps": AYS}
    add("sd", "AYS timesteps", "dpmpp2m", THEIRS, same, "sd", (DPM, TABLE), "dpmpp2m", aligned)
    add("sd", "sigmas", "euler", THEIRS, same, "sd", (EULER, TABLE), "euler", sigmas, LISTED)
    add("sd3", "sigmas", "euler", THEIRS, same, "sd3", None, "euler", flow)
    add("sdxl", "denoising_end and denoising_start", "euler", THEIRS, refined)
    for scheduler in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        solver = "euler" if scheduler == "EDMEulerScheduler" else "dpmpp2m"
        for kind in ("karras", "exponential"):
            config = {"sigma_schedule": kind, "sigma_data": 1.0}
            row = f"{scheduler}, karras and exponential"
            add("EDM", f"{scheduler}, {kind}", solver, THEIRS, preconditioned, scheduler, config, solver, row=row)
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    svd = continuous | {"sigma_min": 0.002, "sigma_max": 700.0}
    add("EDM", "Stable Video Diffusion's Euler", "euler", THEIRS, preconditioned, EULER, svd)
    add("sd", "saved and loaded", "unipc3", BEFORE, saved, "unipc3", grid="time", bound=1e-9)
    add("sd", "deepcopy", "unipc3", BEFORE, unchanged, lambda pipe: None, copied, bound=1e-9)
    add(
        "sd",
        "used again, after another batch",
        "unipc3",
        BEFORE,
        unchanged,
        lambda pipe: final(pipe, "sd", num_images_per_prompt=2),
        lambda pipe: pipe,
        bound=1e-9,
    )
    return tuple(found)


ZERO_SNR = {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
PIPELINE = '`clock="pipeline"` agrees'
DIFFERENCES = {  # where ours differs from diffusers: family, its class and configuration, our solver, steps; and why
    "UniPC of a flow": ("wan", None, "unipc2", 5, f"it rounds the network's clock down to a whole number; {PIPELINE}"),
    "DPM++ 2M, `use_karras_sigmas`": ("sd", (DPM, TABLE | {"use_karras_sigmas": True}), "dpmpp2m", 5, f"so does it; {PIPELINE}"),
    'DPM++ 2M, `final_sigmas_type="sigma_min"`, below 15 steps': (
        "sd",
        (DPM, TABLE | {"final_sigmas_type": "sigma_min"}),
        "dpmpp2m",
        5,
        "its last step is of order 1, ours of order 2 unless `lower_final=True`; a step to σ = 0 is of order 1 in both",
    ),
    "UniPC 3": (
        "sd",
        (UNIPC, TABLE | {"solver_order": 3}),
        "unipc3",
        5,
        "it goes down to order 1 in the last two steps; `lower_final=True` does so",
    ),
    "DPM++ 3M": ("sd", (DPM, TABLE | {"solver_order": 3}), "dpmpp3m-published", 5, "so does it; `lower_final=True` does so"),
    "DPM++ 2M, zero terminal SNR": (
        "sd",
        (DPM, TABLE | ZERO_SNR),
        "dpmpp2m",
        5,
        f"it replaces ᾱ = 0 by 2^−24 with label 999; that noise is at 998.4; {PIPELINE}",
    ),
    "DDIM, `clip_sample`": (
        "sd",
        ("DDIMScheduler", SD | {"clip_sample": True}),
        "ddim",
        5,
        "it clips x̂0 and keeps the ε of the unclipped one, unless `use_clipped_model_output=True`; here ε follows",
    ),
    "DDIM, `linspace`": (
        "sd",
        ("DDIMScheduler", SD | {"timestep_spacing": "linspace"}),
        "ddim",
        5,
        "it steps to t − T // n, which is not the next label of its list; here it is",
    ),
    "DDIM, `trailing`, n that does not divide T": (
        "sd",
        ("DDIMScheduler", SD | {"timestep_spacing": "trailing"}),
        "ddim",
        7,
        "the same",
    ),
    "PNDM, `skip_prk_steps=True`": (
        "sd",
        ("PNDMScheduler", TABLE | {"steps_offset": 1, "skip_prk_steps": True}),
        "ipndm",
        10,
        "it begins with a step to the second label and back, that is in no paper; `ipndm` begins with lower orders",
    ),
}
IN_TWO = {  # the arguments of `parted`
    "diffusers, Euler": (),
    "diffusers, UniPC 2": (None, UNIPC),
    "diffusers, Heun": (None, "HeunDiscreteScheduler"),
    **{f"`{solver}`": (solver,) for solver in ("euler", "dpmpp2m", "unipc2", "unipc3", "heun", "dpmpp2s")},
}


def differing(setting):
    """The row of a setting: where it is measured, how far ours is from diffusers, and why."""
    family, scheduler, solver, steps, why = DIFFERENCES[setting]
    off = same(family, scheduler, solver, {"num_inference_steps": steps})
    return setting, f"`{solver}` on {family}, {steps} steps", f"{off:.0e}", why


def measured(chosen):
    """The worst of the cells of each name."""
    found = {}
    for cell in chosen:
        found[cell.name] = max(found.get(cell.name, 0.0), cell.measure())
    return found


def table(titles, rows):
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)) + "\n"


def listed(block="agreement"):
    """The rows of a table of the document, as lists of what their columns hold."""
    text = DOCUMENT.read_text(encoding="utf-8").split(BEGIN.format(block))[1].split(END.format(block))[0]
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]


if __name__ == "__main__":
    agreed = [(*name, f"{value:.0e}") for name, value in measured(cells()).items()]
    tables = {
        "agreement": table(("family", "feature", "compared with", "relative difference"), agreed),
        "differences": table(("setting", "measured with", "difference", "reason"), map(differing, DIFFERENCES)),
        "in two": table(("scheduler", "difference"), [(name, f"{parted(*how):.0e}") for name, how in IN_TWO.items()]),
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    for block, rows in tables.items():
        before, rest = text.split(BEGIN.format(block))
        text = before + BEGIN.format(block) + rows + END.format(block) + rest.split(END.format(block))[1]
    DOCUMENT.write_text(text, encoding="utf-8")
