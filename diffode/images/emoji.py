"""The emoji of Google's Noto Color Emoji as images 32×32×3 on white, labelled by the groups of Unicode.

Both come from Debian: the bitmaps (136×128, table CBDT) from `fonts-noto-color-emoji` (SIL Open Font License), names and groups
from `unicode-data` (emoji-test.txt). An emoji is a sequence of code points, which the font's ligatures (table GSUB) turn into one
glyph; those that share a glyph are one image. Needs the optional fontTools.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffode.errors import InputError
from diffode.reading import read_bytes, reading

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIDE = 32
MOST_BYTES = 2**26  # of either file
VARIATION = 0xFE0F  # asks for the coloured form, and has no glyph of its own
LINE = re.compile(r"(?P<points>[0-9A-F ]+?) *; [a-z-]+ *# \S+ E[\d.]+ (?P<name>.+)")


def load(font: Path = FONT, listed: Path = LIST) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Pixels (n, 32, 32, 3), labels (n,), and the names of the groups; in the order of Unicode's list.

    InputError if fontTools or one of the two files is missing, or the font has no coloured bitmaps.
    """
    for file, package in ((font, "fonts-noto-color-emoji"), (listed, "unicode-data")):
        if not file.is_file():
            raise InputError(f"no {file.name} at {file}: install it with `apt-get install {package}`")
    glyphs, images, groups = Glyphs.of(font), {}, []
    for points, group in sequences(read_bytes(listed, MOST_BYTES).decode()):
        glyph = glyphs.find(points)
        if glyph is not None and glyph not in images:
            groups.append(group)
            images[glyph] = square(glyphs.bitmaps[glyph].imageData)
    classes = tuple(dict.fromkeys(groups))
    return np.stack(list(images.values())), np.array([classes.index(group) for group in groups], np.int64), classes


def sequences(text: str) -> Iterator[tuple[list[int], str]]:
    """(code points, group) of each emoji of Unicode's emoji-test.txt; its components, such as skin tones, are no emoji."""
    group = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif (found := LINE.fullmatch(line)) and group != "Component":
            yield [int(point, 16) for point in found["points"].split()], group


@dataclass(frozen=True)
class Glyphs:
    """The bitmaps of a font by the name of their glyph, and how it finds a glyph."""

    font: Any

    @classmethod
    def of(cls, file: Path) -> Glyphs:
        try:
            from fontTools.ttLib import TTFont
        except ImportError as error:
            raise InputError("the emoji are read with fontTools, which is not installed: pip install 'diffode[emoji]'") from error
        with reading(file, "font with coloured bitmaps", "NotoColorEmoji.ttf with its table CBDT"):
            font = TTFont(io.BytesIO(read_bytes(file, MOST_BYTES)))
            if not font["CBDT"].strikeData:
                raise InputError("it has no bitmaps")
        return cls(font)

    @cached_property
    def bitmaps(self) -> dict[str, Any]:
        return self.font["CBDT"].strikeData[0]

    @cached_property
    def _names(self) -> dict[int, str]:
        return self.font.getBestCmap()

    @cached_property
    def _subtables(self) -> list[Any]:
        tables = [table for lookup in self.font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable]
        return [getattr(table, "ExtSubTable", None) or table for table in tables]

    def find(self, points: Sequence[int]) -> str | None:
        """The one glyph with a bitmap that a sequence becomes, with its variation selectors or without; None if there is none."""
        for kept in (points, [point for point in points if point != VARIATION]):
            glyphs = self._substituted([self._names[point] for point in kept if point in self._names])
            if len(glyphs) == 1 and glyphs[0] in self.bitmaps:
                return glyphs[0]
        return None

    def _substituted(self, glyphs: list[str]) -> list[str]:
        """After all single and ligature substitutions of the font, in its order, from left to right."""
        for table in self._subtables:
            ligatures, singles = getattr(table, "ligatures", {}), getattr(table, "mapping", {})
            done: list[str] = []
            while glyphs:
                first, rest = glyphs[0], glyphs[1:]
                fitting = (each for each in ligatures.get(first, ()) if rest[: len(each.Component)] == each.Component)
                if ligature := next(fitting, None):
                    done, glyphs = [*done, ligature.LigGlyph], rest[len(ligature.Component) :]
                else:
                    done, glyphs = [*done, singles.get(first, first)], rest
            glyphs = done
        return glyphs


def square(png: bytes, side: int = SIDE) -> NDArray[np.uint8]:
    """A bitmap in the middle of a white square, (side, side, 3)."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        drawn = image.convert("RGBA")
    longest = max(drawn.size)
    canvas = Image.new("RGBA", (longest, longest), "white")
    canvas.alpha_composite(drawn, ((longest - drawn.width) // 2, (longest - drawn.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
