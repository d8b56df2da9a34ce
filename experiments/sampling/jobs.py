"""A Job: all that decides the images of one output. A PreparedJob: a job with the model and the solver that it is run with.

What a user types becomes a PreparedJob once: the solver is found, its options are read, and its budget is settled; the plan that
this makes is handed down to every batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diffode.errors import InputError, one_line, shown
from diffode.files import json_value
from diffode.images.drawings import are_images
from diffode.models import pretrained
from diffode.schedules import make
from experiments.common import figures
from experiments.sampling.init_images import Init
from experiments.sampling.recipe import Recipe, flat
from experiments.sampling.source import Source
from solvers import Budget, Plan, Prepared, Solver
from solvers.options import Options, parse
from solvers.plan import value
from solvers.registry import find, is_user_defined
from solvers.starts import check_noise

LATER = {"floats": False, "init": None, "noise": "seeded"}  # fields of a job that older cards do not have
PLAN_STEPS = 10  # of a plan that is printed, if nothing else is asked for


@dataclass(frozen=True)
class Job:
    """What decides the output.

    labels: one per seed, or None. grid: the λ, to which `denoise` adds the step to +∞. options: the solver's own. In both,
    infinities are text, since JSON has none. plan: the SHA-256 of the table, for a solver whose name does not say it, a file or
    a module. trajectory: whether the states are kept. floats: whether x itself is written, not images made of it. init: the
    SHA-256 of the images that the run begins with, noised to the first λ of the grid. noise: as `sample` takes it.
    """

    source: Source
    sha256: str
    solver: str
    grid: list[float | str]
    denoise: bool
    seeds: list[int]
    labels: list[int] | None
    batch: int
    recipe: Recipe = field(default_factory=Recipe)
    options: Options = field(default_factory=dict)
    plan: str | None = None
    trajectory: bool = False
    floats: bool = False
    init: str | None = None
    noise: str = "seeded"

    def as_json(self) -> dict[str, Any]:
        """The fields by their names, those of the recipe among them; those of LATER only where they are not as they were."""
        return {name: value for name, value in flat(self).items() if name not in LATER or value != LATER[name]}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def count(self) -> str:
        """How many, in words."""
        return f"{len(self.seeds)} {self.unit}{'s' * (len(self.seeds) > 1)}"

    @property
    def unit(self) -> str:
        """What is drawn, in a word."""
        return "sample" if self.floats else "image"

    @property
    def lams(self) -> list[float]:
        """The whole grid."""
        return [*map(float, self.grid), *[np.inf] * self.denoise]


@dataclass(frozen=True)
class PreparedJob:
    """A job, the model as it was loaded, the solver with its budget settled, and the images that it begins with, if any."""

    job: Job
    loaded: pretrained.Pretrained
    prepared: Prepared
    init: Init | None = None

    def start(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What `sample` is given to begin the samples of these seeds with."""
        if self.init is None:
            return {"shape": (len(seeds), *self.loaded.image)}
        return {"x": self.init.of(seeds).to(self.job.recipe.device, self.job.recipe.state_dtype)}


def prepare_job(
    loaded: pretrained.Pretrained,
    source: Source | str,
    solver: str,
    budget: Budget,
    *,
    options: Iterable[tuple[str, Any]] = (),
    seeds: list[int],
    labels: list[int] | None,
    batch: int,
    recipe: Recipe | None = None,
    trajectory: bool = False,
    floats: bool = False,
    init: Init | None = None,
    noise: str = "seeded",
) -> PreparedJob:
    """The job that these make, prepared. source: also the name of a model. solver: its name. options: of the solver,
    (name, value), see parse_options. floats: write x itself; so is what is no image, whether asked or not. init: the images
    that a budget with `strength` or `from_lam` begins with.

    InputError for a solver, budget, option or recipe that cannot be.
    """
    recipe, found = recipe or Recipe(), find(solver)
    recipe.check(loaded.model, labels)
    if budget.noised != (init is not None):
        raise InputError("`init` is what to begin with, and `strength`, or `from_lam`, how much of it is kept: give both")
    if trajectory:
        budget = _budget_of_trajectory(found, budget, len(seeds), batch)
    labels_only = loaded.model.clock == "label"
    prepared = found.prepare(budget, loaded.model.schedule, labels_only=labels_only, **parse_options(found, options))
    check_noise(noise, prepared)
    lams = prepared.grid.tolist()
    named = not is_user_defined(solver) and found.fixed_plan is None
    job = Job(
        source=Source.of(source),
        sha256=loaded.sha256,
        solver=solver,
        grid=[json_value(lam) for lam in lams if lam < np.inf],
        denoise=np.inf in lams,
        seeds=seeds,
        labels=labels,
        batch=batch,
        recipe=recipe,
        options={name: json_value(value) for name, value in prepared.options.items()},
        plan=None if named or prepared.plan is None else digest(prepared.plan),
        trajectory=trajectory,
        floats=floats or not (loaded.model.decode or are_images(loaded.image)),
        init=None if init is None else init.sha256,
        noise=noise,
    )
    return PreparedJob(job, loaded, prepared, init)


