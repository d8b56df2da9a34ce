"""What a DiffodeScheduler is told beside the configuration of the scheduler that it replaces, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from diffode import grid as grids
from diffode.checks import choice, flag, instance, number, numbers, text, unknown, wrong
from diffode.errors import InputError, shown
from diffode.reading import reading
from solvers.hosts import replaced
from solvers.options import check as checked_options
from solvers.plan import Plan
from solvers.registry import find, is_user_defined
from solvers.solver import Solver, ready

PIPELINE = "pipeline"
CLOCKS = ("exact", PIPELINE)
DEFAULTS: dict[str, Any] = {
    "solver": "unipc3",
    "grid": PIPELINE,
    "clock": "exact",
    "denoise": False,
    "offset": 0.0,
    "options": {},
    "plan": None,
    "replaced": "",
}
SETTINGS = ("grid", "clock", "denoise", "offset", "replaced")  # what from_config takes by these names
METHOD_KEYS = ("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final", "stochastic_sampling")
GRID_KEYS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "logsnr"}  # of classes, and the grids of diffode
WITH_KEYS = (
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
STEP_DEFAULTS = {"eta": 0.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}  # where they change no step
STEP_INSTEAD = {
    "eta": "give it as an option of the solver, as from_config(..., solver='ddim', eta=1.0)",
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise"), "take the solver heun-churn, with s_churn as its option"),
}


def read(config: Any, given: Mapping[str, Any]) -> tuple[Solver, dict[str, Any]]:
    """The solver, and the whole configuration: that of the replaced class, as `given` changes it, beside the settings.

    See DiffodeScheduler.from_config. What is given comes before what the configuration says; its options are of its own solver.
    """
    held, name = replaced.configuration_of(config)
    own = {key: held.pop(key, default) for key, default in DEFAULTS.items()}
    if name not in ("", "DiffodeScheduler"):
        own["replaced"] = name
    if given.get("solver") is None:
        solver = require_plan(stored_solver(own["solver"], own["plan"], trusted=not isinstance(config, Mapping)))
    else:
        solver, own["options"] = require_plan(find(given["solver"])), {}
    plan = solver.fixed_plan
    own |= {"solver": solver.name, "plan": plan and plan.to_text()} | {key: given[key] for key in SETTINGS if key in given}
    own = checked_settings(own)
    keys = replaced.keys_of(own["replaced"]) if own["replaced"] or own["grid"] == PIPELINE else set()
    rest = {key: value for key, value in given.items() if key not in (*SETTINGS, "solver")}
    changes = {key: value for key, value in rest.items() if key in keys and key not in {*solver.options, *METHOD_KEYS}}
    options = {key: value for key, value in rest.items() if key not in changes}
    refuse_keys_of_others(options.keys() - solver.options.keys(), own["replaced"])
    own["options"] = checked_options(solver.name, solver.options, {**own["options"], **options})
    return solver, {**held, **changes, **own}


def refuse_keys_of_others(unknown: Iterable[str], name: str) -> None:
    """InputError for keys of other classes' configurations than that of `name`."""
    for key in sorted(unknown):
        if key in METHOD_KEYS:
            raise InputError(f'`{key}` is of the method of another scheduler: here `solver` says the method, as solver="dpmpp2m"')
        if other := next((other for other in WITH_KEYS if key in replaced.keys_of(other)), None):
            grid = f'grid="{GRID_KEYS[key]}", or ' if key in GRID_KEYS else ""
            raise InputError(f'{name or "the configuration"} has no key `{key}`: give {grid}replaced="{other}", which has it')


def refuse_step_arguments(given: Mapping[str, Any], following: float | None) -> None:
    """InputError for an argument of another scheduler's `step` which could change it. following: the next timestep, which some
    pipelines give as `prev_timestep`."""
    for name, value in given.items():
        default = following if name == "prev_timestep" else STEP_DEFAULTS.get(name)
        one = isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        same = value is None or (one and default is not None and float(value) == default)
        if not same and name != "use_clipped_model_output":  # ε follows from the clipped x̂0 anyway
            instead = STEP_INSTEAD.get(name, "leave it out, or take the pipeline's own scheduler")
            raise InputError(f"`{name}` is of another scheduler's step: {instead}")


def check_generator(given: Any) -> None:
    """InputError for what draws no noise."""
    each = given if isinstance(given, list | tuple) and given else [given]
    if given is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise wrong("generator", "a torch.Generator, a list of them, one per sample, or None", given)


def require_plan(solver: Solver) -> Solver:
    """The solver itself; InputError for one whose evaluations are not known before it runs."""
    if not solver.has_plan:
        raise InputError(
            f"{solver.name} has no plan, and a pipeline calls its network at times that are known before: take a planned solver, "
            "as unipc3, dpmpp2m or ddim"
        )
    return ready(solver.fixed_plan, solver.fixed_plan.solver) if solver.fixed_plan else solver


def stored_solver(name: Any, plan: Any, *, trusted: bool) -> Solver:
    """The solver of a configuration: its plan, if it holds one, or a name. trusted: whether it is that of a scheduler made here,
    not of a file, whose MODULE:NAME is not imported and whose FILE.json is not opened."""
    if plan is not None:
        with reading("the plan of the scheduler's configuration", "plan", "what Plan.to_text writes"):
            made = Plan.from_text(text("plan", plan))
        return ready(made, made.solver)
    if not trusted and (is_user_defined(text("solver", name)) or name.endswith(".json")):
        raise InputError(
            f"the configuration names the solver {shown(name)}, and nothing that a file names is imported or opened: give it "
            f"again, as DiffodeScheduler.from_config(config, solver={shown(name)})"
        )
    return find(name)


def checked_settings(own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, each of the type that is meant; InputError for another value."""
    grid = own["grid"]
    if not isinstance(grid, str):
        grid = numbers("grid", grid, grids.MOST_STEPS + 1, least=2, kind="a name, or a list of").tolist()
    elif grid not in (known := [PIPELINE, *grids.GRIDS, *grids.TAUS]):
        raise unknown("grid", grid, [*known, "a list of increasing λ"])
    if choice("clock", own["clock"], CLOCKS) == PIPELINE and (grid != PIPELINE or own["plan"]):
        raise InputError('clock="pipeline" is of the spacing of the replaced scheduler: it goes with grid="pipeline" only')
    instance("options", own["options"], Mapping, "a dict of the solver's options")
    denoise, offset = flag("denoise", own["denoise"]), number("offset", own["offset"], 0, 0.5)
    return {**own, "grid": grid, "denoise": denoise, "offset": offset, "replaced": text("replaced", own["replaced"])}
