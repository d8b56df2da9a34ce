"""Which files an output consists of, and how they are written: all whole, or none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffode.errors import InputError
from diffode.files import atomic, check_writable, json_bytes
from diffode.images import writers
from diffode.reading import sha256_of
from experiments.common import figures
from experiments.sampling.jobs import Job
from experiments.sampling.summary import Summary
from experiments.sampling.trajectory import STATES
from experiments.sampling.work import Work
from solvers import Plan


@dataclass(frozen=True)
class Outputs:
    """The files of one output.

    samples: a PNG, an .npz, a .safetensors or a folder. card: a JSON file beside them that says how to make them again. states,
    sheet: of a trajectory, an .npz and a PNG. plan: a JSON file.
    """

    samples: Path
    card: Path
    states: Path | None
    sheet: Path | None
    plan: Path | None
    overwrite: bool

    @classmethod
    def at(cls, out: Path, job: Job, *, save_plan: Path | None, overwrite: bool, inputs: Sequence[Path] = ()) -> Outputs:
        """The files of a job's output at `out`; InputError for what could not be written, whatever exists, or would take the
        place of the inputs, files and folders that the job is begun with."""
        writers.writer(out, job.floats)  # which refuses what is no output
        card = out.with_name(f"{out.name}.json")
        states, sheet = (
            out.with_name(f"{out.stem}-trajectory.{suffix}") if job.trajectory else None for suffix in ("npz", "png")
        )
        for path in (out, card, states, sheet, Work.beside(out, job).record):
            if path is not None:
                refuse_place("out", path)
                if save_plan is not None and _clash(save_plan, path):
                    raise InputError(f"{save_plan} is where {path} is written: give `save_plan` another name")
                if path != out and path.is_dir():
                    raise InputError(
                        f"{path} is a folder, and is where a file that goes with {out} is written: give another `out`"
                    )
        if save_plan is not None:
            refuse_place("save_plan", save_plan, ".json")
        outputs = cls(out, card, states, sheet, save_plan, overwrite)
        for parameter, path in outputs.named:
            for source in inputs:
                if _clash(path, source) or _clash(path, source.resolve()):
                    raise InputError(f"{path} is in the place of {source}, which is read: give `{parameter}` another name")
        return outputs

    @property
    def named(self) -> list[tuple[str, Path]]:
        """The files, each with the parameter that names it."""
        paths = [("out", path) for path in (self.samples, self.card, self.states, self.sheet)]
        return [(parameter, path) for parameter, path in [*paths, ("save_plan", self.plan)] if path is not None]

    def are(self, own: Collection[str]) -> bool:
        """Whether all files are there, and have these digests."""
        return all(_is_of(path, own) for _, path in self.named)

    def refuse_existing(self, own: Collection[str]) -> None:
        """InputError if a file exists that may not be overwritten. own: the digests of files that the job itself put there."""
        refuse_existing([(parameter, path) for parameter, path in self.named if not _is_of(path, own)], self.overwrite)
        writers.check_place(self.samples)

    def write(self, work: Work, arrays: Mapping[str, Any], plan: str | None, card: Mapping[str, Any], summary: Summary) -> None:
        """Write all files; each is whole, and in the record, before the first is moved into place, and the card is the last.

        plan: the text of its file; None if there is none, which is then not written.
        """
        labels = np.array(work.job.labels, np.int64) if work.job.labels is not None else None
        states = {name: arrays[name] for name in STATES if name in arrays}
        staged: list[Path] = []
        with ExitStack() as stack:

            def stage(path: Path) -> Path:
                staged.append(stack.enter_context(atomic(path)))
                return staged[-1]

            stage(self.card).write_bytes(json_bytes(card))
            if plan is not None and self.plan is not None:
                stage(self.plan).write_text(plan, encoding="utf-8")
            if self.states is not None:
                with open(stage(self.states), "wb") as stream:
                    np.savez_compressed(stream, **states)
            if self.sheet is not None:
                figures.trajectory(**states).save(stage(self.sheet), format="PNG")
            write = writers.writer(self.samples, work.job.floats)
            write(stage(self.samples), arrays["samples"], work.job.seeds, labels)
            self.refuse_existing(work.read_record()[0])
            work.write_record(map(digest, staged), summary)


def write_plan(plan: Plan, save: Path | None, png: Path | None, overwrite: bool = False) -> None:
    """Save a plan, draw it, or both; InputError for a file that exists or cannot be, or for want of matplotlib."""
    for parameter, path, suffix in (("save", save, ".json"), ("png", png, ".png")):
        if path is not None:
            refuse_place(parameter, path, suffix)
    refuse_existing([("save", save), ("png", png)], overwrite)
    if png is not None:
        figures.heatmap(plan, png)
    if save is not None:
        plan.save(save)


def refuse_place(parameter: str, path: Path, suffix: str | None = None) -> None:
    """InputError for a file that could not be written, or, with a suffix, would not be known by it."""
    if suffix is not None and path.suffix != suffix:
        raise InputError(f"`{parameter}` writes a {suffix} file, not {str(path)!r}: give it a name that ends in {suffix}")
    try:
        if suffix is not None and path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        check_writable(path)
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 150 else f"...{str(path)[-100:]}"
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{shown} cannot be written ({why}): give `{parameter}` another name") from error


def refuse_existing(paths: Iterable[tuple[str, Path | None]], overwrite: bool) -> None:
    """InputError for the first of the files that exists, named by its parameter, unless it may be overwritten."""
    for parameter, path in paths:
        if path is not None and os.path.lexists(path) and not overwrite:
            raise InputError(f"{path} exists: give `{parameter}` another name, or overwrite=True")


def digest(path: Path) -> str:
    """The SHA-256 of a file; of a folder, of the names and bytes of what is in it. Empty for links and anything else."""
    if path.is_symlink() or not path.exists():
        return ""
    if path.is_dir():
        files = "".join(f"{digest(file)} {file.name}\n" for file in sorted(path.iterdir()))
        return hashlib.sha256(os.fsencode(files)).hexdigest()
    if not path.is_file():
        return ""
    return sha256_of(path)


def _is_of(path: Path, digests: Collection[str]) -> bool:
    """Whether a file or folder has one of these digests; it is only read if there are any."""
    return bool(digests) and digest(path) in digests


def _clash(one: Path, other: Path) -> bool:
    """Whether two files, however their paths are spelled, are in each other's place: the same, or one a folder of the other."""
    a, b = (Path(os.path.normcase(os.path.realpath(path.parent))) / os.path.normcase(path.name) for path in (one, other))
    return a == b or a in b.parents or b in a.parents
