"""Folders of images are read as they are seen, in the formats that are meant and no others; what is not read is counted."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

import diffode.reading as limits
from diffode.errors import InputError
from diffode.images import datasets

TOP, SIDE = 200, 50
UPRIGHT = np.full((6, 6, 3), SIDE, np.uint8)
UPRIGHT[:3] = TOP  # the upper half is bright


def save(path, array=UPRIGHT, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def read(folder):
    return datasets.load(folder).pixels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".jfif"])
def test_every_format_beside_another(tmp_path, suffix):
    save(tmp_path / "a.png")
    save(tmp_path / f"b{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    pixels = read(tmp_path)
    assert len(pixels) == 2
    assert abs(pixels[1].astype(int) - UPRIGHT).max() <= (3 if suffix in (".jpg", ".jfif") else 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(UPRIGHT)
    save(tmp_path / f"a{suffix}", image, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    pixels = read(tmp_path)[0].astype(int)
    with Image.open(tmp_path / f"a{suffix}") as stored:
        assert (pixels == np.asarray(ImageOps.exif_transpose(stored))).all()
    if orientation == 6:  # what is at the top of the file belongs at the right
        assert abs(pixels[:, 3:] - TOP).max() <= 3
        assert abs(pixels[:, :3] - SIDE).max() <= 3


def test_damaged_exif_says_nothing(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(tmp_path).shape == (1, 6, 6, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_pixel_is_white_and_not_its_hidden_colour(tmp_path, mode):
    hidden = np.zeros((4, 4, 4), np.uint8)  # black
    hidden[2:, :, 3] = 255
    image = Image.fromarray(hidden)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    save(tmp_path / "a.png", image)
    pixels = read(tmp_path)[0]
    assert (pixels[:2] == 255).all()
    assert (pixels[2:] == 0).all()
    assert pixels.shape[2] == (1 if mode == "LA" else 3)


def test_a_half_transparent_colour_is_mixed_with_white(tmp_path):
    save(tmp_path / "a.png", np.full((2, 2, 4), (200, 100, 0, 128), np.uint8))
    assert abs(read(tmp_path)[0, 0, 0] - np.array([227, 177, 127])).max() <= 1


def test_what_is_hidden_is_no_class(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        save(tmp_path / name)
    for name in ("__MACOSX/cat/._a.png", "cat/._a.png", ".thumbnails/a.png", "dog/.b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Mac OS X")
    images = datasets.load(tmp_path)
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_images_of_other_formats_are_counted(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "x/b.gif")
    save(tmp_path / "c.GIF")
    save(tmp_path / "d.tiff")
    with pytest.raises(InputError, match=r"images that are not read \(2 \.gif, 1 \.tiff\)"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_is_no_image(tmp_path, suffix):
    frames = [Image.fromarray(UPRIGHT), Image.fromarray(255 - UPRIGHT)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="an animation of 2 frames"):
        read(tmp_path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "data", [EPS, b"P6\n2 2\n255\n" + bytes(12), b"GIF89a", b"", b"SIMPLE  =", b"\x89PNG\r\n\x1a\n"], ids=range(6)
)
def test_only_the_formats_that_are_meant_are_opened(tmp_path, data, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **more: pytest.fail("Ghostscript is run"))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png is not an image"):
        read(tmp_path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min((width + 1) * height, 10**6))))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_that_unpacks_to_much(tmp_path, kind):
    packed = zlib.compress(bytes(2**26))
    text = b"a\0" + (b"\1\0en\0a\0" if kind == b"iTXt" else b"\0") + packed
    (tmp_path / "a.png").write_bytes(png(2, 2, chunk(kind, text)))
    with pytest.raises(InputError, match=r"a\.png is not an image"):
        read(tmp_path)


@pytest.mark.parametrize("side", [10_000, 2**31 - 1])
def test_an_image_of_more_pixels_than_its_bytes_can_hold(tmp_path, side):
    (tmp_path / "a.png").write_bytes(
        png(side, side) if side < 2**20 else png(2, 2).replace(struct.pack(">II", 2, 2), b"\x7f\xff\xff\xff" * 2)
    )
    with pytest.raises(InputError, match=r"a\.png is not an image"):
        read(tmp_path)


def test_many_images_that_unpack_to_much(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 2**20)
    for i in range(12):
        save(tmp_path / f"{i}.png", np.zeros((300, 300), np.uint8))
    with pytest.raises(InputError, match="would unpack to 1,080,000 bytes"):
        read(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"arr_0": np.uint8(3)},
        {"arr_0": np.zeros((2, 4, 4, 1), np.uint8), "arr_1": np.int64(3)},
        {"arr_0": np.zeros((2, 4, 4, 1), np.uint8), "arr_1": np.zeros(2, int), "classes": np.array("a")},
        {"arr_0": np.zeros((2, 4, 4, 1), np.uint8), "arr_1": np.zeros(2, int), "classes": np.array([1, 2])},
        {"arr_0": np.zeros((2, 4, 4, 1), np.uint8), "arr_1": np.zeros(2, int), "classes": np.array([["a"]])},
        {"arr_1": np.zeros(2, int)},
    ],
    ids=range(6),
)
def test_an_npz_of_other_arrays(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=r"a(\.npz is not a set of images|: expected)"):
        datasets.load(tmp_path / "a.npz")
