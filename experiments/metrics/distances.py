"""How good samples are: numbers that compare them with a reference in some features, each with its standard error.

x are the features of the samples, y those of the reference, in d dimensions; m and C are means and covariances, and k is the
kernel (x·y/d + 1)³:

    frechet      |m_x − m_y|² + tr(C_x + C_y − 2 (C_x C_y)^½)                             Heusel et al., 2017
    kernel       E k(x, x') + E k(y, y') − 2 E k(x, y), x ≠ x', y ≠ y': MMD², unbiased    Bińkowski et al., 2018
    precision    the share of x that are no further from some y than its k-th nearest     Kynkäänniemi et al., 2019
    recall       the same of y among x
    own label    the share of samples that the classifier gives the label they were drawn with
    classes      ½ Σ |share of the samples − share of the reference|, over the classes that the classifier gives them

The Fréchet distance of N samples is too large by about c/N, c depending on what is compared (Chong and Forsyth, 2020), and
precision and recall depend on N, too: compare numbers of the same N only. `frechet unbiased` is the jackknife's, without c/N.

Standard errors are those of drawing the samples anew (measurement.py). That of recall is about a third too small, since
neighbours share their balls; that of the kernel distance, from the spread over pairs of blocks, includes drawing the reference
anew.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffode.errors import InputError
from experiments.metrics import references
from experiments.metrics.features import Features, Floats, Pixels, load_features
from experiments.metrics.frechet import frechet_distance
from experiments.metrics.measurement import BLOCKS, Measurement, jackknife, require_enough, share
from experiments.metrics.references import Reference, class_shares

MAX_BLOCK = 1000  # images in a block of the kernel distance, as the field takes them
CHUNK = 1000  # rows of a matrix of distances


def measure(
    pixels: Pixels,
    labels: NDArray[np.int64] | None = None,
    *,
    features: Features | str = "classifier",
    reference: Reference | None = None,
    k: int = 3,
) -> dict[str, Measurement]:
    """All numbers of samples, by key.

    pixels: uint8 (n, height, width, channels); labels: those the samples were drawn with, (n,); features: or their name;
    reference: the shipped one by default; k: of the k-th nearest, for precision and recall.

    InputError for fewer than MIN_IMAGES, for images the features do not take, for labels that are no classes, and for a reference
    in other features.
    """
    features = load_features(features) if isinstance(features, str) else features
    reference = reference or references.load(features)
    if reference.identity != features.identity:
        raise InputError(f"the reference is in other features than those of this {features.name}: describe its images in these")
    x, probabilities = features.extract(pixels)
    return compare(x, reference, names=features.names, k=k) | _of_classes(probabilities, labels, features, reference)


def compare(
    x: Floats, reference: Reference, *, names: tuple[str, str] = ("Fréchet", "kernel"), k: int = 3
) -> dict[str, Measurement]:
    """The numbers that need features x (n, d) alone: the Fréchet and the kernel distance under these names, precision, recall.

    Of a reference without a sample, the Fréchet distance alone.
    """
    require_enough(len(x), "these samples")
    n, n_reference = len(x), reference.data["images"]
    frechet, error, unbiased = jackknife(n, lambda rows: frechet_distance(x[rows], reference.moments))
    measurements = {
        "frechet": Measurement(names[0], frechet, error, n, n_reference),
        "frechet unbiased": Measurement(f"{names[0]}, N → ∞", unbiased, error, n, n_reference),
    }
    if reference.sample is None:
        return measurements
    shuffled = x[np.random.default_rng(1).permutation(n)]
    kernel = Measurement(names[1], *kernel_distance(shuffled, reference.sample), n, len(reference.sample))
    size = min(n, len(reference.sample))
    # centred, so that float32 is enough for distances
    centred_x, centred_y = (
        torch.from_numpy(part[:size] - reference.moments.mean).float() for part in (shuffled, reference.sample)
    )
    precision, recall = precision_and_recall(centred_x, centred_y, k)
    return measurements | {"kernel": kernel, "precision": precision, "recall": recall}


def _of_classes(
    probabilities: Floats | None, labels: NDArray[np.int64] | None, features: Features, reference: Reference
) -> dict[str, Measurement]:
    """The numbers that need the classes that the samples are given; {} of features without classes."""
    if probabilities is None:
        return {}
    predicted, measurements = probabilities.argmax(1), {}
    if labels is not None:
        if labels.shape != predicted.shape or not 0 <= labels.min() <= labels.max() < len(features.classes):
            raise InputError(
                f"expected a label from 0 to {len(features.classes) - 1} for each of {len(predicted)} images, not {labels.shape} "
                f"from {labels.min()} to {labels.max()}: these are no classes of the {features.name}"
            )
        measurements["own label"] = share("own label", predicted == labels, len(predicted), 0)
    if reference.shares is not None:
        difference = class_shares(probabilities) - reference.shares
        terms = 0.5 * np.sign(difference)[predicted]  # what each image adds, so that the error is that of a mean
        value, error = float(np.abs(difference).sum() / 2), float(terms.std() / len(terms) ** 0.5)
        name = "class histogram distance"
        measurements["classes"] = Measurement(name, value, error, len(predicted), reference.data["images"])
    return measurements


def kernel_distance(x: Floats, y: Floats) -> tuple[float, float]:
    """MMD² as the mean over pairs of blocks, and its standard error; x (n, d) and y (m, d) must be in random order."""
    size = min(MAX_BLOCK, min(len(x), len(y)) // BLOCKS)
    xs, ys = ([part[i : i + size] for i in range(0, len(part) - size + 1, size)] for part in (x, y))
    values = np.array([mmd2(block, ys[i % len(ys)]) for i, block in enumerate(xs)])
    return float(values.mean()), float(values.std(ddof=1) / min(len(xs), len(ys)) ** 0.5)


def mmd2(x: Floats, y: Floats) -> float:
    """The unbiased estimate of MMD² under the kernel k(x, y) = (x·y/d + 1)³, of samples x (n, d) and y (m, d):

    Σ_{i≠j} k(x_i, x_j) / (n (n − 1)) + Σ_{i≠j} k(y_i, y_j) / (m (m − 1)) − 2 Σ_{i,j} k(x_i, y_j) / (n m)

    Bińkowski et al. (2018), Eq. 4.
    """

    def kernel(a: Floats, b: Floats) -> Floats:
        base = a @ b.T / a.shape[1] + 1
        return base * base * base

    def within(a: Floats) -> float:
        matrix = kernel(a, a)
        return float((matrix.sum() - np.trace(matrix)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def precision_and_recall(x: Tensor, y: Tensor, k: int) -> tuple[Measurement, Measurement]:
    """The share of x in the balls of y, and of y in those of x: a ball reaches to the k-th nearest of its own set."""
    return (
        share(f"precision, k = {k}", _in_some_ball(x, y, _radii(y, k)), len(x), len(y)),
        share(f"recall, k = {k}", _in_some_ball(y, x, _radii(x, k)), len(x), len(y)),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other."""
    return torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).values[:, k] for part in x.split(CHUNK)])


def _in_some_ball(x: Tensor, centres: Tensor, radii: Tensor) -> NDArray[np.bool_]:
    """Whether each row of x is in the ball of some centre."""
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in x.split(CHUNK)]).numpy()
