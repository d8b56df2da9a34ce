"""Measures of a contender's samples beside their pixelwise distance from the solution's.

    ssim, lpips    of images, pair by pair with the solution's (experiments/metrics/similarity.py), the mean over samples
    features       with f the features of an image (experiments/metrics/features.py), as 8-bit pixels:
                   sqrt(mean |f(x) − f(x*)|²) over sqrt(2 mean |f(x*) − mean f(x*)|²), which is 1 for unrelated samples
    frechet        the Fréchet distance of the samples from data, if any are given, with its standard error frechet_se
    log_p          for an exact mixture: the mean over samples of (log p(x) − log p(x*)) per pixel, in nats, p being the density
                   of x's class at the λ where all contenders end
    components     for an exact mixture: the mean total variation between the posteriors of its components, p(k | x) and
                   p(k | x*), as if x and x* were data, of any class

A Measure knows the solution's samples, and is called with a contender's, both (n, *shape), or with their images, if the model
decodes its samples to some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.images import drawings
from diffode.images.datasets import to_pixels
from diffode.mixture import Mixture, log_weights
from experiments.comparison.problem import Problem
from experiments.metrics import distances, references
from experiments.metrics.features import Features, Floats, load_features
from experiments.metrics.measurement import MIN_IMAGES
from experiments.metrics.references import Reference
from experiments.metrics.similarity import Similarity
from experiments.metrics.similarity import choose as choose_similarities

Numbers = dict[str, float]
Measure = Callable[[Tensor], Numbers]
AUTO, NONE = "auto", "none"  # of features; similarities have the same
AUTOMATIC = "classifier"  # what "auto" stands for, where images are of the size that it takes


@dataclass(frozen=True)
class Measures:
    """The measures chosen for a problem. features: the extractor, or None. data: what the Fréchet distance is measured from, or
    None. similarities: those of pairs."""

    problem: Problem
    features: Features | None
    data: Reference | None
    similarities: Sequence[Similarity] = ()

    @property
    def about(self) -> dict[str, Any]:
        """The extractor and the data, for the rows."""
        return {
            "features": self.features and f"{self.features.name} {self.features.identity[:8]}",
            "data": self.data and dict(self.data.data),
            **({"similarity": [each.name for each in self.similarities]} if self.similarities else {}),
        }

    def of_images(self, solution: Tensor) -> Measure:
        """All measures of what a person looks at, as one, for contenders whose solution looks so (Problem.images)."""
        measures = [] if self.features is None else [feature_measure(self.features, solution, self.data)]
        pairs = {each.name: each for each in self.similarities}
        measures += [lambda images: {name: each.mean(images, solution) for name, each in pairs.items()}] if pairs else []
        return _joined(measures)

    def of_samples(self, solution: Tensor) -> Measure:
        """All others as one, for contenders with this solution (n, *shape)."""
        measures = []
        if isinstance(self.problem.loaded.model.network, Mixture):
            lam = float("inf") if self.problem.settings.denoise else self.problem.schedule.lam_max
            exact = self.problem.settings.source.load(torch.float64).model.network
            assert isinstance(exact, Mixture)
            measures.append(mixture_measure(exact, solution, lam, self.problem.labels))
        return _joined(measures)

    def against(self, solution: Tensor) -> Measure:
        """All measures as one, for contenders with this solution (n, *shape)."""
        of_samples, of_images = self.of_samples(solution), self.of_images(self.problem.images(solution))
        return lambda x: {**of_images(self.problem.images(x)), **of_samples(x)}


def _joined(measures: Sequence[Measure]) -> Measure:
    return lambda x: {name: number for measure in measures for name, number in measure(x).items()}


def choose_measures(features: str, data: str | None, problem: Problem, similarity: str = AUTO) -> Measures:
    """The measures of a problem. similarity: as similarity.choose has it.

    features: a name in features.FEATURES, "none", or "auto", the classifier for images of its size. data: what the Fréchet
    distance is measured from, as `cli.py evaluate --reference` has it. InputError for images that the features do not take,
    and for too few samples.
    """
    image, n = problem.image, problem.settings.n
    alike = choose_similarities(similarity, image, problem.loaded.model.decode is not None)
    name = AUTOMATIC if features == AUTO else features
    chosen = None if features == NONE else load_features(name, problem.settings.recipe.device)
    if chosen is None or (features == AUTO and (n < 2 or image != chosen.takes)):
        if data is not None:
            raise InputError(f"data {data} are compared in features: choose inception, which takes images of any size")
        return Measures(problem, None, None, alike)
    if image != (chosen.takes or image) or not drawings.are_images(image):
        raise InputError(f"the {chosen.name} does not take samples of {image}: choose no features (none)")
    if n < 2:
        raise InputError("a distance in features is relative to that of unrelated samples: raise n, or choose no features (none)")
    if data is not None and n < MIN_IMAGES:
        raise InputError(f"data {data} need at least {MIN_IMAGES} samples to compare with, not {n}: raise n")
    return Measures(problem, chosen, None if data is None else references.choose(data, chosen), alike)


def feature_measure(features: Features, solution: Tensor, data: Reference | None) -> Measure:
    """The relative distance in features, and the Fréchet distance from `data`."""

    def extract(x: Tensor) -> Floats:
        return features.extract(to_pixels(x))[0]

    def mean_square(x: Floats) -> float:
        return float(np.mean(np.sum(x**2, 1)))

    of_solution = extract(solution)
    unrelated = 2 * mean_square(of_solution - of_solution.mean(0))

    def measure(x: Tensor) -> Numbers:
        found = extract(x)
        numbers = {"features": (mean_square(found - of_solution) / unrelated) ** 0.5}
        if data is None:
            return numbers
        frechet = distances.compare(found, data)["frechet"]
        return {**numbers, "frechet": frechet.value, "frechet_se": frechet.error}

    return measure


def mixture_measure(mixture: Mixture, solution: Tensor, lam: float, labels: Sequence[int] | None) -> Measure:
    """The difference of exact log-densities at λ, where all samples are, and of the components' posteriors."""
    lams, y = torch.full((len(solution),), lam), None if labels is None else torch.tensor(labels)

    def densities(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(mixture.mean)
        return mixture.log_density(x, lams.to(x), y), torch.softmax(log_weights(mixture, x.reshape(len(x), -1)), 1)

    solution_log_p, solution_posterior = densities(solution)

    def measure(x: Tensor) -> Numbers:
        log_p, posterior = densities(x)
        return {
            "log_p": float((log_p - solution_log_p).mean()) / x[0].numel(),
            "components": float((posterior - solution_posterior).abs().sum(1).mean() / 2),
        }

    return measure
