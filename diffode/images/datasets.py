"""Real images from disk: four idx files as Fashion-MNIST has them, a folder of image files (folders.py), an .npz, or the emoji of
a font (emoji.py).

Images are uint8, (n, height, width, channels), as common FID evaluators read them; networks see float32 in [−1, 1],
(n, channels, height, width). Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from diffode.errors import InputError, shown
from diffode.files import ASSETS
from diffode.images import emoji, folders
from diffode.reading import open_regular, read_gzip, read_npz, reading

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
EMOJI = "emoji"  # the name of that set
PACKAGED = ASSETS / "fashion_mnist" / "fashion_mnist_test_1000.npz"
MOST_CLASSES = 100_000  # more is a mistake in the labels


@dataclass(frozen=True)
class ImageSet:
    """pixels: uint8 (n, height, width, channels); labels: int64 (n,) or None; classes: the names of the labels, or ()."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, what = self.pixels.shape[:1], f"{self.pixels.dtype} {self.pixels.shape}"
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or 0 in self.pixels.shape or self.pixels.shape[3] not in (1, 3):
            floats = ": floats, as `sample` writes them, are no images" * (self.pixels.dtype.kind == "f")
            raise InputError(f"{self.name}: expected uint8 images, (n, height, width, 1 or 3), at least one, not {what}{floats}")
        if self.labels is None:
            return
        if self.labels.shape != n or self.labels.dtype.kind not in "iu":
            raise InputError(
                f"{self.name}: expected {n[0]} labels, whole numbers, one per image, not {self.labels.dtype} {self.labels.shape}"
            )
        if self.labels.min() < 0 or self.labels.max() >= (len(self.classes) or MOST_CLASSES):
            most = len(self.classes) or MOST_CLASSES
            raise InputError(f"{self.name}: expected labels 0 to {most - 1}, not {self.labels.min()} to {self.labels.max()}")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels: the classes, or else the numbers up to the largest label; () without labels."""
        return self.classes or tuple(map(str, range(int(self.labels.max()) + 1 if self.labels is not None else 0)))

    @property
    def identity(self) -> dict[str, Any]:
        """What a card says of its data: name, number of images, and the SHA-256 of pixels and labels."""
        digest = hashlib.sha256(self.pixels.tobytes() + (b"" if self.labels is None else self.labels.astype(np.int64).tobytes()))
        return {"name": self.name, "images": len(self.pixels), "sha256": digest.hexdigest()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, h, w, c) -> float32 (n, c, h, w) in [−1, 1]."""
    return rearrange(torch.from_numpy(pixels), "n h w c -> n c h w").float() / 127.5 - 1


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """The inverse of to_tensor: clipped to [−1, 1] and rounded to the nearest of 256 levels."""
    x = ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return rearrange(x, "n c h w -> n h w c").cpu().numpy()


def load(path: str | Path | None = None, split: str = "train") -> ImageSet:
    """Load the images at `path`: an .npz, a folder of idx files, or one of image files, whose sub-folders are classes; or emoji.

    Without a path: Fashion-MNIST where Debian's package puts it. split: "train" or "test", for idx files only.
    InputError for a missing, truncated or unreadable file.
    """
    path = Path(path) if path is not None else FASHION_MNIST
    if str(path) == EMOJI and not path.exists():
        return ImageSet(EMOJI, *emoji.load())
    if path.is_file() and path.suffix == ".npz":
        return _load_npz(path)
    if path.is_dir():
        if any(path.glob("*-ubyte*")):
            return _load_idx(path, split)
        if files := folders.files_of(path):
            pixels, labels, classes = folders.read(path, files)
            return ImageSet(path.name, pixels, labels, classes)
    raise InputError(
        f"no images at {path}: install Fashion-MNIST with `apt-get install dataset-fashion-mnist`, or name a folder that holds "
        "its four idx files (train-images-idx3-ubyte.gz and so on, gzipped or not), a folder of PNG, JPEG, WebP or BMP images, "
        "an .npz, or emoji"
    )


def packaged() -> ImageSet:
    """The first 1,000 test images of Fashion-MNIST, which come with diffode."""
    return _load_npz(PACKAGED)


def _load_idx(folder: Path, split: str) -> ImageSet:
    if split not in ("train", "test"):
        raise InputError(f"Fashion-MNIST has a train and a test split, not {split!r}")
    prefix = {"train": "train", "test": "t10k"}[split]
    pixels, labels = (_read_idx(folder, f"{prefix}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
    if pixels.ndim != 3 or labels.ndim != 1:
        raise InputError(
            f"{folder}: expected idx files of images (3 axes) and of labels (1 axis), not {pixels.shape} and {labels.shape}"
        )
    fashion = folder.name == FASHION_MNIST.name
    classes = FASHION_CLASSES if fashion else ()
    return ImageSet(f"{'Fashion-MNIST' if fashion else folder.name} {split}", pixels[..., None], labels.astype(np.int64), classes)


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """One idx file (LeCun's format: zero, zero, type, axes, sizes, bytes), gzipped or not."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
    if path is None:
        raise InputError(
            f"{folder} has no {name}.gz (nor {name}): `apt-get install dataset-fashion-mnist` brings all four idx files; "
            "or name another folder that holds them"
        )
    with reading(path, "whole idx file", "one of whole bytes: fetch it again"):
        if path.suffix == ".gz":
            raw = read_gzip(path)
        else:
            with open_regular(path) as file:
                raw = file.read()
        zero, kind, axes = struct.unpack(">HBB", raw[:4])
        sizes = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        if zero or kind != 8 or len(raw) != 4 + 4 * axes + math.prod(sizes):
            raise ValueError(f"{len(raw)} bytes do not make {axes} axes of {sizes}")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(sizes).copy()


def _load_npz(path: Path) -> ImageSet:
    with reading(path, "set of images", "an .npz with uint8 images in arr_0, if labelled labels in arr_1"):
        arrays = read_npz(path, ("arr_0", "arr_1", "classes"))
        names = arrays.get("classes", np.array([], np.str_))
        if names.ndim != 1 or names.dtype.kind not in "US" or len(names) > MOST_CLASSES:
            raise InputError(f"its classes are {shown(names)}, where an array of at most {MOST_CLASSES} texts is expected")
        classes = tuple(map(str, names))
        "".join(classes).encode()  # half a surrogate pair is no text
        return ImageSet(path.stem, arrays["arr_0"], arrays.get("arr_1"), classes)
