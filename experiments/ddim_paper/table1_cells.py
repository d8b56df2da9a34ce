"""The cells of Table 1 (experiments/ddim_paper/table1.py): how their samples are made, and what is measured of them.

A cell names η, the number of steps S, and n, the number of samples: those of the first n seeds, in blocks. A network's samples
are kept in files, one for each block, and compared with real images (metrics/distances.py); those of an exact mixture are
compared with the mixture (metrics/exact_mixture.py). The floor is the same numbers of real images, or of exact samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffode import grid as grids
from diffode.errors import InputError
from diffode.files import as_json
from diffode.images import datasets, writers
from diffode.images.datasets import to_pixels
from diffode.mixture import Mixture
from diffode.models import pretrained
from diffode.reading import read_json
from diffode.schedule import Schedule
from experiments.metrics import distances, references
from experiments.metrics.exact_mixture import MixtureReference
from experiments.metrics.features import load_features
from experiments.metrics.measurement import Measurement
from experiments.sampling import generate, jobs
from experiments.sampling.recipe import Recipe
from solvers import Budget, find, sample

ETAS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{eta:.1f}": ("ddim", {"eta": eta}) for eta in (0.0, 0.2, 0.5, 1.0)},
    "sigma-hat": ("ddpm", {"variance": "large"}),
}
POOLED = 2  # a mixture's images are averaged over 2 × 2 pixels
BLOCK = 250  # samples at a time
EXACT = 10_000  # samples of a mixture itself, for its floor
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Table1Model:
    """A model of the table, and how its samples are judged.

    measure(cell, seeds): the numbers of a cell. pixels(cell, seeds): its samples as images, a block at most. floor(): the numbers
    of the floor, or None where there is none. about: what decides all of them.
    """

    measure: Callable[[Cell, list[int]], dict[str, Measurement]]
    pixels: Callable[[Cell, list[int]], writers.Pixels]
    floor: Callable[[], dict[str, Measurement]] | None
    about: dict[str, Any]


def lams_of_tau(tau: str, schedule: Schedule, steps: int) -> list[float]:
    """The λ of τ; with as many steps as there are labels these are all labels, whatever the rule. InputError for more steps."""
    if schedule.knots is not None and steps > len(schedule.knots):
        raise InputError(f"S = {steps} is more than the {len(schedule.knots)} labels that there are: take fewer steps")
    rule = "linear" if schedule.knots is not None and steps == len(schedule.knots) else tau
    return grids.tau(f"tau-{rule}", schedule, steps)[:-1].tolist()


def blocks_of(seeds: list[int]) -> list[list[int]]:
    """The seeds, BLOCK at a time."""
    return [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]


def of_mixture(loaded: pretrained.Pretrained, tau: str) -> Table1Model:
    """An exact mixture, pooled."""
    assert isinstance(loaded.model.network, Mixture)
    small = loaded.model.network.pooled(POOLED)
    small.rows = BLOCK  # larger matrix products than those for single samples
    model = loaded.model.replace(network=small, shape=small.image)
    exact = MixtureReference(small)

    def draw(cell: Cell, seeds: list[int]) -> torch.Tensor:
        solver, options = ETAS[cell["eta"]]
        budget = Budget(grid=lams_of_tau(tau, model.schedule, cell["S"]), denoise=True)
        prepared = find(solver).prepare(budget, model.schedule, **options)
        shape = small.image
        return torch.cat([sample(model, shape=(len(block), *shape), seed=block, solver=prepared).x for block in blocks_of(seeds)])

    return Table1Model(
        lambda cell, seeds: exact.measure(draw(cell, seeds)),
        lambda cell, seeds: to_pixels(draw(cell, seeds)),
        lambda: exact.measure(small.sample(EXACT, seed=2)),
        {"pooled": POOLED, "floor": f"{EXACT:,} exact samples"},
    )


@dataclass(frozen=True)
class NetworkSamples:
    """The samples of a network, kept in `folder`, a file for each block of a cell."""

    loaded: pretrained.Pretrained
    name: str
    tau: str
    recipe: Recipe
    folder: Path

    def draw(self, cell: Cell, seeds: list[int]) -> datasets.ImageSet:
        """The samples of these seeds, one block; InputError for a file that holds those of another model or setting."""
        solver, options = ETAS[cell["eta"]]
        task = jobs.prepare_job(
            self.loaded,
            self.name,
            solver,
            Budget(grid=lams_of_tau(self.tau, self.loaded.model.schedule, cell["S"]), denoise=True),
            options=options.items(),
            seeds=seeds,
            labels=jobs.choose_labels(None, self.loaded.classes, seeds),
            batch=BLOCK,
            recipe=self.recipe,
        )
        file = self.folder / f"eta-{cell['eta']}-S-{cell['S']}" / f"{seeds[0]}-{seeds[-1]}.npz"
        if not file.exists():
            generate.generate(task, file)
        elif not _is_of(file, task.job):
            raise InputError(f"{file} holds samples of another model or setting: remove it, or choose another name for the table")
        return datasets.load(file)


def of_network(samples: NetworkSamples, features_name: str, reference: Path | None) -> Table1Model:
    """A network, compared with real images in features; reference: their path, or None for the shipped statistics."""
    if reference is None and features_name != "classifier":
        raise InputError(f"features {features_name!r} need a reference: a folder or an .npz of real images to compare with")
    features = load_features(features_name, samples.recipe.device)
    if reference is None:
        real = references.load(features)
    else:
        real = references.published(reference, features) or references.describe(datasets.load(reference), features)

    def measure(cell: Cell, seeds: list[int]) -> dict[str, Measurement]:
        blocks = [samples.draw(cell, block) for block in blocks_of(seeds)]
        labels = [block.labels for block in blocks if block.labels is not None]
        pixels = np.concatenate([block.pixels for block in blocks])
        return distances.measure(pixels, np.concatenate(labels) if labels else None, features=features, reference=real)

    def floor() -> dict[str, Measurement]:
        test = datasets.load(split="test")
        return distances.measure(test.pixels, test.labels, features=features, reference=real)

    about = {
        "dtype": samples.recipe.dtype,
        "features": f"{features.name} {features.identity[:12]}",
        "reference": dict(real.data),
    }
    has_floor = features.name == "classifier" and datasets.FASHION_MNIST.is_dir()
    return Table1Model(
        measure,
        lambda cell, seeds: samples.draw(cell, seeds).pixels,
        floor if has_floor else None,
        {**about, "floor": "the 10,000 test images"} if has_floor else about,
    )


def _is_of(file: Path, job: jobs.Job) -> bool:
    """Whether the card beside samples is that of this job."""
    try:
        card = read_json(file.with_name(f"{file.name}.json"), "card of samples", "what `sample` writes")
        return all(card[name] == value for name, value in as_json(job.as_json()).items())
    except (InputError, KeyError, TypeError):
        return False
