"""References: what samples are compared with, real images as their statistics in some features.

A reference carries the identity of its features and is refused under others, since distances in different features have nothing
to do with each other. It is made of images (`describe`), kept as a safetensors file (`save`, `load`; one of Fashion-MNIST comes
with diffode), or read from the `mu` and `sigma` that others publish for FID (`published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffode.errors import InputError, one_line, shown
from diffode.files import write_json
from diffode.images import datasets
from diffode.images.datasets import ImageSet
from diffode.models import checkpoint
from diffode.models.classifiers import REFERENCE
from diffode.reading import read_npz, reading, sha256_of
from experiments.metrics.features import Features, Floats
from experiments.metrics.frechet import Moments
from experiments.metrics.measurement import require_enough

MAX_SAMPLE = 10_000  # features of a reference that are kept one by one
SHIPPED = REFERENCE / "fashion-train.safetensors"
SPLITS = {"fashion-train": "train", "fashion-test": "test"}  # of Fashion-MNIST, by name


@dataclass(frozen=True)
class Reference:
    """features, identity: the name and the identity of the features; data: ImageSet.identity of the images; moments: of the
    features of all images; sample: the features of at most MAX_SAMPLE of them in random order, (n, d), or None; shares: of the
    images in each class, (classes,), or None."""

    features: str
    identity: str
    data: Mapping[str, Any]
    moments: Moments
    sample: Floats | None = None
    shares: Floats | None = None


def describe(images: ImageSet, features: Features) -> Reference:
    """The reference made of these images. InputError for fewer than MIN_IMAGES, and for images that the features do not take."""
    require_enough(len(images.pixels), images.name)
    values, probabilities = features.extract(images.pixels)
    order = np.random.default_rng(0).permutation(len(values))[:MAX_SAMPLE]
    shares = None if probabilities is None else class_shares(probabilities)
    return Reference(features.name, features.identity, images.identity, Moments.of(values), values[order], shares)


def class_shares(probabilities: Floats) -> Floats:
    """The share of images whose most probable class is each, (classes,), from probabilities (n, classes)."""
    return np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(probabilities)


def save(path: Path, reference: Reference, *, command: str) -> None:
    """Write a reference as safetensors, its sample as float16, with a card that path.json repeats."""
    assert reference.sample is not None
    arrays = {"mean": reference.moments.mean, "covariance": reference.moments.covariance}
    arrays["sample"] = reference.sample.astype(np.float16)
    arrays |= {} if reference.shares is None else {"shares": reference.shares}
    card = {"kind": "statistics", "features": reference.features, "identity": reference.identity, "data": dict(reference.data)}
    card |= {"command": command, "date": date.today().isoformat()}
    checkpoint.save(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, card)
    write_json(path.with_suffix(".json"), card)


def load(features: Features, path: Path = SHIPPED) -> Reference:
    """The reference of a file, by default the shipped one, of the 60,000 training images of Fashion-MNIST.

    InputError if it was made in other features than these.
    """
    tensors, card = checkpoint.read(path, "statistics")
    with reading(path, "reference", "one that `save` wrote"):
        if card["identity"] != features.identity:
            raise InputError(
                f"{path} was made in the features of {card['features']} {one_line(card['identity'][:8])}, not of {features.name} "
                f"{features.identity[:8]}: describe real images in these, by giving the path of the images as reference"
            )
        arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        _check_arrays(arrays, features)
        data = {name: card["data"][name] for name in ("name", "images", "sha256")}
        if not isinstance(data["name"], str) or type(data["images"]) is not int or not isinstance(data["sha256"], str):
            raise InputError(f"its data is {shown(data)}")
        moments = Moments(arrays.pop("mean"), arrays.pop("covariance"))
        return Reference(features.name, features.identity, data, moments, **arrays)


def _check_arrays(arrays: Mapping[str, NDArray[Any]], features: Features) -> None:
    """InputError unless these are the finite statistics of a reference in these features."""
    d, classes = features.dimension, len(features.classes)
    expected = {
        "mean": (d,),
        "covariance": (d, d),
        "sample": (*arrays.get("sample", np.empty(0)).shape[:1], d),
        "shares": (classes,),
    }
    for name in {"mean", "covariance", *arrays}:
        if name not in expected or arrays[name].shape != expected[name] or not np.isfinite(arrays[name]).all():
            raise InputError(f"its {shown(name)} is not an array {expected.get(name, 'of it')} of finite numbers")


def published(path: str | Path, features: Features) -> Reference | None:
    """The reference in an .npz of statistics for FID, `mu` (d,) and `sigma` (d, d), assumed to be of these features.

    It gives the Fréchet distance alone. None for any other file; InputError for statistics of another dimension.
    """
    arrays = _mu_and_sigma(Path(path))
    if arrays.keys() != {"mu", "sigma"}:
        return None
    if any(array.dtype.kind not in "fiu" or not np.isfinite(array).all() for array in arrays.values()):
        raise InputError(f"{path} has statistics mu and sigma that are no finite numbers: take the file that was published")
    mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    if (mean.shape, covariance.shape) != ((features.dimension,), (features.dimension,) * 2):
        raise InputError(
            f"{path} has statistics mu {mean.shape} and sigma {covariance.shape}, where the {features.name} has "
            f"{features.dimension} features: name those made in the same features"
        )
    data = {"name": Path(path).stem, "images": 0, "sha256": sha256_of(path)}  # the file does not say of how many images it is
    return Reference(features.name, features.identity, data, Moments(mean, covariance))


def _mu_and_sigma(path: Path) -> dict[str, NDArray[Any]]:
    """mu and sigma of an .npz, as far as it has them; {} for anything else, which is for others to read or to refuse."""
    try:
        return read_npz(path, ("mu", "sigma"))
    except MemoryError:
        raise
    except Exception:  # a folder, no archive, or a broken one
        return {}


def choose(name: str, features: Features) -> Reference:
    """The reference of that name or path: shipped statistics, published ones, or those of the images there."""
    shipped = name == "fashion-train" and features.name == "classifier" and not Path(name).exists()
    return load(features) if shipped else published(name, features) or describe(read_images(name), features)


def read_images(name: str) -> ImageSet:
    """The images at a path, or of the split of Fashion-MNIST of that name; InputError if there are none."""
    path = Path(name)
    if name in SPLITS and not path.exists():
        if SPLITS[name] == "test" and not datasets.FASHION_MNIST.is_dir():
            return datasets.packaged()
        return datasets.load(split=SPLITS[name])
    if path.is_dir() or (path.suffix == ".npz" and path.exists()):
        return datasets.load(path)
    problem = "is not a set of images" if path.exists() else "does not exist"
    raise InputError(f"{name} {problem}: give an .npz or a folder, as `sample --out` writes them, or {' or '.join(SPLITS)}")
