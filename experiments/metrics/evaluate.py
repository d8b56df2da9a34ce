"""python cli.py evaluate: the numbers of experiments.metrics.distances for images on disk, with all that they are relative to.

A number means something beside the solver, grid, end point, NFE and seeds of the samples, how many they are, and what they are
compared with; what `sample` wrote beside them says the first half, and both halves go with every number that is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffode import grid
from diffode.errors import InputError
from diffode.files import write_json
from diffode.images import datasets
from diffode.images.datasets import ImageSet
from diffode.models import pretrained
from experiments.common.results import provenance
from experiments.metrics import distances, features
from experiments.metrics.distances import Number, Reference
from experiments.metrics.features import Features
from experiments.sampling.recipe import choose_device

USUAL = 10_000  # images, fewer of which are warned of
SPLITS = {"fashion-train": "train", "fashion-test": "test"}
REPEATED = ("model", "sha256", "solver", "options", "guidance", "clip", "threshold", "dtype", "nfe", "network_calls", "command")


@dataclass(frozen=True)
class Evaluation:
    """made: how the samples were, {} if nothing says it; against: features and reference; warnings: sentences."""

    samples: str
    images: int
    made: Mapping[str, Any]
    against: Mapping[str, Any]
    numbers: Mapping[str, Number]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        reference = self.against["reference"]
        lines = [f"{self.samples}: {self.images} images", *(_told(self.made) if self.made else [])]
        size = f"{reference['images'] or 'an unknown number of'} images ({reference['sha256'][:8]})"
        lines += [
            f"compared with {reference['name']}, {size}, in the features of {self.against['features']} "
            f"{self.against['identity'][:8]}\n",
            f"{'':35} {'value':>10} {'std. error':>11} {'images':>8} {'against':>8}",
        ]
        return "\n".join(
            lines
            + [f"{n.name:35} {n.value:10.5f} {n.error:11.5f} {n.images:8} {n.against or '':>8}" for n in self.numbers.values()]
        )


def evaluate(
    samples: str,
    *,
    reference: str = "fashion-train",
    features_name: str = "classifier",
    n: int | None = None,
    device: str = "auto",
    out: Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Evaluation:
    """Measure the images at `samples`, the first n of them, and write the numbers to the JSON file `out`.

    samples: an .npz or a folder, as `sample` writes them, or fashion-test, the real images whose numbers are the floor of all
    others; reference: the same, or fashion-train. InputError for what is neither, and for images that the features do not take.
    """
    if out is not None and (out.suffix != ".json" or out.is_dir() or (out.exists() and not overwrite)):
        raise InputError(f"{out} exists or is no .json file: give --json another name, or --overwrite")
    images = _read(samples)
    card, problems = _card(samples, len(images.pixels))
    taken = features.load(features_name, choose_device(device))
    labels = _labels(images, card, taken.classes)
    pixels, labels = images.pixels[:n], labels if labels is None else labels[:n]
    compared = reference_of(reference, taken)
    numbers = distances.measure(pixels, labels, features=taken, reference=compared)
    if len(pixels) < USUAL:
        problems += (
            f"{len(pixels)} images are fewer than the usual {USUAL}: the Fréchet distance is too large by what is in proportion "
            "to 1/N, so compare it only with that of as many images",
        )
    if taken.classes and labels is None:
        problems += (f"{samples} has no labels that the {taken.name} knows: which share is given its own cannot be said",)
    made = _made(card, len(pixels)) if card else {}
    against = {"features": taken.name, "identity": taken.identity, "reference": dict(compared.data)}
    done = Evaluation(samples, len(pixels), made, against, numbers, problems)
    if out is not None:
        said = {"samples": images.identity, "images": len(pixels), "made": made, **against}
        write_json(out, {**said, "numbers": {key: asdict(number) for key, number in numbers.items()}, **provenance(command)})
    return done


def _read(name: str) -> ImageSet:
    """The images of a name or path; InputError for none."""
    path = Path(name)
    if name in SPLITS and not path.exists():
        if SPLITS[name] == "test" and not datasets.FASHION_MNIST.is_dir():
            return datasets.packaged()
        return datasets.load(split=SPLITS[name])
    if path.is_dir() or (path.suffix == ".npz" and path.exists()):
        return datasets.load(path)
    why = "is not a set of images" if path.exists() else "does not exist"
    raise InputError(f"{name} {why}: give an .npz or a folder, as `sample --out` writes them, or {' or '.join(SPLITS)}")


def reference_of(name: str, taken: Features) -> Reference:
    """The shipped statistics, or those of the images of that name or path."""
    shipped = name == "fashion-train" and taken.name == "classifier" and not Path(name).exists()
    return distances.load(taken) if shipped else distances.published(name, taken) or distances.describe(_read(name), taken)


def _card(samples: str, images: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `sample` wrote beside its images, seeds and labels in the order in which they are read, or {} if nothing there fits;
    and what is to be said of it."""
    file = Path(f"{samples.rstrip('/')}.json")
    if not file.exists():
        return {}, () if samples in SPLITS else (f"there is no {file}: nothing says how these images were made",)
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if len(card["seeds"]) == images and {*REPEATED, "grid", "denoise", "labels"} <= card.keys():
            names = [f"{seed:06}.png" for seed in card["seeds"]]
            order = np.argsort(names) if Path(samples).is_dir() else np.arange(images)
            ordered = {name: card[name] and [card[name][i] for i in order] for name in ("seeds", "labels")}
            _told(_made(card | ordered, images))  # what cannot be told is no card of samples
            return card | ordered, ()
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # damaged, or of something else
        pass
    return {}, (f"{file} is not what `sample` writes beside {images} images: nothing says how these were made",)


