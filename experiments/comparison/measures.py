"""What else tells the samples of a contender from the solution's, beside the distance of their pixels.

    features       with f the features of an image (features.py), as 8-bit pixels:
                   sqrt(mean |f(x) − f(x*)|²) over sqrt(2 mean |f(x*) − mean f(x*)|²), which is 1 for unrelated samples
    frechet        the Fréchet distance of the samples from data, if any are given, with its standard error
    log_p          of an exact mixture: the mean over samples of (log p(x) − log p(x*)) / pixels, in nats, p being that of x's
                   class where all end
    components     of an exact mixture: the mean total variation between the posteriors of its components, p(k | x) and
                   p(k | x*), as if x and x* were data, of any class

A judge is told the solution's samples once, and is then given those of contenders, all (n, *shape).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.images import writers
from diffode.images.datasets import to_pixels
from diffode.mixture import Mixture, log_weights
from diffode.models import pretrained
from experiments.comparison.problem import Problem
from experiments.metrics import distances, references
from experiments.metrics.features import Features, Floats, load_features
from experiments.metrics.measurement import MIN_IMAGES
from experiments.metrics.references import Reference

Numbers = dict[str, float]
Judge = Callable[[Tensor], Numbers]
AUTO, NONE = "auto", "none"
AUTOMATIC = "classifier"  # where images are of the size that it takes


@dataclass(frozen=True)
class Judges:
    """features and real: those that are looked at, or None; about: what they are, for the rows."""

    problem: Problem
    features: Features | None
    real: Reference | None

    @property
    def about(self) -> dict[str, Any]:
        taken, real = self.features, self.real
        return {"features": taken and f"{taken.name} {taken.identity[:8]}", "data": real and dict(real.data)}

    def of(self, solution: Tensor) -> Judge:
        """All judges as one, for contenders with this solution."""
        made = [] if self.features is None else [of_features(self.features, solution, self.real)]
        network = self.problem.loaded.model.network
        if isinstance(network, Mixture):
            lam = float("inf") if self.problem.settings.denoise else self.problem.schedule.lam_max
            exact = pretrained.load(self.problem.settings.model, torch.float64).model.network
            assert isinstance(exact, Mixture)
            made.append(of_mixture(exact, solution, lam, self.problem.labels))
        return lambda x: {name: number for judge in made for name, number in judge(x).items()}


def choose(features: str, data: str | None, problem: Problem) -> Judges:
    """The judges of a problem.

    features: a name in features.FEATURES, "none", or "auto", the classifier for images of its size. data: what the Fréchet
    distance is measured from, as `cli.py evaluate --reference` has it. InputError for images that the features do not take,
    and for too few.
    """
    image, n = problem.loaded.image, problem.settings.n
    taken = None if features == NONE else load_features(AUTOMATIC if features == AUTO else features, problem.settings.device)
    if taken is None or (features == AUTO and (n < 2 or image != taken.takes)):
        if data is not None:
            raise InputError(f"--data {data} is compared in features: give --features inception, which takes images of any size")
        return Judges(problem, None, None)
    if image != (taken.takes or image) or not writers.are_images(image):
        raise InputError(f"the {taken.name} does not take samples of {image}: give --features none")
    if n < 2:
        raise InputError("a distance in features is relative to that of unrelated samples: raise --n, or give --features none")
    if data is not None and n < MIN_IMAGES:
        raise InputError(f"--data {data} needs at least {MIN_IMAGES} samples to compare with, not {n}: raise --n")
    return Judges(problem, taken, None if data is None else references.choose(data, taken))


def of_features(features: Features, solution: Tensor, real: Reference | None) -> Judge:
    """The distance in features, and the Fréchet distance from `real`."""

    def found(x: Tensor) -> Floats:
        return features.extract(to_pixels(x))[0]

    def mean_square(x: Floats) -> float:
        return float(np.mean(np.sum(x**2, 1)))

    theirs = found(solution)
    unrelated = 2 * mean_square(theirs - theirs.mean(0))

    def judge(x: Tensor) -> Numbers:
        mine = found(x)
        numbers = {"features": (mean_square(mine - theirs) / unrelated) ** 0.5}
        if real is None:
            return numbers
        frechet = distances.compare(mine, real)["frechet"]
        return {**numbers, "frechet": frechet.value, "frechet_se": frechet.error}

    return judge


def of_mixture(mixture: Mixture, solution: Tensor, lam: float, labels: Sequence[int] | None) -> Judge:
    """Exact log-densities at λ, where all samples are, and posteriors."""
    lams, y = torch.full((len(solution),), lam), None if labels is None else torch.tensor(labels)

    def measured(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(mixture.mean)
        return mixture.log_density(x, lams.to(x), y), torch.softmax(log_weights(mixture, x.flatten(1)), 1)

    log_p, posterior = measured(solution)

    def judge(x: Tensor) -> Numbers:
        mine, components = measured(x)
        return {
            "log_p": float((mine - log_p).mean()) / x[0].numel(),
            "components": float((components - posterior).abs().sum(1).mean() / 2),
        }

    return judge
