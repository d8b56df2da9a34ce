"""The largest networks that are made: a description may come from a file, and what no machine runs is refused at once."""

from __future__ import annotations

from collections.abc import Sequence

from diffode.checks import whole, wrong
from diffode.errors import InputError, shown
from diffode.reading import MOST_NUMBERS

MOST = {
    "patch": 64,
    "blocks": 32,
    "depth": 256,
    "heads": 1024,
    "num_res_blocks": 32,
    "width": 2**15,
    "ch": 2**15,
    "classes": 100_000,
}
MOST_LEVELS, MOST_MULTIPLE = 10, 64
MOST_CELLS = 2**16  # that attend to each other: the time grows with their square


def positive(**sizes: int | Sequence[int]) -> None:
    """InputError unless all are at least 1, and of a list there is one at least."""
    for name, size in sizes.items():
        if min(size if isinstance(size, Sequence) else [size], default=0) < 1:
            raise wrong(name, "at least 1" if isinstance(size, int) else "one number at least, all from 1 on", size)


def halved(resolution: int, levels: int) -> None:
    """InputError unless a resolution, halved from level to level, is a whole number at all of them."""
    if resolution % 2 ** (levels - 1):
        raise InputError(f"{levels} levels halve the resolution to no whole number: {resolution}")


def check(image: Sequence[int], multipliers: Sequence[int], attention: Sequence[int], patch: int = 1, **sizes: int) -> None:
    """InputError unless all are whole numbers from 0 on, and none is larger than the largest here.

    image: (channels, height, width). attention: the heights, after space-to-depth by `patch`, at which cells attend to each
    other; at the lowest level they always do. sizes: others, by their names in MOST.
    """
    for name, size in {"patch": patch, **sizes}.items():
        whole(name, size, 0, MOST[name])
    for value in (*image, *attention):
        whole("every side of image and attention", value, 0, MOST_NUMBERS)
    for value in multipliers:
        whole("every one of the multipliers", value, 0, MOST_MULTIPLE)
    if len(image) != 3 or image[0] * image[1] * image[2] > MOST_NUMBERS:
        raise InputError(f"`image` must be (channels, height, width), at most {MOST_NUMBERS} numbers, not {shown(tuple(image))}")
    if len(multipliers) > MOST_LEVELS:
        raise InputError(f"a network has at most {MOST_LEVELS} levels, not {len(multipliers)}: give fewer multipliers")
    for level in range(len(multipliers)):
        height, width = (side // max(patch, 1) // 2**level for side in image[1:])
        if height * width > MOST_CELLS and (height in attention or level == len(multipliers) - 1):
            raise InputError(
                f"{height} × {width} cells attend to each other at level {level}, where {MOST_CELLS} are the most: take more "
                f"levels, or leave {height} out of `attention`"
            )
