"""diffode's solvers in ComfyUI: the nodes "diffode sampler" and "diffode grid", and samplers of KSampler named diffode_*.

The folder is a custom node package; see README.md. What is computed is in diffode; here it is given ComfyUI's names.
"""

from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch

from diffode import ALIASES, InputError, Plan, Schedule, schedules
from diffode import grid as grids
from diffode.kdiffusion import path_of, sampler, sigmas_of
from solvers.options import parse
from solvers.registry import all_names, find

FOLDER = Path(__file__).parent / "plans"
NONE = "none"
SOLVERS = [name for name in (*all_names(), *ALIASES) if find(name).accepts_denoise]  # the step to σ = 0
REGISTERED = (
    *("ddim", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "deis-rho", "ipndm", "dpm3", "heun"),
    *("euler-ancestral", "sde-dpmpp2m", "sde-dpmpp3m", "sa-solver"),
)
OFFSET = (
    1e-4  # from σ = 1 of a flow, λ = −∞, where logsnr and karras cannot begin: as ComfyUI has it, in the time before its shift
)


def plans() -> list[str]:
    """The files in the folder `plans`, by name."""
    return [NONE, *sorted(path.name for path in FOLDER.glob("*.json"))]


def plan_of(name: str) -> Plan:
    """The plan of that name; InputError for a name that is no file of the folder."""
    if name not in plans():
        raise InputError(f"there is no plan {name!r} in {FOLDER}: put it there, and reload the page")
    return Plan.load(FOLDER / name)


def digest(plan: str) -> str:
    """What tells ComfyUI that a plan's file has changed."""
    return "" if plan == NONE else plan_of(plan).to_text()


def options_of(solver: str, text: str) -> dict[str, Any]:
    """The options of a solver from the text name=value, ...; InputError for one that it has not, or that is none."""
    pairs = [part.split("=") for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"the options of {solver} are written name=value, with commas between them, not {text!r}")
    return parse(solver, find(solver).options, {name.strip(): value.strip() for name, value in pairs})


def schedule_of(model_sampling: Any, spacing: str) -> Schedule:
    """Where a model's grids begin and end, and in which time they are spaced. Of a flow `time` and `quadratic` are whole, from
    σ = 1; others need finite λ. Its shift is s in σ = s u/(1 + (s − 1) u), read off at u = 1/2."""
    table = model_sampling.sigmas.cpu().double()
    if path_of(model_sampling) == "ve":
        return schedules.from_sigmas(table, "ve")
    middle = float(table[len(table) // 2 - 1])
    ends = (0.0, 1.0) if spacing in ("time", "quadratic") else (1 / len(table), 1 - OFFSET)
    return schedules.flow(*ends, shift=middle / (1 - middle))


class DiffodeSampler:
    """A solver, with its options, or a plan: for SamplerCustom and SamplerCustomAdvanced."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = (
        "A solver of diffode. Options are written name=value, as eta=0.5, start=single; a plan takes the sigmas of its grid."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """The solvers, a text, and the plans."""
        options = ("STRING", {"default": "", "tooltip": "name=value, name=value"})
        return {"required": {"solver": (SOLVERS, {"default": "unipc3"}), "options": options, "plan": (plans(),)}}

    @classmethod
    def IS_CHANGED(cls, plan: str, **_: Any) -> str:  # noqa: N802
        """Whether the file has changed."""
        return digest(plan)

    def make(self, solver: str, options: str, plan: str) -> tuple[Any]:
        """SAMPLER; InputError for what is none."""
        if plan != NONE and options.strip():
            raise InputError(f"the plan {plan} is a table of numbers that has no options: leave {options.strip()!r} out")
        if plan != NONE:
            return (comfy.samplers.KSAMPLER(sampler(plan_of(plan))),)
        if solver not in SOLVERS:
            raise InputError(f"there is no solver {solver!r}: take one of the list")
        return (comfy.samplers.KSAMPLER(sampler(solver, **options_of(solver, options))),)


class DiffodeGrid:
    """The sigmas of a model on a grid of diffode, or those of a plan."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "A grid of diffode between the model's own sigmas, to 0; or that of a plan."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """The model, the names of the grids, and numbers."""
        steps = ("INT", {"default": 10, "min": 1, "max": 10000})
        denoise = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        inputs = {"model": ("MODEL",), "grid": ([*grids.GRIDS, *grids.TAUS],), "steps": steps, "denoise": denoise}
        return {"required": {**inputs, "plan": (plans(),)}}

    @classmethod
    def IS_CHANGED(cls, plan: str, **_: Any) -> str:  # noqa: N802
        """Whether the file has changed."""
        return digest(plan)

    def make(self, model: Any, grid: str, steps: int, denoise: float, plan: str) -> tuple[torch.Tensor]:
        """SIGMAS: so many steps; with denoise < 1 the last of int(steps/denoise), as ComfyUI's schedulers have it. InputError for
        a grid that the model does not have."""
        sampling = model.get_model_object("model_sampling")
        if plan != NONE:
            return (sigmas_of(plan_of(plan), path_of(sampling)),)
        if denoise <= 0:
            return (torch.empty(0),)
        lams = grids.make(grid, schedule_of(sampling, grid), int(steps / denoise), denoise=True)
        return (sigmas_of(lams[-1 - steps :], path_of(sampling)),)


for name in REGISTERED:
    known = f"diffode_{name.replace('-', '_')}"
    setattr(comfy.k_diffusion.sampling, f"sample_{known}", sampler(name))
    if known not in comfy.samplers.KSampler.SAMPLERS:
        comfy.samplers.KSampler.SAMPLERS.append(known)

NODE_CLASS_MAPPINGS = {"DiffodeSampler": DiffodeSampler, "DiffodeGrid": DiffodeGrid}
NODE_DISPLAY_NAME_MAPPINGS = {"DiffodeSampler": "diffode sampler", "DiffodeGrid": "diffode grid"}
