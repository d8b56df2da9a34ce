"""How samples were made, as `sample` writes it in a JSON file beside them, and the part of it that every measurement repeats.

A card is data: the model and the solver that it names are names here, which are neither looked for nor loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from diffode.errors import InputError, one_line, shown
from diffode.reading import parse_json, read_bytes, reading

OF_ALL, OF_EACH = 4 * 2**20, 200  # the most bytes of a card: of what is said once, its grid among it, and of each image
NFE_RULE = "evaluations of ε, the mean of the images; network_calls has two for each that is guided"
USUAL = {"guidance": 1.0, "clip": False, "threshold": None, "dtype": "float32"}  # not worth a word
USUAL |= {"init": None, "noise": "seeded", "guidance_interval": None, "guidance_rescale": 0.0}
OPTIONAL = ("grid_name", "init", "noise", "guidance_interval", "guidance_rescale")  # not on all cards


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
    grid: list[float | str]  # "-inf" where it begins at pure noise
    denoise: bool
    seeds: list[int]
    labels: list[int] | None
    grid_name: str = "unknown"  # on cards of before it was written
    init: str | None = None  # the SHA-256 of images that were noised, to begin with
    noise: str = "seeded"
    guidance_interval: list[float] | None = None
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        for name, fits in FIELDS.items():
            if not fits(value := getattr(self, name)):
                raise InputError(f"its {name} is {shown(value)}")
        if self.labels is not None and len(self.labels) != len(self.seeds):
            raise InputError(f"it has {len(self.labels)} labels of {len(self.seeds)} seeds")

    def in_order_of_files(self) -> SampleCard:
        """The card with its seeds and labels in the order in which a folder is read, which is that of the files' names."""
        order = np.argsort([f"{seed:06}.png" for seed in self.seeds])
        return replace(self, seeds=[self.seeds[i] for i in order], labels=self.labels and [self.labels[i] for i in order])

    def summary(self, n: int) -> dict[str, Any]:
        """What goes with every measurement of the first n images, for JSON."""
        fields, seeds = asdict(self), self.seeds[:n]
        lams, denoise, grid_name, _, _ = (fields.pop(name) for name in ("grid", "denoise", "grid_name", "seeds", "labels"))
        last = float(lams[-1])
        end = f"to λ = {last:g} and σ = 0" if denoise else f"to λ = {last:g}, σ/α = {np.exp(-last):.4g}"
        consecutive = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        return {
            **fields,
            "nfe_rule": NFE_RULE,
            "grid": lams,
            "denoise": denoise,
            "tau": grid_name,
            "end": end,
            "seeds": f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds)),
        }

    def lines(self, n: int) -> list[str]:
        """The same in three lines of text."""
        summary, steps = self.summary(n), len(self.grid) - 1 + self.denoise
        unusual = {name: summary[name] for name, value in USUAL.items() if summary[name] != value}
        options = "".join(f", {name} {value}" for name, value in {**self.options, **unusual}.items())
        return [
            one_line(f"made by {self.solver}{options}, {self.nfe:g} NFE per image, from {self.model}", 200),
            one_line(
                f"grid {self.grid_name}: {steps} step{'s' * (steps > 1)} from λ = {float(self.grid[0]):g} {summary['end']}", 200
            ),
            shorten(f"seeds {summary['seeds']}", 120, placeholder=" ..."),
        ]


def _are(fits: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    """Whether a value is a list of such values, at least so many."""
    return lambda values: isinstance(values, list) and len(values) >= least and all(map(fits, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_grid(value: Any) -> bool:
    """Numbers, of which the first may be −∞, pure noise."""
    return _are(_is_number, 1)([0.0, *value[1:]] if isinstance(value, list) and value[:1] == ["-inf"] else value)


def _is_option(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "sha256", "solver", "dtype", "command", "grid_name", "noise"), _is_text),
    **dict.fromkeys(("guidance", "guidance_rescale", "nfe", "network_calls"), _is_number),
    "guidance_interval": lambda value: value is None or (_are(_is_number, 2)(value) and len(value) == 2),
    **dict.fromkeys(("clip", "denoise"), lambda value: isinstance(value, bool)),
    "options": lambda value: isinstance(value, dict) and all(map(_is_option, value.values())),
    "threshold": lambda value: value is None or _is_number(value),
    "init": lambda value: value is None or _is_text(value),
    "grid": _is_grid,
    "seeds": _are(_is_whole, 1),
    "labels": lambda value: value is None or _are(_is_whole)(value),
}


def read_card(samples: str, images: int) -> SampleCard | None:
    """The card beside samples, an .npz or a folder, of so many images; None where there is no file.

    InputError for a file that is damaged, or of other images.
    """
    file = card_path(samples)
    if not file.exists():
        return None
    with reading(file, "card of these samples", f"what `sample` writes beside {images} images; nothing says how these were made"):
        fields = parse_json(read_bytes(file, OF_ALL + OF_EACH * images))
        card = SampleCard(
            **{name: fields[name] for name in SampleCard.__dataclass_fields__ if name in fields or name not in OPTIONAL}
        )
        if len(card.seeds) != images:
            raise InputError(f"it has {len(card.seeds)} seeds")
        return card.in_order_of_files() if Path(samples).is_dir() else card


def card_path(samples: str) -> Path:
    """Where the card of samples lies: beside the .npz or the folder, with .json added to its name."""
    return Path(f"{samples.rstrip('/')}.json")
