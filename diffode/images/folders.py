"""Folders of image files, a class per sub-folder.

    read as they are seen    upright, as EXIF says; on white where they are transparent; colours of a palette as RGB
    refused                  files of other formats, animations, more than 8 bits of grey, images of different size or mode
    left out                 what is hidden (.folder, ._file.png) or of macOS' archives (__MACOSX), and files that are no images

Pillow is asked for these formats only, whatever a file is called: some of its others run programs.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffode.errors import InputError
from diffode.reading import open_regular, reading, require_plausible

FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",)}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
OTHERS = {".apng", ".avif", ".dds", ".eps", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm"}
OTHERS |= {".psd", ".svg", ".tga", ".tif", ".tiff"}
MODES = {"1": "L", "L": "L", "LA": "L", **dict.fromkeys(("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), "RGB")}
RATIO = 100  # of an image's bytes to those of its file; lossy WebP has up to about 50


def files_of(folder: Path) -> list[Path]:
    """The images in a folder and below, in the order of their paths; InputError for those of other formats, with their number."""
    files = [file for file in folder.rglob("*") if _is_seen(file.relative_to(folder)) and not file.is_dir()]
    if others := Counter(file.suffix.lower() for file in files if file.suffix.lower() in OTHERS):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        raise InputError(
            f"{folder} has images that are not read ({counts}): convert them to one of {', '.join(SUFFIXES)}, or remove them"
        )
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES)


def _is_seen(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read(folder: Path, files: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]:
    """The pixels (n, height, width, channels) of images, their labels and the names of the classes, if there are two or more.

    InputError for a file that is damaged, animated or of another format, and for images of more than one size or mode.
    """
    packed = sum(file.stat().st_size for file in files)
    first = _pixels(files[0], packed)
    require_plausible(len(files) * first.nbytes, packed, RATIO)
    pixels = np.empty((len(files), *first.shape), np.uint8)
    for row, file in zip(pixels, files, strict=True):
        image = _pixels(file, packed)
        if image.shape != first.shape:
            raise InputError(
                f"{file} is {image.shape} where {files[0].name} is {first.shape} (height, width, channels): all images must "
                "have one size and mode"
            )
        row[:] = image
    parents = [str(file.parent.relative_to(folder)) for file in files]
    classes = tuple(sorted(set(parents)))
    if len(classes) == 1:
        return pixels, None, ()
    numbers = {name: number for number, name in enumerate(classes)}
    return pixels, np.array([numbers[name] for name in parents]), classes


def _pixels(file: Path, packed: int) -> NDArray[np.uint8]:
    """One image, (height, width, channels); packed: the bytes of all files, which bound those of each."""
    with (
        reading(file, "image", "a whole one of PNG, JPEG, WebP or BMP; mend or remove it"),
        open_regular(file) as stream,
    ):
        try:
            image: Image.Image = Image.open(stream, formats=list(FORMATS))
        except UnidentifiedImageError:
            raise InputError("it is of another format, or damaged") from None
        require_plausible(3 * image.width * image.height, packed, RATIO)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # photographs of phones have a preview as second frame
            raise InputError(f"it is an animation of {getattr(image, 'n_frames', 0)} frames")
        if image.mode not in MODES:
            raise InputError(f"its mode is {image.mode}, which is not 8 bits a channel")
        mode = MODES[image.mode]
        image.load()
        with suppress(ValueError, SyntaxError, KeyError, TypeError):  # EXIF that is damaged says nothing
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        array = np.asarray(image.convert(mode))
        return array.reshape(*array.shape[:2], -1)
