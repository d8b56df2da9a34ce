"""What a DiffodeScheduler is told beside the configuration of the scheduler that it replaces, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffode import grid as grids
from diffode.checks import choice, flag, instance, number, numbers, text, unknown, wrong
from diffode.errors import InputError, shown
from diffode.reading import reading
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
SAID = ("grid", "clock", "denoise", "offset", "replaced")  # what from_config is told by these names
OF_OTHERS = {  # arguments of other schedulers' `step` that change what it does, and what is to be done instead
    "eta": "give it as an option of the solver, as from_config(..., solver='ddim', eta=1.0)",
    "s_churn": "take the solver heun-churn, with s_churn as its option",
    "variance_noise": "leave it out",
    "per_token_timesteps": "take the pipeline's own scheduler",
    "pred_original_sample": "take the pipeline's own scheduler",
}


def refuse_of_others(given: Mapping[str, Any]) -> None:
    """InputError for an argument of `step` that is not at its default."""
    for name in OF_OTHERS.keys() & given.keys():
        if given[name] is not None and not (isinstance(given[name], int | float) and given[name] == 0):
            raise InputError(f"`{name}` is of another scheduler's step: {OF_OTHERS[name]}")


def check_generator(given: Any) -> None:
    """InputError for what draws no noise."""
    each = given if isinstance(given, list | tuple) and given else [given]
    if given is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise wrong("generator", "a torch.Generator, a list of them, one per sample, or None", given)


def planned(solver: Solver) -> Solver:
    """The solver itself; InputError for one whose evaluations are not known before it runs."""
    if not solver.has_plan:
        raise InputError(
            f"{solver.name} has no plan, and a pipeline calls its network at times that are known before: take a planned solver, "
            "as unipc3, dpmpp2m or ddim"
        )
    return ready(solver.fixed_plan, solver.fixed_plan.solver) if solver.fixed_plan else solver


def stored(name: Any, plan: Any, *, trusted: bool) -> Solver:
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


def checked(own: Mapping[str, Any]) -> dict[str, Any]:
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
