"""Samples to disk.

    images    uint8 (n, height, width, 1 or 3): a grid as one PNG, a folder of PNGs named by seed, or an .npz that common FID
              evaluators read
    floats    float32 (n, *shape), the states themselves, of any shape: an .npz, a .safetensors, or a drawing as a PNG

Writers write to the path that they are given, and nowhere else: inside `diffode.files.atomic`, all is there, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from diffode.errors import InputError
from diffode.images import drawings

SHEET = 640  # the width of a sheet, about
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64] | None
Write = Callable[[Path, Any, Sequence[int], Labels], None]  # (path, images or floats, seeds, labels)


def grid(pixels: Pixels, columns: int | None = None, width: int = SHEET, gap: int = 2) -> Image.Image:
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


def save_grid(path: Path, pixels: Pixels, seeds: Sequence[int], labels: Labels, columns: int | None = None) -> None:
    """One PNG with all images."""
    grid(pixels, columns).save(path, format="PNG")


def save_npz(path: Path, samples: Pixels | Floats, seeds: Sequence[int], labels: Labels) -> None:
    """arr_0: uint8 NHWC (the format of Dhariwal and Nichol's evaluator), or floats, which are not compressed; arr_1: labels, if
    there are any."""
    save = np.savez_compressed if samples.dtype == np.uint8 else np.savez
    with open(path, "wb") as file:
        save(file, *([samples] if labels is None else [samples, labels]))


def save_safetensors(path: Path, floats: Floats, seeds: Sequence[int], labels: Labels) -> None:
    """samples: floats; seeds, and labels, if there are any: int64."""
    arrays = {"samples": floats, "seeds": np.array(seeds, np.int64)} | ({} if labels is None else {"labels": labels})
    path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def save_drawing(path: Path, floats: Floats, seeds: Sequence[int], labels: Labels) -> None:
    """One PNG with a drawing of all samples (drawings.py)."""
    columns = 1 if drawings.are_drawn_together(floats.shape[1:]) else math.ceil(math.sqrt(len(floats)))
    tiles = drawings.tiles(torch.from_numpy(floats), width=max(SHEET // columns, drawings.WIDTH))
    grid(tiles, width=SHEET).save(path, format="PNG")


def save_folder(path: Path, pixels: Pixels, seeds: Sequence[int], labels: Labels) -> None:
    """A new folder of PNGs named by seed, with six digits or more."""
    path.mkdir()
    for seed, image in zip(seeds, pixels, strict=True):
        picture(image).save(path / f"{seed:06}.png", format="PNG")


OF_IMAGES: dict[str, Write] = {".png": save_grid, ".npz": save_npz, "": save_folder}
OF_FLOATS: dict[str, Write] = {".npz": save_npz, ".safetensors": save_safetensors, ".png": save_drawing}


def writer(path: Path, floats: bool = False) -> Write:
    """The function that writes images, or floats, to the kind of file that the suffix of `path` names; InputError for another."""
    writers, suffix = OF_FLOATS if floats else OF_IMAGES, path.suffix.lower()
    if path.name not in ("", "..") and suffix in writers:
        return writers[suffix]
    if floats:
        raise InputError(f"{str(path)!r} is no output of floats: give an .npz, a .safetensors, or a .png (a drawing)")
    more = "; a .safetensors holds floats: floats=True" * (suffix in OF_FLOATS)
    raise InputError(f"{str(path)!r} is no output: give a .png (a grid), an .npz, or a folder (one PNG per seed){more}")


def check_shape(shape: Sequence[int]) -> None:
    """InputError unless samples of this shape are images."""
    if not drawings.are_images(shape):
        raise InputError(
            f"samples of shape {tuple(shape)} are no images, which are (1 or 3, height, width): `sample` and `compare` take any"
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