def _budget_of_trajectory(solver: Solver, budget: Budget, images: int, batch: int) -> Budget:
    """The budget, with steps for the states of a solver whose own are not known; InputError for more than one batch."""
    if images > batch:
        raise InputError(
            f"trajectory=True keeps every state of one batch, and {images} images are more than batch={batch}: "
            "ask for fewer images, or raise `batch`"
        )
    open_ended = solver.chooses_steps and budget.steps is None and budget.values is None
    return replace(budget, steps=figures.MOST_STATES - 1) if open_ended and solver.supported_hooks else budget


def restore(job: Job, loaded: pretrained.Pretrained, solver: Solver | None = None, init: Init | None = None) -> PreparedJob:
    """A job that a card holds, prepared again; InputError if the solver of that name has another plan by now.

    solver: that of a job which names a module or a plan's file, since a card is data, and nothing that it names is imported or
    opened. init: the images that it begins with, if any; InputError for others.
    """
    if solver is None and (is_user_defined(job.solver) or job.solver.endswith(".json")):
        raise InputError(
            f"{shown(job.solver)} of a card is neither imported nor opened: give `solver`, which `find` returns for it"
        )
    solver = solver or find(job.solver)
    if (None if init is None else init.sha256) != job.init:
        begins = f"images of SHA-256 {job.init[:12]}...: give these as `init`" if job.init else "noise: leave `init` out"
        raise InputError(f"the job begins with {begins}")
    prepared = solver.on(job.lams, loaded.model.schedule, **parse_options(solver, job.options.items()))
    if job.plan is not None and (prepared.plan is None or job.plan != digest(prepared.plan)):
        raise InputError(f"{job.solver} is not the plan that it was when this job was made: bring it back, or make another job")
    return PreparedJob(job, loaded, replace(prepared, noised=init is not None), init)


def make_plan(
    solver: str, schedule: str | None = None, budget: Budget | None = None, *, options: Sequence[tuple[str, Any]] = ()
) -> Plan:
    """The plan of a solver, by default of 10 steps on ddpm_linear; that of a plan's file as it is.

    InputError for solvers without a plan, and for a file of which anything else is asked.
    """
    found, budget = find(solver), budget or Budget()
    values = parse_options(found, options)
    if found.fixed_plan is not None:
        if schedule is not None or budget != Budget():
            raise InputError(f"{solver} is a plan with its own schedule, grid and numbers: leave all other options out")
        return found.fixed_plan
    noise_schedule = make("ddpm_linear" if schedule is None else schedule)
    if not found.has_plan:
        return found.plan([], noise_schedule)  # which says why there is none
    if budget.nfe is None and budget.steps is None and budget.values is None:
        budget = replace(budget, steps=PLAN_STEPS)
    plan = found.prepare(budget, noise_schedule, **values).plan
    assert plan is not None
    return plan


def parse_options(solver: Solver, pairs: Iterable[tuple[str, Any]]) -> Options:
    """The options of a solver from pairs (name, value), values as text or of their type.

    InputError for one that is not its own, not of its type, or given twice.
    """
    pairs = list(pairs)
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the option {twice[0]} of {solver.name} is given twice: leave one out")
    return parse(solver.name, solver.options, {name: str(value) for name, value in pairs})


def choose_labels(wanted: str | None, classes: tuple[str, ...], seeds: list[int]) -> list[int] | None:
    """A label for each seed: the wanted ones (numbers or names, comma-separated) in turn, by seed modulo their number, so an
    image's label does not depend on what else is sampled. All classes by default; None for "none" and for models without."""
    if wanted == "none" or not classes:
        if wanted not in (None, "none"):
            raise InputError(f'label="{wanted}" was given to a model without labels')
        return None
    if wanted is None:
        return [seed % len(classes) for seed in seeds]
    known = {name.lower(): label for label, name in enumerate(classes)} | {str(label): label for label in range(len(classes))}
    labels = []
    for name in wanted.split(","):
        if name.strip().lower() not in known:
            raise InputError(
                f"label {shown(name.strip())} is not known to this model: its labels are "
                + one_line(", ".join(f"{i} {c}" for i, c in enumerate(classes)), 200)
            )
        labels.append(known[name.strip().lower()])
    return [labels[seed % len(labels)] for seed in seeds]


def digest(plan: Plan) -> str:
    """The SHA-256 of what a plan says."""
    rows = [(stage.lam, stage.draw, stage.evaluate, stage.commit) for stage in plan.stages]
    numbers = [(value(s.x), value(s.noise), sorted((j, value(c)) for j, c in s.c.items())) for s in plan.stages]
    content = plan.solver, plan.path.name, plan.prediction, plan.exact_marginals, rows, numbers
    return hashlib.sha256(repr(content).encode()).hexdigest()
