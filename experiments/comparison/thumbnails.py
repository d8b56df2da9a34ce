"""The pictures of a comparison as a page embeds them: each as the base64 of one PNG, and all of them within a limit.

A picture is a strip: the images of the first seeds side by side. Where strips are too large, the images are averaged over blocks
of pixels, and then fewer seeds are shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffode.errors import InputError
from diffode.images.folders import RATIO
from diffode.reading import open_regular, reading, require_plausible, size_of

MEAN_SIZE = 15_000  # the most base64 characters per strip, in the mean
SMALLEST, FEWEST = 32, 4  # images are never reduced below so many pixels per side, nor strips below so many seeds


@dataclass(frozen=True)
class Thumbnails:
    """encoded: strips by name, as base64. Each has `count` images of width × height, which are `reduction` times smaller per side
    than the originals."""

    encoded: Mapping[str, str]
    width: int
    height: int
    count: int
    reduction: int


def load_thumbnails(folder: Path, names: Iterable[str], height: int, width: int, reducible: bool = True) -> Thumbnails | None:
    """The strips with these names in a folder, of images height × width; None if there are none. reducible: whether images may be
    averaged over blocks, as drawings may not.

    InputError for a file that is no such strip.
    """
    strips = {name: _open(folder / f"{name}.png", height, width) for name in names if (folder / f"{name}.png").exists()}
    if not strips:
        return None
    most = min(strip.width // width for strip in strips.values())
    divisors = [k for k in range(1, min(width, height) + 1) if width % k == height % k == 0]
    reductions = [k for k in divisors if k == 1 or (reducible and min(width, height) // k >= SMALLEST)]
    counts = range(most, min(most, FEWEST) - 1, -1)
    for reduction, count in [*((k, most) for k in reductions), *((reductions[-1], count) for count in counts)]:
        encoded = {name: _encode(strip.crop((0, 0, count * width, height)), reduction) for name, strip in strips.items()}
        if sum(map(len, encoded.values())) <= MEAN_SIZE * len(encoded):
            break
    return Thumbnails(encoded, width // reduction, height // reduction, count, reduction)


def _open(file: Path, height: int, width: int) -> Image.Image:
    with (
        reading(file, "picture", "a PNG of the comparison: remove it, or run the comparison again with overwrite=True"),
        open_regular(file) as stream,
        Image.open(stream, formats=["PNG"]) as image,
    ):
        require_plausible(3 * image.width * image.height, size_of(stream), RATIO)
        strip = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if strip.height != height or strip.width % width:
        raise InputError(f"{file} is {strip.width}×{strip.height}, which is no strip of {width}×{height} images: remove it")
    return strip


def _encode(strip: Image.Image, reduction: int) -> str:
    stream = io.BytesIO()
    strip = strip.reduce(reduction) if reduction > 1 else strip
    strip = strip.quantize() if strip.mode == "RGB" and strip.getcolors() else strip  # at most 256 colours: nothing is lost
    strip.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
