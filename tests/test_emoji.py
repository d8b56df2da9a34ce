"""The emoji of the font: how a sequence of code points becomes one image and one label."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffode.errors import InputError
from diffode.images import datasets, emoji

LISTED = """\
# group: Smileys & Emotion
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # ☺️ E0.6 smiling face
263A                                       ; unqualified         # ☺ E0.6 smiling face
# group: Component
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
# group: Flags
1F1E9 1F1EA                                ; fully-qualified     # 🇩🇪 E0.6 flag: Germany
"""


def ligature(glyph, *others):
    return SimpleNamespace(LigGlyph=glyph, Component=list(others))


class Font(dict):
    """Two ligatures, one of which is made of what the other makes, and bitmaps of three glyphs."""

    def __init__(self):
        tables = [
            SimpleNamespace(ligatures={"D": [ligature("DE", "E")], "smile": [ligature("smiling", "VS")]}),
            SimpleNamespace(ExtSubTable=SimpleNamespace(mapping={"DE": "flag"})),
        ]
        bitmaps = {name: SimpleNamespace(imageData=png()) for name in ("grin", "smile", "flag")}
        super().__init__(
            CBDT=SimpleNamespace(strikeData=[bitmaps]),
            GSUB=SimpleNamespace(table=SimpleNamespace(LookupList=SimpleNamespace(Lookup=[SimpleNamespace(SubTable=tables)]))),
        )

    def getBestCmap(self):
        return {0x1F600: "grin", 0x263A: "smile", 0x1F1E9: "D", 0x1F1EA: "E", 0x1F3FB: "tone"}


def png(width=136, height=128):
    """Red, but for a transparent column at the left."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[:, 1:] = 255, 0, 0, 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def test_the_list_gives_code_points_and_groups_without_components():
    found = list(emoji.sequences(LISTED))
    assert found == [
        ([0x1F600], "Smileys & Emotion"),
        ([0x263A, 0xFE0F], "Smileys & Emotion"),
        ([0x263A], "Smileys & Emotion"),
        ([0x1F1E9, 0x1F1EA], "Flags"),
    ]


def test_a_sequence_becomes_the_glyph_of_its_ligatures():
    glyphs = emoji.Glyphs(Font())
    assert glyphs.find([0x1F600]) == "grin"
    assert glyphs.find([0x1F1E9, 0x1F1EA]) == "flag"  # a ligature, and a substitution of what it made
    assert glyphs.find([0x263A, 0xFE0F]) == "smile"  # the selector has no glyph
    assert glyphs.find([0x1F1E9]) is None  # half a flag has no bitmap
    assert glyphs.find([0x1F600, 0x1F1E9]) is None  # and two glyphs are no emoji


def test_a_bitmap_lies_on_white_in_the_middle_of_a_square():
    image = emoji.square(png(), side=34)  # 136/4
    assert image.shape == (34, 34, 3)
    assert image[0].min() > 200  # the two rows above and below, 4 of 136 pixels on each side
    assert image[17, 17].tolist() == [255, 0, 0]
    assert image[17, 0, 1] > image[17, 3, 1]  # transparent is white


def test_what_is_missing_is_said_with_the_package(tmp_path):
    with pytest.raises(InputError, match="apt-get install fonts-noto-color-emoji"):
        emoji.load(font=tmp_path / "no.ttf")
    (tmp_path / "list.txt").write_text(LISTED, encoding="utf-8")
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"font.ttf.*font with coloured bitmaps"):
        emoji.load(tmp_path / "font.ttf", tmp_path / "list.txt")


@pytest.mark.skipif(not (emoji.FONT.is_file() and emoji.LIST.is_file()), reason="takes Debian's packages")
def test_the_font_of_debian_has_thousands_in_nine_groups():
    data = datasets.load("emoji")
    assert data.shape == (3, 32, 32)
    assert len(data.classes) == 9
    assert len(data.pixels) > 3500
    assert (data.pixels[:, 0, 0].mean(1) > 200).mean() > 0.95  # white corners
