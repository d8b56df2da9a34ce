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

Standard errors are those of drawing the samples anew: of the Fréchet distance by the jackknife over ten blocks, of shares by the
binomial law, which for recall, since neighbours share their balls, is about a third too small; that of the kernel distance, from
the spread over pairs of blocks, is of drawing the reference anew, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.files import write_json
from diffode.images.datasets import ImageSet
from diffode.models import checkpoint
from diffode.models.classifiers import REFERENCE
from experiments.metrics import features as known
from experiments.metrics.features import Features, Floats, Pixels

KEEP = 10_000  # features of a reference that are kept one by one
BLOCKS, LARGEST = 10, 1000  # of the jackknife; images in a block of the kernel distance, as the field takes them
FEWEST = 2 * BLOCKS
CHUNK = 1000  # rows of a matrix of distances


@dataclass(frozen=True)
class Number:
    """error: the standard error; images: how many samples it is of; against: and how many images of the reference."""

    name: str
    value: float
    error: float
    images: int
    against: int


@dataclass(frozen=True)
class Reference:
    """Images as they are compared with. identity: of the features; data: of the images, as ImageSet has it; mean (d,) and
    covariance (d, d) of all of them; sample: features of at most KEEP, in chance order; shares: of each class; or None."""

    features: str
    identity: str
    data: Mapping[str, Any]
    mean: Floats
    covariance: Floats
    sample: Floats | None = None
    shares: Floats | None = None


def describe(images: ImageSet, features: Features) -> Reference:
    """The reference that images are."""
    _enough(len(images.pixels), images.name)
    found, probabilities = features.extract(images.pixels)
    order = np.random.default_rng(0).permutation(len(found))[:KEEP]
    shares = None if probabilities is None else _shares(probabilities)
    mean, covariance = found.mean(0), np.cov(found, rowvar=False)
    return Reference(features.name, features.identity, images.identity, mean, covariance, found[order], shares)


def save(path: Path, reference: Reference, *, command: str) -> None:
    """Write a reference as safetensors, its sample as float16, with a card that path.json repeats."""
    assert reference.sample is not None
    arrays = {"mean": reference.mean, "covariance": reference.covariance, "sample": reference.sample.astype(np.float16)}
    arrays |= {} if reference.shares is None else {"shares": reference.shares}
    card = {"kind": "statistics", "features": reference.features, "identity": reference.identity, "data": dict(reference.data)}
    card |= {"command": command, "date": date.today().isoformat()}
    checkpoint.save(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, card)
    write_json(path.with_suffix(".json"), card)


def load(features: Features, path: Path = REFERENCE / "fashion-train.safetensors") -> Reference:
    """The reference of a file, by default the shipped one, of Fashion-MNIST's 60,000 training images; InputError if it was made
    in other features than these."""
    tensors, card = checkpoint.read(path, "statistics")
    if card["identity"] != features.identity:
        raise InputError(
            f"{path} was made in the features of {card['features']} {card['identity'][:8]}, not of {features.name} "
            f"{features.identity[:8]}: describe real images in these (--reference and their path)"
        )
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    return Reference(card["features"], card["identity"], card["data"], **arrays)


