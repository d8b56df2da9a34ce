"""Images to disk: a grid as one PNG, a folder of PNGs named by seed, or an .npz that common FID evaluators read.

Pixels are uint8 (n, height, width, 1 or 3). Writers write to the path that they are given, and nowhere else: inside
`diffode.files.atomic`, all is there, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from diffode.errors import InputError

Pixels = NDArray[np.uint8]


def grid(pixels: Pixels, columns: int | None = None, width: int = 640, gap: int = 2) -> Image.Image:
    """All images on one sheet, in about as many columns as rows unless `columns` is given, enlarged by a whole factor.

    width: about that of the sheet, and gap, between images, in pixels.
    """
    n, _, w, _ = pixels.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    scale = max(1, width // (columns * w))
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    pixels = np.pad(pixels, ((0, rows * columns - n), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = rearrange(pixels, "(r k) h w c -> (r h) (k w) c", r=rows)
    sheet = np.pad(sheet, ((gap, 0), (gap, 0), (0, 0)), constant_values=255)
    return picture(sheet)


def picture(pixels: Pixels) -> Image.Image:
    """One image of pixels (height, width, 1 or 3)."""
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def save_grid(
    path: Path, pixels: Pixels, seeds: Sequence[int], labels: NDArray[np.int64] | None, columns: int | None = None
) -> None:
    """One PNG with all images."""
    grid(pixels, columns).save(path, format="PNG")


def save_npz(path: Path, pixels: Pixels, seeds: Sequence[int], labels: NDArray[np.int64] | None) -> None:
    """arr_0: uint8 NHWC; arr_1: labels, if there are any (the format of Dhariwal and Nichol's evaluator)."""
    with open(path, "wb") as file:
        np.savez_compressed(file, *([pixels] if labels is None else [pixels, labels]))


def save_folder(path: Path, pixels: Pixels, seeds: Sequence[int], labels: NDArray[np.int64] | None) -> None:
    """A new folder of PNGs named by seed, with six digits or more."""
    path.mkdir()
    for seed, image in zip(seeds, pixels, strict=True):
        picture(image).save(path / f"{seed:06}.png", format="PNG")


WRITERS: dict[str, Callable[..., None]] = {".png": save_grid, ".npz": save_npz, "": save_folder}


def writer(path: Path) -> Callable[[Path, Pixels, Sequence[int], NDArray[np.int64] | None], None]:
    """The function that writes the kind of file that the suffix of `path` names; InputError for any other suffix."""
    if path.name in ("", "..") or path.suffix.lower() not in WRITERS:
        raise InputError(f"{str(path)!r} is no output: give a .png (a grid), an .npz, or a folder (one PNG per seed)")
    return WRITERS[path.suffix.lower()]


def are_images(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are images, (1 or 3, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def check_shape(shape: Sequence[int]) -> None:
    """InputError unless samples of this shape are images."""
    if not are_images(shape):
        raise InputError(
            f"samples of shape {tuple(shape)} are no images, which are (1 or 3, height, width): draw them with solvers.sample"
        )


def check_place(path: Path) -> None:
    """InputError if `path` exists and must not be replaced: a folder for a file, or anything but a folder of such PNGs."""
    if path.suffix and path.is_dir():
        raise InputError(f"{path} is a folder: give another name for the output")
    if not path.suffix and path.exists() and not _replaceable(path):
        raise InputError(
            f"{path} holds other files than images named by seed, and is not replaced: give another name for the output"
        )


def _replaceable(folder: Path) -> bool:
    """Whether it is a folder of nothing but PNGs named by seed."""
    return folder.is_dir() and all(f.is_file() and f.suffix == ".png" and f.stem.isdigit() for f in folder.iterdir())
