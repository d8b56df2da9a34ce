"""Which files an output consists of, and how they are written: all whole, or none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffode.errors import InputError
from diffode.files import atomic, write_json
from diffode.images import writers
from experiments.common import figures
from experiments.sampling.jobs import Job
from experiments.sampling.trajectory import STATES
from solvers import Plan


@dataclass(frozen=True)
class Outputs:
    """The files of one output.

    images: a PNG, an .npz or a folder. card: a JSON file beside them that says how to make them again. states, sheet: of a
    trajectory, an .npz and a PNG. plan: a JSON file.
    """

    images: Path
    card: Path
    states: Path | None
    sheet: Path | None
    plan: Path | None
    overwrite: bool

    @classmethod
    def at(cls, out: Path, *, trajectory: bool, save_plan: Path | None, overwrite: bool) -> Outputs:
        """The files of an output at `out`; InputError for what could not be written, or exists."""
        writers.writer(out)  # which refuses what is no output
        card = out.with_name(f"{out.name}.json")
        states, sheet = (out.with_name(f"{out.stem}-trajectory.{suffix}") if trajectory else None for suffix in ("npz", "png"))
        for path in (card, states, sheet):
            if path is not None and path.is_dir():
                raise InputError(f"{path} is a folder, and is where a file that goes with {out} is written: give another `out`")
        if save_plan is not None:
            refuse_place("save_plan", save_plan, ".json")
            if save_plan.absolute() == card.absolute():
                raise InputError(f"{save_plan} is where the card of {out} is written: give `save_plan` another name")
        outputs = cls(out, card, states, sheet, save_plan, overwrite)
        outputs.refuse_existing()
        writers.check_place(out)
        return outputs

    def refuse_existing(self) -> None:
        """InputError if a file exists that may not be overwritten."""
        paths = [("out", path) for path in (self.images, self.card, self.states, self.sheet)]
        refuse_existing([*paths, ("save_plan", self.plan)], self.overwrite)

    def write(self, job: Job, arrays: Mapping[str, Any], plan: Plan | None, card: Mapping[str, Any]) -> None:
        """Write all files; each is whole before the first is moved into place. A plan that is None is not written."""
        self.refuse_existing()
        with ExitStack() as stack:
            write_json(stack.enter_context(atomic(self.card)), card)
            if plan is not None and self.plan is not None:
                plan.save(stack.enter_context(atomic(self.plan)))
            states = {name: arrays[name] for name in STATES if name in arrays}
            if self.states is not None:
                with open(stack.enter_context(atomic(self.states)), "wb") as stream:
                    np.savez_compressed(stream, **states)
            if self.sheet is not None:
                figures.trajectory(**states).save(stack.enter_context(atomic(self.sheet)), format="PNG")
            labels = np.array(job.labels, np.int64) if job.labels is not None else None
            with atomic(self.images) as part:
                writers.writer(self.images)(part, arrays["pixels"], job.seeds, labels)


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


def refuse_place(parameter: str, path: Path, suffix: str) -> None:
    """InputError for a file that could not be written, or would not be known by its suffix."""
    folder = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if path.suffix != suffix:
        raise InputError(f"`{parameter}` writes a {suffix} file, not {str(path)!r}: give it a name that ends in {suffix}")
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        obstacle = path if path.is_dir() else folder
        raise InputError(f"{path} cannot be written ({obstacle} is in the way): give `{parameter}` another name")


def refuse_existing(paths: Iterable[tuple[str, Path | None]], overwrite: bool) -> None:
    """InputError for the first of the files that exists, named by its parameter, unless it may be overwritten."""
    for parameter, path in paths:
        if path is not None and (path.exists() or path.is_symlink()) and not overwrite:
            raise InputError(f"{path} exists: give `{parameter}` another name, or overwrite=True")
