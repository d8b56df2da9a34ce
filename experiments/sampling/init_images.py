"""Images that samples begin with, `sample --init FILE`: an image, a folder of images, or an .npz.

Samples whose seed is s begin with image s modulo their number, so a sample does not depend on what else is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.images import datasets, folders
from diffode.reading import read_npz, reading

EXPECTED = f"an image ({', '.join(folders.SUFFIXES)}), a folder of them, or an .npz"
LARGEST = 1e18  # whose square is within float32


@dataclass(frozen=True)
class Init:
    """path: what it was read from. x: (images, *shape) in float32, images in [−1, 1]. sha256: of its shape and values, by which a
    job knows it."""

    path: Path
    x: Tensor = field(repr=False)
    sha256: str

    def of(self, seeds: Sequence[int]) -> Tensor:
        """The image of each seed, (seeds, *shape)."""
        return self.x[[seed % len(self.x) for seed in seeds]]


def read(path: str, shape: Sequence[int]) -> Init:
    """The images of a file or folder, for a model whose samples have this shape.

    An .npz holds uint8 images (n, height, width, channels), or floats (n, *shape), which are x itself. InputError for a file that
    is none of these, and for images of another shape, with what to do about it.
    """
    x, wanted = _read(Path(path)).contiguous(), tuple(shape)
    if not len(x):
        raise InputError(f"{path} has no images: give `init` {EXPECTED}")
    if x.shape[1:] != wanted:
        raise InputError(f"{path} has samples of shape {tuple(x.shape[1:])}, and the model's are {wanted}: {_advice(wanted)}")
    if not (x.abs() <= LARGEST).all():
        raise InputError(f"{path} has numbers that are not finite, or above {LARGEST:g}: give `init` another file")
    return Init(Path(path), x, hashlib.sha256(repr(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest())


def _read(path: Path) -> Tensor:
    """What is in a file or folder, (n, *shape)."""
    if path.suffix == ".npz":
        with reading(path, "set of images", "an .npz with uint8 images, or floats (n, *shape), in arr_0"):
            values = read_npz(path, ("arr_0",))["arr_0"]
            if values.dtype != np.uint8 and values.dtype.kind != "f":
                raise InputError(f"its arr_0 is {values.dtype}")
        if values.dtype.kind == "f" and values.ndim > 1:
            return torch.from_numpy(values.astype(np.float32))
    elif path.suffix.lower() in folders.SUFFIXES and not path.is_dir():
        with reading(path, "image", "a PNG, JPEG, WebP or BMP"):
            return datasets.to_tensor(folders.read(path.parent, [path])[0])
    elif not path.is_dir():
        raise InputError(f"{path} is no file of images, or is not there: give `init` {EXPECTED}")
    elif not any(path.glob("*-ubyte*")) and not folders.files_of(path):
        raise InputError(f"{path} has no images: give `init` {EXPECTED}")
    return datasets.to_tensor(datasets.load(path).pixels)


def _advice(shape: Sequence[int]) -> str:
    """How to make samples of that shape."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return "give them as floats of that shape, arr_0 of an .npz"
    channels, height, width = shape
    grey = " -colorspace Gray" * (channels == 1)
    return (
        f"make them {'grey' if grey else 'RGB'}, {height} pixels high and {width} wide, as "
        f"`magick in.png -resize {width}x{height}!{grey} out.png` does"
    )
