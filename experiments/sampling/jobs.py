"""A Job: all that decides the images of one output, and how one is made of what a user types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diffode.errors import InputError
from diffode.files import json_value
from diffode.models import pretrained
from diffode.schedules import make
from experiments.common import figures
from experiments.sampling.recipe import Recipe, flat
from solvers import Budget, Plan, Solver
from solvers.options import Options, parse
from solvers.registry import find, is_user_defined


@dataclass(frozen=True)
class Job:
    """What decides the output. labels: one a seed, or None; grid: the finite λ, to which `denoise` adds the step to +∞; options:
    the solver's own, infinities as text; plan: the SHA-256 of the table, for a solver whose name does not say it, a file or a
    module; trajectory: whether the states are kept.
    """

    model: str
    sha256: str
    solver: str
    grid: list[float]
    denoise: bool
    seeds: list[int]
    labels: list[int] | None
    batch: int
    recipe: Recipe = field(default_factory=Recipe)
    options: Options = field(default_factory=dict)
    plan: str | None = None
    trajectory: bool = False

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(flat(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def lams(self) -> list[float]:
        """The whole grid."""
        return [*self.grid, *[np.inf] * self.denoise]


def choose_labels(wanted: str | None, classes: tuple[str, ...], seeds: list[int]) -> list[int] | None:
    """A label for each seed: the wanted ones (numbers or names, comma-separated) in turn, by seed modulo their number, so an
    image's label does not depend on what else is sampled. All classes by default; None for "none" and for models without."""
    if wanted == "none" or not classes:
        if wanted not in (None, "none"):
            raise InputError(f"--label {wanted} was given to a model without labels")
        return None
    known = {name.lower(): label for label, name in enumerate(classes)} | {str(label): label for label in range(len(classes))}
    labels = []
    for name in (",".join(classes) if wanted is None else wanted).split(","):
        if name.strip().lower() not in known:
            raise InputError(
                f"label {name.strip()!r} is not known to this model: its labels are "
                + ", ".join(f"{i} {c}" for i, c in enumerate(classes))
            )
        labels.append(known[name.strip().lower()])
    return [labels[seed % len(labels)] for seed in seeds]


def choose_options(solver: str, typed: Sequence[tuple[str, Any]]) -> Options:
    """The options of a solver from pairs (name, value), values as text or of their type; InputError for one that is not its own,
    not of its type, or given twice."""
    entry, names = find(solver), [name for name, _ in typed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the option {twice[0]} of {entry.name} is given twice: leave one out")
    return parse(entry.name, entry.options, {name: str(value) for name, value in typed})


def make_plan(
    solver: str,
    schedule: str | None = None,
    budget: Budget | None = None,
    *,
    options: Options | None = None,
) -> Plan:
    """The plan of a solver, of 10 steps on ddpm_linear unless told otherwise; that of a plan's file as it is.

    InputError for solvers without a plan, and for a file of which anything else is asked.
    """
    entry, budget = find(solver), budget or Budget()
    if entry.fixed_plan is not None:
        if options or schedule is not None or budget != Budget():
            raise InputError(f"{solver} is a plan with its own schedule, grid and numbers: leave all other options out")
        return entry.fixed_plan
    noise_schedule = make(schedule or "ddpm_linear")
    if not entry.has_plan:
        return entry.plan([], noise_schedule)  # which says why there is none
    if budget.nfe is None and budget.steps is None and budget.values is None:
        budget = replace(budget, steps=10)
    prepared = entry.prepare(budget, noise_schedule, **(options or {}))
    assert prepared.plan is not None
    return prepared.plan


def make_job(
    loaded: pretrained.Pretrained,
    model: str,
    solver: str,
    budget: Budget,
    *,
    options: Options | None = None,
    seeds: list[int],
    labels: list[int] | None,
    batch: int,
    recipe: Recipe | None = None,
    trajectory: bool = False,
) -> Job:
    """A Job, with its grid chosen; InputError for a solver, budget or option that cannot be."""
    recipe = recipe or Recipe()
    recipe.require_labels(labels)
    if trajectory and len(seeds) > batch:
        raise InputError(
            f"--trajectory keeps every state of one batch, and {len(seeds)} images are more than --batch {batch}: "
            "ask for fewer images, or raise --batch"
        )
    entry, schedule = find(solver), loaded.model.schedule
    open_ended = entry.chooses_steps and "trajectory" in entry.supported_hooks and budget.steps is None and budget.values is None
    if trajectory and open_ended:
        # its own steps are not known: the states are those at equal steps of the grid
        budget = replace(budget, steps=figures.MOST_STATES - 1)
    prepared = entry.prepare(budget, schedule, labels_only=loaded.model.clock == "label", **(options or {}))
    lams = prepared.grid
    finite = [float(lam) for lam in lams if lam < np.inf]
    named = not is_user_defined(solver) and entry.fixed_plan is None
    return Job(
        model=model,
        sha256=loaded.sha256,
        solver=solver,
        grid=finite,
        denoise=len(finite) < len(lams),
        seeds=seeds,
        labels=labels,
        batch=batch,
        recipe=recipe,
        options={name: json_value(value) for name, value in prepared.options.items()},
        plan=None if named or prepared.plan is None else digest(prepared.plan),
        trajectory=trajectory,
    )


def digest(plan: Plan) -> str:
    """The SHA-256 of what a plan says."""
    rows = [(stage.lam, stage.draw, stage.evaluate, stage.commit) for stage in plan.stages]
    said = plan.solver, plan.path.name, plan.prediction, plan.exact_marginals, rows, plan.matrix().tolist()
    return hashlib.sha256(repr(said).encode()).hexdigest()


def options_of(entry: Solver, job: Job) -> Options:
    """The job's options as the solver takes them."""
    return parse(entry.name, entry.options, {name: str(value) for name, value in job.options.items()})
