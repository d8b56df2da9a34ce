"""How samples were made, as `sample` writes it in a JSON file beside them, and the part of it that every measurement repeats."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from diffode import grid
from diffode.errors import InputError
from diffode.models import pretrained

NFE_RULE = "evaluations of ε, the mean of the images; network_calls has two for each that is guided"
USUAL = {"guidance": 1.0, "clip": False, "threshold": None, "dtype": "float32"}  # not worth a word


@dataclass(frozen=True)
class SampleCard:
    """The fields of the file by their names there; seeds and labels are in the order in which the images are read."""

    model: str
    sha256: str
    solver: str
    options: dict[str, Any]
    guidance: float
    clip: bool
    threshold: float | None
    dtype: str
    nfe: float
    network_calls: float
    command: str
    grid: list[float]
    denoise: bool
    seeds: list[int]
    labels: list[int] | None

    @cached_property
    def grid_name(self) -> str:
        """The name of its grid; see find_grid_name."""
        return find_grid_name(self.model, self.grid, self.denoise)

    def summary(self, n: int) -> dict[str, Any]:
        """What goes with every measurement of the first n images, for JSON."""
        fields, seeds = asdict(self), self.seeds[:n]
        lams, denoise, _, _ = (fields.pop(name) for name in ("grid", "denoise", "seeds", "labels"))
        end = f"to λ = {lams[-1]:g} and σ = 0" if denoise else f"to λ = {lams[-1]:g}, σ/α = {np.exp(-lams[-1]):.4g}"
        consecutive = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        return {
            **fields,
            "nfe_rule": NFE_RULE,
            "grid": lams,
            "denoise": denoise,
            "tau": self.grid_name,
            "end": end,
            "seeds": f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds)),
        }

    def lines(self, n: int) -> list[str]:
        """The same in three lines of text."""
        summary, steps = self.summary(n), len(self.grid) - 1 + self.denoise
        unusual = {name: summary[name] for name, value in USUAL.items() if summary[name] != value}
        options = "".join(f", {name} {value}" for name, value in {**self.options, **unusual}.items())
        return [
            f"made by {self.solver}{options}, {self.nfe:g} NFE per image, from {self.model}",
            f"grid {self.grid_name}: {steps} step{'s' * (steps > 1)} from λ = {self.grid[0]:g} {summary['end']}",
            shorten(f"seeds {summary['seeds']}", 120, placeholder=" ..."),
        ]


def read_card(samples: str, images: int) -> SampleCard | None:
    """The card beside samples, an .npz or a folder, of so many images; None where there is no file.

    InputError for a file that is damaged, or of other images.
    """
    file = card_path(samples)
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        names = [f"{seed:06}.png" for seed in fields["seeds"]]
        if len(names) == images:
            order = np.argsort(names) if Path(samples).is_dir() else np.arange(images)  # a folder is read by its file names
            in_order = {name: fields[name] and [fields[name][i] for i in order] for name in ("seeds", "labels")}
            card = SampleCard(**{name: (fields | in_order)[name] for name in SampleCard.__dataclass_fields__})
            card.lines(images)  # which fails where a value is of another type
            return card
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    raise InputError(f"{file} is not what `sample` writes beside {images} images: nothing says how these were made")


def card_path(samples: str) -> Path:
    """Where the card of samples lies: beside the .npz or the folder, with .json added to its name."""
    return Path(f"{samples.rstrip('/')}.json")


def find_grid_name(model: str, lams: list[float], denoise: bool) -> str:
    """The name of the grid with these λ, found by making each grid on the model's schedule; "listed" if it is none of them."""
    if len(lams) <= 2:
        return "of both ends alone"
    try:
        schedule = pretrained.load(model).model.schedule
    except InputError:
        return f"unknown ({model} is not here)"

    def equal(candidate: np.ndarray) -> bool:
        return np.allclose(candidate, lams, rtol=0, atol=1e-6)

    for name in (*grid.GRIDS, *grid.TAUS):
        with suppress(InputError):  # no such grid, or none on labels
            made = grid.make(name, schedule, len(lams) - 1 + denoise, denoise=denoise)[: len(lams)]
            if equal(made) or equal(grid.snap(made, schedule)):
                return name
    return "listed"
