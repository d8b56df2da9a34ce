"""python cli.py evaluate: the numbers of experiments.metrics.distances for images on disk, with all that they are relative to.

A number means nothing without the solver, grid, end point, NFE, seeds and count of the samples, and what they are compared with.
The first half is in the card that `sample` wrote (sample_card.py); both halves go with every number that is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffode.errors import InputError
from diffode.files import write_json
from diffode.images.datasets import ImageSet
from experiments.common.results import provenance
from experiments.metrics import distances, references
from experiments.metrics.features import Features, load_features
from experiments.metrics.measurement import Measurement
from experiments.metrics.references import SPLITS, Reference
from experiments.metrics.sample_card import SampleCard, card_path, read_card
from experiments.sampling.recipe import choose_device

USUAL = 10_000  # images, fewer of which are warned of


@dataclass(frozen=True)
class Evaluation:
    """images: all that were read; n: the first of them, which were measured; card: how they were made, None if nothing says it;
    warnings: sentences."""

    samples: str
    images: ImageSet
    n: int
    card: SampleCard | None
    features: Features
    reference: Reference
    measurements: Mapping[str, Measurement]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All but the warnings."""
        return {
            "samples": self.images.identity,
            "images": self.n,
            "made": self.card.summary(self.n) if self.card else {},
            "features": self.features.name,
            "identity": self.features.identity,
            "reference": dict(self.reference.data),
            "numbers": {key: asdict(measurement) for key, measurement in self.measurements.items()},
        }

    def __str__(self) -> str:
        data, features = self.reference.data, self.features
        size = f"{data['images'] or 'an unknown number of'} images ({data['sha256'][:8]})"
        return "\n".join(
            [
                f"{self.samples}: {self.n} images",
                *(self.card.lines(self.n) if self.card else []),
                f"compared with {data['name']}, {size}, in the features of {features.name} {features.identity[:8]}\n",
                f"{'':35} {'value':>10} {'std. error':>11} {'images':>8} {'against':>8}",
                *(
                    f"{m.name:35} {m.value:10.5f} {m.error:11.5f} {m.images:8} {m.against or '':>8}"
                    for m in self.measurements.values()
                ),
            ]
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
        raise InputError(f"{out} exists or is no .json file: choose another name, or overwrite the file")
    images = references.read_images(samples)
    card, warnings = _card(samples, images)
    features = load_features(features_name, choose_device(device))
    labels = _labels(images, card, features.classes)
    pixels, labels = images.pixels[:n], labels if labels is None else labels[:n]
    compared_with = references.choose(reference, features)
    measurements = distances.measure(pixels, labels, features=features, reference=compared_with)
    if len(pixels) < USUAL:
        warnings += (
            f"{len(pixels)} images are fewer than the usual {USUAL}: the Fréchet distance is too large by what is in proportion "
            "to 1/N, so compare it only with that of as many images",
        )
    if features.classes and labels is None:
        warnings += (f"{samples} has no labels that the {features.name} knows: there is no share with their own label",)
    evaluation = Evaluation(samples, images, len(pixels), card, features, compared_with, measurements, warnings)
    if out is not None:
        write_json(out, {**evaluation.as_json(), **provenance(command)})
    return evaluation


def _card(samples: str, images: ImageSet) -> tuple[SampleCard | None, tuple[str, ...]]:
    """The card of samples, and warnings: a measurement goes without a card that is missing or does not fit."""
    try:
        card = read_card(samples, len(images.pixels))
    except InputError as problem:
        return None, (str(problem),)
    if card or samples in SPLITS:
        return card, ()
    return None, (f"there is no {card_path(samples)}: nothing says how these images were made",)


def _labels(images: ImageSet, card: SampleCard | None, classes: tuple[str, ...]) -> NDArray[np.int64] | None:
    """The labels of images as numbers of these classes, from the images or, of a folder, its card; None without."""
    if images.labels is None:
        return np.array(card.labels) if card and card.labels else None
    if not images.classes:
        return images.labels
    if not set(images.classes) <= set(classes):
        return None
    return np.array([classes.index(name) for name in images.classes])[images.labels]
