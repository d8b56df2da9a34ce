"""The pictures of a comparison as a page embeds them: each strip once, as the base64 of a PNG, and all of them within a limit.

A strip is one PNG with the images of the first seeds side by side. Where strips are many or large, the images are averaged over
blocks of pixels, and then fewer seeds are shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffode.errors import InputError

EACH = 15_000  # characters a strip, in the mean
SMALLEST, FEWEST = 32, 4  # pixels a side, and seeds, below which nothing is taken away


@dataclass(frozen=True)
class Strips:
    """Strips by name; each has `count` images, width × height as they are embedded, `reduced` times fewer pixels a side."""

    encoded: Mapping[str, str]
    width: int
    height: int
    count: int
    reduced: int


def load(folder: Path, names: Iterable[str], height: int, width: int) -> Strips | None:
    """The strips of these names that are in a folder; None if there are none. InputError for a file that is no such strip."""
    found = {name: _open(folder / f"{name}.png", height, width) for name in names if (folder / f"{name}.png").exists()}
    if not found:
        return None
    most = min(strip.width // width for strip in found.values())
    divisors = [k for k in range(1, min(width, height) + 1) if width % k == height % k == 0]
    reductions = [k for k in divisors if k == 1 or min(width, height) // k >= SMALLEST]
    counts = range(most, min(most, FEWEST) - 1, -1)
    for reduced, count in [*((k, most) for k in reductions), *((reductions[-1], count) for count in counts)]:
        encoded = {name: _encoded(strip.crop((0, 0, count * width, height)), reduced) for name, strip in found.items()}
        if sum(map(len, encoded.values())) <= EACH * len(encoded):
            break
    return Strips(encoded, width // reduced, height // reduced, count, reduced)


def _open(file: Path, height: int, width: int) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            strip = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{file} is not a picture: remove it, or run the comparison again with --overwrite") from error
    if strip.height != height or strip.width % width:
        raise InputError(f"{file} is {strip.width}×{strip.height}, which is no strip of {width}×{height} images: remove it")
    return strip


def _encoded(strip: Image.Image, reduced: int) -> str:
    stream = io.BytesIO()
    (strip.reduce(reduced) if reduced > 1 else strip).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
