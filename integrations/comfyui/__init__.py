"""diffode's solvers in ComfyUI: the nodes "diffode sampler" and "diffode grid", and samplers of KSampler named diffode_*.

The folder is a custom node package; see README.md. What is computed is in diffode; here it is given ComfyUI's names.
"""

from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch

try:
    from diffode import ALIASES, InputError, Plan, Schedule, checks, schedules
    from diffode import grid as grids
    from diffode.kdiffusion import path_of, sampler, sigmas_of
    from solvers.options import parse
    from solvers.registry import all_names, find
except ImportError as error:
    raise ImportError(
        "these nodes need diffode in the Python that runs ComfyUI (pip install PATH_TO_DIFFODE), no other package named solvers, "
        f"and a folder that is not named diffode itself, as comfyui-diffode: {error}"
    ) from error

FOLDER = Path(__file__).parent / "plans"
NONE = "none"
SOLVERS = [name for name in (*all_names(), *ALIASES) if find(name).accepts_denoise]  # the step to σ = 0
REGISTERED = (
    *("ddim", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "deis-rho", "ipndm", "dpm3", "heun"),
    *("euler-ancestral", "sde-dpmpp2m", "sde-dpmpp3m", "sa-solver"),
)
# From σ = 1 of a flow, λ = −∞, where logsnr and karras cannot begin: as ComfyUI has it, in the time before its shift.
OFFSET = 1e-4


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
        which = "`python -m diffode solvers` lists them, with their options; docs/solvers.md of diffode says what each does"
        solver = (SOLVERS, {"default": "unipc3", "tooltip": f"Of no effect with a plan. {which}"})
        options = ("STRING", {"default": "", "tooltip": f"of the solver, as eta=0.5, start=single. {which}"})
        plan = (plans(), {"tooltip": "a file of the folder plans beside these nodes, in the place of solver and options"})
        return {"required": {"solver": solver, "options": options, "plan": plan}}

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
        inputs = {"model": ("MODEL",), "grid": (list(grids.GRIDS),), "steps": steps, "denoise": denoise}
        plan = (plans(), {"tooltip": "whose own grid is given: the other inputs are then of no effect"})
        return {"required": {**inputs, "plan": plan}}

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
        total = checks.whole("steps / denoise", steps / denoise // 1, 1, grids.MOST_STEPS)
        lams = grids.make(grid, schedule_of(sampling, grid), total, denoise=True)
        return (sigmas_of(lams[-1 - steps :], path_of(sampling)),)


for made in map(sampler, REGISTERED):
    setattr(comfy.k_diffusion.sampling, made.__name__, made)
    if (known := made.__name__.removeprefix("sample_")) not in comfy.samplers.KSampler.SAMPLERS:
        comfy.samplers.KSampler.SAMPLERS.append(known)

NODE_CLASS_MAPPINGS = {"DiffodeSampler": DiffodeSampler, "DiffodeGrid": DiffodeGrid}
NODE_DISPLAY_NAME_MAPPINGS = {"DiffodeSampler": "diffode sampler", "DiffodeGrid": "diffode grid"}
