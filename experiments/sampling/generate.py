"""Many samples into one output: batch by batch, interruptible at any moment, resumed by the same command.

Finished batches wait in a hidden folder beside the output, named by the job's digest, so another job never meets them. When the
last is there, the output is assembled and moved into place, and a .json beside it says how to make it again. The plan is made
before the first batch, and every batch runs it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffode.errors import InputError
from diffode.files import atomic, folder_for, locked
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.model import EpsModel
from experiments.sampling.jobs import Job, PreparedJob
from experiments.sampling.outputs import Outputs
from experiments.sampling.summary import Summary, card, counts, warnings_of
from experiments.sampling.trajectory import STATES, Arrays, Recorder, arrays_of
from solvers import Plan, sample

ADAPTIVE_PLAN = "plan.json"  # beside the batch of an adaptive solver
Watch = Callable[[int, float], None]


def generate(
    task: PreparedJob,
    out: Path,
    *,
    save_plan: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    watch: Watch | None = None,
) -> Summary:
    """Draw the images of a job and write them to `out` (its suffix says how), its card to `out`.json beside it, the states of a
    trajectory to two files of its name and -trajectory, and the plan that was run to save_plan.

    watch(images done, λ) is called after every evaluation. A run that is interrupted leaves its finished batches, and the
    same job continues from them. InputError if a file exists and may not be overwritten, or another run is writing `out`, and for
    samples that are not images.
    """
    job = task.job
    writers.check_shape(task.loaded.image)
    outputs = Outputs.at(out, trajectory=job.trajectory, save_plan=save_plan, overwrite=overwrite)
    if save_plan is not None:
        _require_plan(task)
    with _batch_folder(out, job) as folder:
        files = {start: folder / f"{start}.npz" for start in range(0, len(job.seeds), job.batch)}
        missing = {start: file for start, file in files.items() if not file.exists()}
        model = job.recipe.apply(task.loaded.model)
        for start, file in missing.items():
            _draw_batch(task, model, start, file, watch)
        arrays = _joined([*files.values()])
        per_image = {name: array for name, array in arrays.items() if name not in ("pixels", "seconds", *STATES)}
        adaptive = folder / ADAPTIVE_PLAN
        plan = Plan.load(adaptive) if save_plan is not None and adaptive.exists() else task.prepared.plan
        warnings = tuple(warnings_of(job, per_image, save_plan, plan))
        summary = Summary(per_image, float(arrays["seconds"].sum()), len(files) - len(missing), warnings)
        outputs.write(job, arrays, plan, card(task, summary, command))
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


def _draw_batch(task: PreparedJob, model: EpsModel, start: int, file: Path, watch: Watch | None) -> None:
    """Sample the batch that begins at `start`, and write its arrays, a row per image, to `file`."""
    job, plan = task.job, task.prepared.plan
    seeds = job.seeds[start : start + job.batch]
    if job.labels is not None:
        model = model.labelled(job.labels[start : start + job.batch])
    if watch is not None:
        model = model.watched(lambda evaluation, lam, m: watch(start, lam))
    recorder = Recorder()
    began = time.perf_counter()
    result = sample(
        model,
        shape=(len(seeds), *task.loaded.image),
        solver=task.prepared,
        seed=seeds,
        dtype=job.recipe.state_dtype,
        device=job.recipe.device,
        on_step=recorder if job.trajectory and plan is not None else None,
        trajectory=job.trajectory and plan is None,
    )
    arrays: Arrays = {"seconds": np.array([time.perf_counter() - began]), "pixels": to_pixels(result.x)}
    arrays |= counts(model, result, bool(task.prepared.options.get("per_sample")))
    arrays |= recorder.arrays() if recorder.states else arrays_of(result)
    if result.adaptive is not None and len(job.seeds) == 1 and result.adaptive.plans[0] is not None:
        result.adaptive.plans[0].save(file.with_name(ADAPTIVE_PLAN))
    with atomic(file) as part, open(part, "wb") as stream:
        np.savez(stream, **arrays)


def _joined(files: list[Path]) -> Arrays:
    """The arrays of all batches, one after the other."""
    batches = [dict(np.load(file)) for file in files]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@contextmanager
def _batch_folder(out: Path, job: Job) -> Iterator[Path]:
    """The hidden folder of a job's finished batches, locked against a second run; removed on success, or if it is empty."""
    with folder_for(out), locked(out.with_name(f".{out.name}.lock"), f"writing {out}"):
        folder = out.with_name(f".{out.name}.{job.digest}")
        folder.mkdir(exist_ok=True)
        try:
            yield folder
            shutil.rmtree(folder)
        finally:
            if folder.exists() and not any(folder.glob("*.npz")):
                shutil.rmtree(folder)
