"""The optimal grids of one problem, one file each, found when they are first needed: FOLDER/SOLVER-NFE.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diffode import grid as grids
from diffode.errors import InputError
from diffode.reading import read_json
from experiments.comparison import local_errors, optimal_grid
from experiments.comparison.cells import OPTIMAL, as_filename, is_user_defined
from experiments.comparison.problem import Problem
from experiments.sampling.recipe import LATER, flat

DECISIVE = ("label", "guidance", "clip", "threshold", "denoise")  # settings that decide a grid


class OptimalGridCache:
    """Optimal grids in a folder. Entries for another model or other settings are recomputed, and always those of user-defined
    solvers, which may have changed. command: recorded in the files."""

    def __init__(self, problem: Problem, folder: Path, command: str) -> None:
        self.problem, self.folder, self.command = problem, folder, command

    @staticmethod
    def file(folder: Path, cell: Mapping[str, Any]) -> Path:
        """Where the grid of a cell is, in the folder of a cache."""
        return folder / f"{as_filename(cell['solver'])}-{cell['nfe']}.json"

    @cached_property
    def trajectories(self) -> local_errors.Trajectories:
        """Of other samples than those of the problem."""
        return local_errors.follow_trajectories(self.problem.settings)

    def with_optimal_grid(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The cell with the λ of its optimal grid in place of "optimal"; a cell on another grid as it is.

        A cell that cannot be planned comes back on "logsnr", so that measuring it says why it is skipped.
        """
        if cell["grid"] != OPTIMAL:
            return dict(cell)
        file = self.file(self.folder, cell)
        if is_user_defined(cell["solver"]) or not self._is_valid(file, cell):
            try:
                self.problem.prepare(cell["solver"], "logsnr", cell["nfe"])
            except InputError:
                return {**cell, "grid": "logsnr"}
            optimal_grid.find_optimal_grid(self.trajectories, cell["solver"], cell["nfe"]).save(file, self.command)
        return {**cell, "grid": grids.load(file)}

    def _is_valid(self, file: Path, cell: Mapping[str, Any]) -> bool:
        """Whether the file holds a whole grid that was found for this cell, this model and these settings."""
        settings, schedule = flat(self.problem.settings), self.problem.schedule
        wanted = {"sha256": self.problem.loaded.sha256} | {name: settings[name] for name in DECISIVE}
        try:
            found, lam = read_json(file, "optimal grid", "what compare wrote"), grids.load(file)
            return (
                (found["solver"], found["nfe"]) == (cell["solver"], cell["nfe"])
                and all(found["found_for"][name] == value for name, value in wanted.items())
                and all(found["found_for"].get(name) == settings.get(name) for name in LATER)
                and (lam[0], lam[-1]) == (schedule.lam_min, schedule.lam_max)
                and found.get("checksum", optimal_grid.checksum(lam)) == optimal_grid.checksum(lam)
            )
        except (InputError, KeyError, TypeError):
            return False