def published(path: str | Path, features: Features) -> Reference | None:
    """The reference that the statistics of FID are, an .npz of `mu` (d,) and `sigma` (d, d), taken to be of these features; it
    gives the Fréchet distance alone. None for all other files; InputError for statistics of another dimension."""
    arrays = _arrays(Path(path))
    if not {"mu", "sigma"} <= arrays.keys():
        return None
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    if (mean.shape, covariance.shape) != ((features.dimension,), (features.dimension,) * 2):
        raise InputError(
            f"{path} has statistics mu {mean.shape} and sigma {covariance.shape}, where the {features.name} has "
            f"{features.dimension} features: name those made in the same features"
        )
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    whole = {"name": Path(path).stem, "images": 0, "sha256": digest}  # of how many images it does not say
    return Reference(features.name, features.identity, whole, mean, covariance)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """mu and sigma of an .npz, if it has them; anything else is for others to read or to refuse."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("mu", "sigma") if name in file}
    except Exception:  # a folder, no archive, or a broken one
        return {}


def measure(
    pixels: Pixels,
    labels: NDArray[np.int64] | None = None,
    *,
    features: Features | str = "classifier",
    reference: Reference | None = None,
    k: int = 3,
) -> dict[str, Number]:
    """All numbers of samples, uint8 (n, height, width, channels), by key; labels: those they were drawn with, (n,).

    The reference is the shipped one unless it is given. InputError for fewer than FEWEST images, for images the features do not
    take, for labels that are no classes, and for a reference in other features.
    """
    features = known.load(features) if isinstance(features, str) else features
    reference = reference or load(features)
    if reference.identity != features.identity:
        raise InputError(f"the reference is in other features than those of this {features.name}: describe its images in these")
    found, probabilities = features.extract(pixels)
    numbers = compare(found, reference, names=features.names, k=k)
    if probabilities is None:
        return numbers
    given = probabilities.argmax(1)
    if labels is not None:
        if labels.shape != given.shape or not 0 <= labels.min() <= labels.max() < len(features.classes):
            raise InputError(
                f"expected a label from 0 to {len(features.classes) - 1} for each of {len(given)} images, not {labels.shape} "
                f"from {labels.min()} to {labels.max()}: these are no classes of the {features.name}"
            )
        numbers["own label"] = _share("own label", given == labels, len(given), 0)
    if reference.shares is not None:
        difference = _shares(probabilities) - reference.shares
        each = 0.5 * np.sign(difference)[given]  # what an image adds, so that the error is that of a mean
        classes = float(np.abs(difference).sum() / 2), float(each.std() / len(each) ** 0.5)
        numbers["classes"] = Number("class histogram distance", *classes, len(given), reference.data["images"])
    return numbers


def compare(
    found: Floats, reference: Reference, *, names: tuple[str, str] = ("Fréchet", "kernel"), k: int = 3
) -> dict[str, Number]:
    """What needs features alone, (n, d): the Fréchet and the kernel distance under these names, precision and recall."""
    _enough(len(found), "these samples")
    real = points(reference.mean, reference.covariance)
    frechet, error, unbiased = jackknife(len(found), lambda rows: frechet_distance(found[rows], real))
    n, all_images = len(found), reference.data["images"]
    distance = {
        "frechet": Number(names[0], frechet, error, n, all_images),
        "frechet unbiased": Number(f"{names[0]}, N → ∞", unbiased, error, n, all_images),
    }
    if reference.sample is None:
        return distance
    shuffled = found[np.random.default_rng(1).permutation(n)]
    equal = (part[: min(n, len(reference.sample))] - reference.mean for part in (shuffled, reference.sample))  # as many of each
    x, y = (torch.from_numpy(part).float() for part in equal)
    radii_x, radii_y = _radii(x, k), _radii(y, k)
    return distance | {
        "kernel": Number(names[1], *_kernel(shuffled, reference.sample), n, len(reference.sample)),
        "precision": _share(f"precision, k = {k}", _within(x, y, radii_y), len(x), len(y)),
        "recall": _share(f"recall, k = {k}", _within(y, x, radii_x), len(x), len(y)),
    }


def frechet_distance(x: Floats, y: Floats) -> float:
    """|m_x − m_y|² + tr(C_x + C_y − 2 (C_x C_y)^½), of the means and covariances of two sets of features, (n, d)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Given(x.shape[1]))
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    return float(metric.compute())


def points(mean: Floats, covariance: Floats) -> Floats:
    """2 d features that have this mean (d,) and covariance (d, d): from the mean along each principal axis, forth and back."""
    variances, axes = np.linalg.eigh(covariance)
    steps = axes.T * np.sqrt(np.maximum(variances, 0) * (len(mean) - 0.5))[:, None]
    return mean + np.concatenate([steps, -steps])


def jackknife(n: int, statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float, float]:
    """statistic(rows) of all n rows, its standard error, and what it would be without a bias of 1/n: by leaving out each of ten
    blocks of the rows in chance order (Quenouille, 1956; Tukey, 1958)."""
    order = np.random.default_rng(0).permutation(n)
    blocks = np.array_split(order, BLOCKS)
    without = np.array([statistic(np.concatenate([*blocks[:i], *blocks[i + 1 :]])) for i in range(BLOCKS)])
    whole, error = statistic(order), ((BLOCKS - 1) * without.var()) ** 0.5
    return whole, float(error), float(BLOCKS * whole - (BLOCKS - 1) * without.mean())


class _Given(nn.Identity):
    """Stands where torchmetrics has a network: what it is given are features already."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension


def _kernel(x: Floats, y: Floats) -> tuple[float, float]:
    """MMD² as the mean over pairs of blocks, x and y being in chance order, and its standard error."""
    from torchmetrics.image.kid import poly_mmd

    size = min(LARGEST, min(len(x), len(y)) // BLOCKS)
    xs, ys = (torch.from_numpy(part[: len(part) // size * size]).split(size) for part in (x, y))
    values = np.array([float(poly_mmd(ys[i % len(ys)], block)) for i, block in enumerate(xs)])
    return float(values.mean()), float(values.std(ddof=1) / min(len(xs), len(ys)) ** 0.5)


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other."""
    return torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).values[:, k] for part in x.split(CHUNK)])


def _within(x: Tensor, centres: Tensor, radii: Tensor) -> NDArray[np.bool_]:
    """Of each row of x, whether it is in the ball of some centre."""
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in x.split(CHUNK)]).numpy()


def _share(name: str, right: NDArray[np.bool_], images: int, against: int) -> Number:
    """The share of True, and its standard error by the binomial law."""
    share = float(right.mean())
    return Number(name, share, (share * (1 - share) / len(right)) ** 0.5, images, against)


def _shares(probabilities: Floats) -> Floats:
    """The share of images that are given each class."""
    return np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(probabilities)


def _enough(n: int, what: str) -> None:
    if n < FEWEST:
        raise InputError(f"{what}: {n} images say nothing of a distribution: at least {FEWEST} are needed, and 10,000 are usual")