def _labels(images: ImageSet, card: dict[str, Any], classes: tuple[str, ...]) -> NDArray[np.int64] | None:
    """The labels of images as numbers of these classes, from the images or, of a folder, its card; None without."""
    if images.labels is None and card.get("labels"):
        return np.array(card["labels"])
    if images.labels is None or not images.classes:
        return images.labels
    if not set(images.classes) <= set(classes):
        return None
    return np.array([classes.index(name) for name in images.classes])[images.labels]


def _made(card: dict[str, Any], n: int) -> dict[str, Any]:
    """What every number repeats of the card."""
    seeds = card["seeds"][:n]
    run = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    last = card["grid"][-1]
    return {
        **{name: card[name] for name in REPEATED},
        "nfe_rule": "evaluations of ε, the mean of the images; network_calls has two for each that is guided",
        "grid": card["grid"],
        "denoise": card["denoise"],
        "tau": tau_rule(card),
        "end": f"to λ = {last:g} and σ = 0" if card["denoise"] else f"to λ = {last:g}, σ/α = {np.exp(-last):.4g}",
        "seeds": f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds)),
    }


def _told(made: Mapping[str, Any]) -> list[str]:
    """The same in three lines."""
    plain = {"guidance": 1.0, "clip": False, "threshold": None, "dtype": "float32"}
    special = {name: made[name] for name, value in plain.items() if made[name] != value}
    options = "".join(f", {name} {value}" for name, value in {**made["options"], **special}.items())
    steps = len(made["grid"]) - 1 + made["denoise"]
    return [
        f"made by {made['solver']}{options}, {made['nfe']:g} NFE an image, from {made['model']}",
        f"grid {made['tau']}: {steps} step{'s' * (steps > 1)} from λ = {made['grid'][0]:g} {made['end']}",
        shorten(f"seeds {made['seeds']}", 120, placeholder=" ..."),
    ]


def tau_rule(card: Mapping[str, Any]) -> str:
    """The name of the grid of a card, found by making each on its model's schedule; "listed" if it is none of them."""
    lams, denoise = np.array(card["grid"]), card["denoise"]
    if len(lams) <= 2:
        return "of both ends alone"
    try:
        schedule = pretrained.load(card["model"]).model.schedule
    except InputError:
        return f"unknown ({card['model']} is not here)"
    for name in (*grid.GRIDS, *grid.TAUS):
        with suppress(InputError):  # no such grid, or none on labels
            made = grid.make(name, schedule, len(lams) - 1 + denoise, denoise=denoise)[: len(lams)]
            if np.allclose(made, lams, rtol=0, atol=1e-6) or np.allclose(grid.snap(made, schedule), lams, rtol=0, atol=1e-6):
                return name
    return "listed"
