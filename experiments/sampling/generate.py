"""Many samples into one output: batch by batch, interruptible at any moment, resumed by the same command.

Finished batches wait in a hidden folder beside the output (`experiments/sampling/work.py`). When the last is there, the output is
assembled and moved into place, and a .json beside it says how to make it again. The plan is made before the first batch, and
every batch runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffode.errors import InputError
from diffode.images import drawings
from diffode.model import EpsModel
from diffode.models.turns import in_turn
from experiments.sampling.decoding import decoded
from experiments.sampling.jobs import PreparedJob
from experiments.sampling.outputs import Outputs
from experiments.sampling.summary import Summary, card, counts, warnings_of
from experiments.sampling.trajectory import STATES, Arrays, Recorder, arrays_of
from experiments.sampling.work import Work, working_on
from solvers import sample

OnEvaluation = Callable[[int, float], None]


def generate(
    task: PreparedJob,
    out: Path,
    *,
    save_plan: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    watch: OnEvaluation | None = None,
) -> Summary:
    """Draw the samples of a job and write them to `out` (its suffix says how), its card to `out`.json beside it, the states of a
    trajectory to two files of its name and -trajectory, and the plan that was run to save_plan.

    watch(images done, λ) is called after every evaluation. A run that is interrupted leaves its finished batches, and the
    same job continues from them. InputError if a file exists and may not be overwritten, or another run is writing `out`.
    """
    job = task.job
    inputs = [] if task.init is None else [task.init.path]
    outputs = Outputs.at(out, job, save_plan=save_plan, overwrite=overwrite, inputs=inputs)
    if save_plan is not None:
        _require_plan(task)
    with working_on(out, job, {path.parent for _, path in outputs.named}) as work:
        own, done = work.read_record()
        if done is not None and outputs.are(own):
            return done  # the run that moved them into place was killed before it had cleared up
        outputs.refuse_existing(own)
        arrays, resumed = _draw(task, work, watch)
        per_image = {name: array for name, array in arrays.items() if name not in ("samples", "seconds", "plan", *STATES)}
        plan = None if save_plan is None else _plan_text(task, arrays)
        warnings = tuple(warnings_of(job, per_image, save_plan, plan))
        summary = Summary(per_image, float(arrays["seconds"].sum()), resumed, warnings)
        outputs.write(work, arrays, plan, card(task, summary, command), summary)
    return summary


def _require_plan(task: PreparedJob) -> None:
    """InputError if there will be no plan to save: of torchdiffeq's integrators, or one for each of several images."""
    solver, n = task.prepared.solver, len(task.job.seeds)
    if task.prepared.plan is None and solver.supported_hooks:
        raise InputError(f"{solver.name} is not a table of numbers, and has no plan to save: leave `save_plan` out")
    if task.prepared.plan is None and n > 1:
        raise InputError(
            f"each of {n} images takes its own steps with {solver.name}, and `save_plan` keeps one plan: ask for one image "
            "(n=1, or `seeds` with one number)"
        )


def _plan_text(task: PreparedJob, arrays: Arrays) -> str | None:
    """The file of the plan that was run; None for an adaptive solver that accepted no step."""
    return task.prepared.plan.to_text() if task.prepared.plan else arrays["plan"].tobytes().decode() or None


def _draw(task: PreparedJob, work: Work, watch: OnEvaluation | None) -> tuple[Arrays, int]:
    """The arrays of all batches, one after the other, and how many batches were there already; the others are sampled."""
    model = task.job.recipe.apply(task.loaded.model)
    batches, resumed = [], 0
    for start in range(0, len(task.job.seeds), task.job.batch):
        batch = work.read_batch(start)
        resumed += batch is not None
        if batch is None:
            batch = _draw_batch(task, model, start, watch)
            work.write_batch(start, batch)
        batches.append(batch)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}, resumed


def _draw_batch(task: PreparedJob, model: EpsModel, start: int, watch: OnEvaluation | None) -> Arrays:
    """Sample the batch that begins at `start`: its arrays, a row per image."""
    job, plan = task.job, task.prepared.plan
    seeds = job.seeds[start : start + job.batch]
    model = in_turn(model, seeds)
    if job.labels is not None:
        model = model.labelled(job.labels[start : start + job.batch])
    if watch is not None:
        model = model.watched(lambda evaluation, lam, m: watch(start, lam))
    recorder = Recorder()
    began = time.perf_counter()
    result = sample(
        model,
        **task.start(seeds),
        solver=task.prepared,
        seed=seeds,
        noise=job.noise,
        dtype=job.recipe.state_dtype,
        device=job.recipe.device,
        on_step=recorder if job.trajectory and plan is not None else None,
        trajectory=job.trajectory and plan is None,
    )
    x = result.x.float().cpu().numpy() if job.floats else drawings.tiles(decoded(task.loaded.model, result.x, len(seeds)))
    arrays: Arrays = {"seconds": np.array([time.perf_counter() - began]), "samples": x}
    arrays |= counts(result)
    arrays |= recorder.arrays() if recorder.states else arrays_of(result)
    own = result.adaptive.plans[0] if result.adaptive is not None and len(job.seeds) == 1 else None
    return {**arrays, "plan": np.frombuffer(own.to_text().encode() if own is not None else b"", np.uint8)}
