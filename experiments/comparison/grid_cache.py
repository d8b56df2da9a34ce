"""The optimal grids of one problem, a file each, found when they are first asked for: FOLDER/SOLVER-NFE.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diffode import grid as grids
from diffode.errors import InputError
from experiments.comparison import local_errors, optimal_grid
from experiments.comparison.cells import OPTIMAL, as_file, is_of_ones_own
from experiments.comparison.problem import Problem

SAME = ("label", "guidance", "clip", "threshold", "denoise")  # settings that decide a grid


class Kept:
    """Those found for another model or other settings are found anew."""

    def __init__(self, problem: Problem, folder: Path, command: str) -> None:
        self.problem, self.folder, self.command = problem, folder, command

    @cached_property
    def trajectories(self) -> local_errors.Trajectories:
        """Of other samples than those of the problem."""
        return local_errors.follow(self.problem.settings)

    def told(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The cell, with the λ in the place of "optimal"; or as it is, if its solver cannot spend what it asks for."""
        if cell["grid"] != OPTIMAL:
            return dict(cell)
        try:
            self.problem.plan(cell["solver"], "logsnr", cell["nfe"])
        except InputError:
            return {**cell, "grid": "logsnr"}  # which will be skipped
        file = self.folder / f"{as_file(cell['solver'])}-{cell['nfe']}.json"
        if is_of_ones_own(cell["solver"]) or not self._is_ours(file):  # the solver may be another now
            optimal_grid.find(self.trajectories, cell["solver"], cell["nfe"]).save(file, self.command)
        return {**cell, "grid": grids.load(file)}

    def _is_ours(self, file: Path) -> bool:
        wanted = {"sha256": self.problem.loaded.sha256} | {name: getattr(self.problem.settings, name) for name in SAME}
        try:
            found_for = json.loads(file.read_text(encoding="utf-8"))["found_for"]
            return all(found_for[name] == value for name, value in wanted.items())
        except (OSError, ValueError, KeyError, TypeError):
            return False
