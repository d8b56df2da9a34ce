"""Many samples into one output: batch by batch, interruptible at any moment, resumed by the same command.

A Job is all that decides the images. Its finished batches wait in a hidden folder beside the output, named by the job's
digest, so another job never meets them; when the last is there, the output is assembled, moved into place, and a .json
beside it says how to make it again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffode import images, pretrained
from diffode.data import to_pixels
from diffode.errors import InputError
from diffode.files import alone, atomic, folder_for, write_json
from diffode.model import EpsModel
from solvers import sample
from solvers.registry import find
from solvers.sampling import choose_grid

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Job:
    """What decides the images. labels: one a seed, or None; grid: the finite λ, to which `denoise` adds the step to +∞;
    options: the solver's own.

    dtype: float32 and float64 are of state and network; in bfloat16 and float16 the network is autocast, the state float32.
    """

    model: str
    sha256: str
    solver: str
    grid: list[float]
    denoise: bool
    seeds: list[int]
    labels: list[int] | None
    batch: int
    guidance: float = 1.0
    clip: bool = False
    threshold: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Report:
    """nfe and calls are those of one image; seconds are of sampling, in this run and those it went on from."""

    nfe: float
    calls: float
    seconds: float
    resumed: int


def choose_device(name: str) -> str:
    """cpu, cuda or mps; "auto" is the best of them that is there. InputError for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    try:
        device = torch.device(name)
        known = available.get(device.type, False) and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        known = False
    if not known:
        raise InputError(
            f"device {name!r} is not available here: there is {', '.join(device for device, there in available.items() if there)}"
        )
    return name


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


def prepare(loaded: pretrained.Pretrained, job: Job) -> EpsModel:
    """The model of a job, moved to its device, with guidance and what acts on x̂0."""
    model = loaded.model.to(job.device).guided(job.guidance)
    model = model.autocasted(DTYPES[job.dtype]) if job.dtype in ("bfloat16", "float16") else model
    model = model.clipped() if job.clip else model
    return model.thresholded(job.threshold) if job.threshold is not None else model


def generate(
    job: Job,
    loaded: pretrained.Pretrained,
    out: Path,
    *,
    overwrite: bool = False,
    command: str = "",
    watch: Callable[[int, float], None] | None = None,
) -> Report:
    """Make the images of a job and write them to `out` (its suffix says how), with `out`.json beside it.

    watch(images done, λ) is called after every evaluation. A run that is interrupted leaves its finished batches, and the
    same job goes on from them. InputError if `out` exists and may not be overwritten, or another run is writing it.
    """
    write = images.writer(out)
    card = out.with_name(out.name + ".json")
    _refuse_existing(out, card, overwrite)
    images.check_place(out)
    starts = range(0, len(job.seeds), job.batch)
    with _workplace(out, job) as work:
        files = [work / f"{start}.npz" for start in starts]
        resumed = sum(file.exists() for file in files)
        model = prepare(loaded, job)
        for start, file in zip(starts, files, strict=True):
            if not file.exists():
                _one_batch(job, model, loaded.image, start, file, watch)
        batches = [dict(np.load(file)) for file in files]
        pixels = np.concatenate([batch["pixels"] for batch in batches])
        nfe, calls = (float(np.mean([batch[name] for batch in batches])) for name in ("nfe", "calls"))
        seconds = float(sum(batch["seconds"] for batch in batches))
        _refuse_existing(out, card, overwrite)
        labels = np.array(job.labels, np.int64) if job.labels is not None else None
        with atomic(card) as part:  # both are written before the first is moved
            write_json(part, _card(job, nfe, calls, seconds, command))
            write(out, pixels, job.seeds, labels)
    return Report(nfe, calls, seconds, resumed)


def _one_batch(
    job: Job,
    model: EpsModel,
    image: tuple[int, ...],
    start: int,
    file: Path,
    watch: Callable[[int, float], None] | None,
) -> None:
    stop = min(start + job.batch, len(job.seeds))
    if job.labels is not None:
        model = model.labelled(job.labels[start:stop])
    if watch is not None:
        model = model.watched(lambda evaluation, lam, m: watch(start, lam))
    dtype = torch.float64 if job.dtype == "float64" else torch.float32
    began = time.perf_counter()
    result = sample(
        model,
        shape=(stop - start, *image),
        solver=job.solver,
        grid=job.grid,
        denoise=job.denoise,
        seed=job.seeds[start:stop],
        dtype=dtype,
        device=job.device,
        **job.options,
    )
    with atomic(file) as part, open(part, "wb") as stream:
        seconds = time.perf_counter() - began
        np.savez(stream, pixels=to_pixels(result.x), nfe=result.nfe, calls=result.calls, seconds=seconds)


def _card(job: Job, nfe: float, calls: float, seconds: float, command: str) -> dict[str, Any]:
    """Everything needed to make the output again, and what it was made with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    made = {
        "nfe": nfe,
        "network_calls": calls,
        "seconds": round(seconds, 3),
        "command": command,
        "versions": versions,
        "machine": platform.machine(),
    }
    return {
        **asdict(job),
        "order": find(job.solver).order,
        **made,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _refuse_existing(out: Path, card: Path, overwrite: bool) -> None:
    for path in (out, card):
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise InputError(f"{path} exists: give --out another name, or --overwrite")


@contextmanager
def _workplace(out: Path, job: Job) -> Iterator[Path]:
    """The hidden folder of a job's finished batches, locked against a second run; removed on success, or if it is empty."""
    with folder_for(out), alone(out.with_name(f".{out.name}.lock"), f"writing {out}"):
        work = out.with_name(f".{out.name}.{job.digest}")
        work.mkdir(exist_ok=True)
        try:
            yield work
            shutil.rmtree(work)
        finally:
            if work.exists() and not any(work.glob("*.npz")):
                shutil.rmtree(work)


def make_job(
    loaded: pretrained.Pretrained,
    model: str,
    solver: str,
    *,
    nfe: int | None,
    steps: int | None,
    grid: str | list[float],
    denoise: bool,
    options: dict[str, Any],
    **rest: Any,
) -> Job:
    """A Job, with its grid chosen; InputError for a solver, budget or option that cannot be."""
    if rest.get("dtype") == "float64" and str(rest.get("device", "cpu")).startswith("mps"):
        raise InputError("mps has no float64: use --dtype float32, or --device cpu")
    if rest.get("guidance", 1) != 1 and rest["labels"] is None:
        raise InputError(f"guidance of {rest['guidance']:g} needs labels to guide to: give --label, or a model that has them")
    entry, schedule = find(solver), loaded.model.schedule
    lams = choose_grid(entry, schedule, nfe=nfe, steps=steps, grid=grid, denoise=denoise, **options)
    finite = [float(lam) for lam in lams if lam < np.inf]
    return Job(
        model=model,
        sha256=loaded.sha256,
        solver=solver,
        grid=finite,
        denoise=len(finite) < len(lams),
        options=options,
        **rest,
    )
