"""Many samples into one output: batch by batch, interruptible at any moment, resumed by the same command.

A Job is all that decides the output. Its finished batches wait in a hidden folder beside it, named by the job's digest, so
another job never meets them; when the last is there, the output is assembled, moved into place, and a .json beside it says
how to make it again. A planned solver is planned once, and every batch runs that plan.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.files import atomic, folder_for, json_value, locked, write_json
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.schedule import Schedule
from experiments.common import figures
from experiments.common.results import versions
from experiments.sampling.jobs import Job, digest, options_of
from experiments.sampling.recipe import flat
from solvers import Committed, Plan, Result, Solver, sample
from solvers.registry import find

STATES = ("lam", "x", "x0")  # of a trajectory
TAKEN = "plan.json"  # of an adaptive solver, beside its batch
Arrays = dict[str, Any]  # of numpy


@dataclass(frozen=True)
class Report:
    """each: of every image nfe and calls, its evaluations and network calls; with an adaptive pair also accepted and rejected,
    its steps, and lam_reached. seconds: of sampling, in this run and those it went on from. resumed: batches that were there.
    warnings: sentences on what did not come as far as was asked."""

    each: Arrays
    seconds: float
    resumed: int
    warnings: tuple[str, ...] = ()

    @property
    def nfe(self) -> float:
        return float(self.each["nfe"].mean())

    @property
    def calls(self) -> float:
        return float(self.each["calls"].mean())

    @property
    def spent(self) -> str:
        """NFE, network calls where they are others, and steps, in words."""
        low, high = self.each["nfe"].min(), self.each["nfe"].max()
        calls = f"{self.calls:.6g} network calls" if abs(self.calls - self.nfe) > 1e-9 else ""
        if low < high:
            text = f"{low:g} to {high:g} NFE an image (mean {', '.join(filter(None, [f'{self.nfe:.1f}', calls]))})"
        else:
            text = f"{low:g} NFE{calls and f' ({calls})'} an image"
        if "accepted" in self.each:
            text += f", {self.each['accepted'].mean():.1f} steps accepted, {self.each['rejected'].mean():.1f} rejected"
        return text


def write_plan(plan: Plan, save: Path | None, png: Path | None, overwrite: bool = False) -> None:
    """Save a plan, draw it, or both; InputError for a file that exists or cannot be, or for want of matplotlib."""
    files = {option: path for option, path in (("--save", save), ("--png", png)) if path is not None}
    for option, path in files.items():
        _refuse_place(path, option, ".json" if path is save else ".png")
    _refuse_existing(files, overwrite)
    if png is not None:
        figures.heatmap(plan, png)
    if save is not None:
        plan.save(save)


def generate(
    job: Job,
    loaded: pretrained.Pretrained,
    out: Path,
    *,
    save_plan: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    watch: Callable[[int, float], None] | None = None,
) -> Report:
    """Make the images of a job and write them to `out` (its suffix says how); beside it `out`.json, and the states of a
    trajectory in two files of its name and -trajectory; and the plan that was taken to save_plan.

    watch(images done, λ) is called after every evaluation. A run that is interrupted leaves its finished batches, and the
    same job goes on from them. InputError if a file exists and may not be overwritten, or another run is writing `out`, and for
    samples that are no images.
    """
    writers.check_shape(loaded.image)
    writers.writer(out)  # which refuses what is no output
    files = _files(job, out, save_plan)
    _refuse_existing(files, overwrite)
    writers.check_place(out)
    entry = find(job.solver)
    plan = _plan(job, entry, loaded.model.schedule, save_plan)
    starts = range(0, len(job.seeds), job.batch)
    with _workplace(out, job) as work:
        parts = [work / f"{start}.npz" for start in starts]
        resumed = sum(part.exists() for part in parts)
        model = job.recipe.apply(loaded.model)
        for start, part in zip(starts, parts, strict=True):
            if not part.exists():
                _one_batch(job, _how(job, entry, plan), model, loaded.image, start, part, watch)
        batches = [dict(np.load(part)) for part in parts]
        arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        each = {name: array for name, array in arrays.items() if name not in ("pixels", "seconds", *STATES)}
        taken = Plan.load(work / TAKEN) if save_plan is not None and (work / TAKEN).exists() else plan
        report = Report(each, float(arrays["seconds"].sum()), resumed, tuple(_warnings(job, each, save_plan, taken)))
        _refuse_existing(files, overwrite)
        _write(job, files, arrays, taken, _card(job, entry, report, command))
    return report


def _files(job: Job, out: Path, save_plan: Path | None) -> dict[str, Path]:
    """All that will be written; InputError for what could not be."""
    files = {"out": out, "card": out.with_name(f"{out.name}.json")}
    if job.trajectory:
        files |= {kind: out.with_name(f"{out.stem}-trajectory.{kind}") for kind in ("npz", "png")}
    for path in list(files.values())[1:]:
        if path.is_dir():
            raise InputError(f"{path} is a folder, and is where something beside {out} is written: give --out another name")
    if save_plan is not None:
        _refuse_place(save_plan, "--save-plan", ".json")
        if save_plan.absolute() == files["card"].absolute():
            raise InputError(f"{save_plan} is where what made {out} is written: give --save-plan another name")
        files["plan"] = save_plan
    return files


def _refuse_place(path: Path, option: str, suffix: str) -> None:
    """InputError for a file that could not be written, or would not be known by its suffix."""
    folder = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if path.suffix != suffix:
        raise InputError(f"{option} writes a {suffix} file, not {str(path)!r}: give it a name that ends in {suffix}")
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(
            f"{path} cannot be written ({path if path.is_dir() else folder} is in the way): give {option} another name"
        )


def _refuse_existing(files: dict[str, Path], overwrite: bool) -> None:
    for what, path in files.items():
        if (path.exists() or path.is_symlink()) and not overwrite:
            option = {"plan": "--save-plan", "--save": "--save", "--png": "--png"}.get(what, "--out")
            raise InputError(f"{path} exists: give {option} another name, or --overwrite")


def _plan(job: Job, entry: Solver, schedule: Schedule, save_plan: Path | None) -> Plan | None:
    """The plan that every batch runs, None for solvers without; InputError if the job was made with another one of the name, or
    if there will be none to save."""
    if entry.chooses_steps and not entry.supported_hooks and save_plan is not None and len(job.seeds) > 1:
        raise InputError(
            f"each of {len(job.seeds)} images takes its own steps with {entry.name}, and --save-plan keeps one plan: "
            "ask for one image (--n 1, or --seeds with one number)"
        )
    if not entry.has_plan:
        return entry.plan([], schedule) if entry.supported_hooks and save_plan is not None else None
    plan = entry.plan(np.array(job.lams), schedule, **options_of(entry, job))
    if job.plan not in (None, digest(plan)):
        raise InputError(f"{job.solver} is not the plan that it was when this job was made: bring it back, or make another job")
    return plan


def _how(job: Job, entry: Solver, plan: Plan | None) -> dict[str, Any]:
    """What sample is told of the solver: the plan, or else the name, its grid and its options."""
    if plan is not None:
        return {"solver": plan}
    states = {"trajectory": True} if job.trajectory and not entry.has_plan else {}
    return {"solver": job.solver, "grid": job.grid, "denoise": job.denoise, **options_of(entry, job), **states}


def _one_batch(
    job: Job,
    how: dict[str, Any],
    model: EpsModel,
    image: tuple[int, ...],
    start: int,
    file: Path,
    watch: Callable[[int, float], None] | None,
) -> None:
    """Sample the batch that begins at `start`, and write its arrays, a row an image, to `file`."""
    stop = min(start + job.batch, len(job.seeds))
    if job.labels is not None:
        model = model.labelled(job.labels[start:stop])
    if watch is not None:
        model = model.watched(lambda evaluation, lam, m: watch(start, lam))
    states: list[tuple[Any, ...]] = []
    if job.trajectory and "trajectory" not in how:
        how = {**how, "on_step": lambda step: states.append(_kept(step))}
    began = time.perf_counter()
    result = sample(
        model,
        shape=(stop - start, *image),
        seed=job.seeds[start:stop],
        dtype=job.recipe.state_dtype,
        device=job.recipe.device,
        **how,
    )
    arrays: Arrays = {"seconds": np.array([time.perf_counter() - began]), "pixels": to_pixels(result.x)}
    arrays |= counts(model, result, bool(job.options.get("per_sample"))) | _stacked(states, result)
    if result.adaptive is not None and len(job.seeds) == 1 and result.adaptive.plans[0] is not None:
        result.adaptive.plans[0].save(file.with_name(TAKEN))
    with atomic(file) as part, open(part, "wb") as stream:
        np.savez(stream, **arrays)


def counts(model: EpsModel, result: Result, per_sample: bool = False) -> Arrays:
    """What each image of a batch took; per_sample: whether each was integrated alone."""
    n, calls_each = len(result.x), 2 if model.guidance else 1
    if result.adaptive is not None:
        taken = {name: np.array(getattr(result.adaptive, name)) for name in ("nfe", "accepted", "rejected")}
        return {**taken, "calls": calls_each * taken["nfe"], "lam_reached": np.array(result.adaptive.lam)}
    if per_sample:  # calls are then those of all images, one after the other
        return {"nfe": np.full(n, result.calls / n / calls_each), "calls": np.full(n, result.calls / n)}
    return {"nfe": np.full(n, result.nfe), "calls": np.full(n, result.calls)}


def _kept(step: Committed) -> tuple[float, Tensor, Tensor]:
    """λ, x and x̂0 of a step on the host, as float32; at the start there is no x̂0 yet: NaN."""
    x0 = torch.full_like(step.x, torch.nan) if step.x0 is None else step.x0
    x, x0 = (state.to("cpu", torch.float32, copy=True) for state in (step.x, x0))
    return step.lam, x, x0


def _stacked(states: list[tuple[Any, ...]], result: Result) -> Arrays:
    """lam (steps + 1,), x and, of planned solvers, x0 (images, steps + 1, ...) of a trajectory, if there is one."""
    columns = zip(*(states or [(lam, x.float()) for lam, x in result.trajectory]), strict=True)
    named = dict(zip(STATES, columns, strict=False))
    return {name: np.array(column) if name == "lam" else torch.stack(column, 1).numpy() for name, column in named.items()}


def _warnings(job: Job, each: Arrays, save_plan: Path | None, plan: Plan | None) -> Iterator[str]:
    """What did not come as far as was asked."""
    if save_plan is not None and plan is None:
        yield f"no step was accepted within --max-nfe: there is no plan to write to {save_plan}"
    short = each["lam_reached"][each["lam_reached"] != job.lams[-1]] if "lam_reached" in each else np.empty(0)
    if len(short):
        where = f"λ = {short.min():.6g}" + (f" to {short.max():.6g}" if short.min() < short.max() else "")
        yield (
            f"{len(short)} of {len(job.seeds)} images stopped at {where} of {job.lams[-1]:.6g}, --max-nfe being "
            f"{job.options.get('max_nfe')}: written is the last state of each, raise --max-nfe or loosen --rtol and --atol"
        )


def _write(job: Job, files: dict[str, Path], arrays: Arrays, plan: Plan | None, card: dict[str, Any]) -> None:
    """Write all files; each is whole before the first is moved into place."""
    with ExitStack() as stack:
        part = {
            what: stack.enter_context(atomic(path))
            for what, path in files.items()
            if what != "out" and (what, plan) != ("plan", None)
        }
        write_json(part["card"], card)
        if plan is not None and "plan" in part:
            plan.save(part["plan"])
        if job.trajectory:
            states = {name: arrays[name] for name in STATES if name in arrays}
            with open(part["npz"], "wb") as stream:
                np.savez_compressed(stream, **states)
            figures.trajectory(**states).save(part["png"], format="PNG")
        labels = np.array(job.labels, np.int64) if job.labels is not None else None
        writers.writer(files["out"])(files["out"], arrays["pixels"], job.seeds, labels)


def _card(job: Job, entry: Solver, report: Report, command: str) -> dict[str, Any]:
    """Everything needed to make the output again, and what it was made with."""
    each = {name: [json_value(value) for value in array.tolist()] for name, array in report.each.items() if name != "calls"}
    each["nfe_of_each"] = each.pop("nfe")
    return {
        **flat(job),
        "order": entry.order or None,
        "nfe": report.nfe,
        "network_calls": report.calls,
        **(each if len(each) > 1 else {}),
        "seconds": round(report.seconds, 3),
        "command": command,
        "versions": versions(),
        "machine": platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def _workplace(out: Path, job: Job) -> Iterator[Path]:
    """The hidden folder of a job's finished batches, locked against a second run; removed on success, or if it is empty."""
    with folder_for(out), locked(out.with_name(f".{out.name}.lock"), f"writing {out}"):
        work = out.with_name(f".{out.name}.{job.digest}")
        work.mkdir(exist_ok=True)
        try:
            yield work
            shutil.rmtree(work)
        finally:
            if work.exists() and not any(work.glob("*.npz")):
                shutil.rmtree(work)
