"""Exactly the images asked for, under the names and in the layouts that the field's evaluators read."""

import errno
import math
import os

import numpy as np
import pytest
from PIL import Image

from diffode import InputError
from diffode.files import atomic
from diffode.images import datasets, writers

SUBSET = datasets.packaged()


def pixels(n, channels=1):
    return SUBSET.pixels[:n].repeat(channels, axis=3)


def picture(path):
    array = np.array(Image.open(path))
    return array if array.ndim == 3 else array[..., None]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path, n, channels):
    writers.writer(tmp_path / "a.npz")(tmp_path / "a.npz", pixels(n, channels), range(n), SUBSET.labels[:n])
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert (arrays["arr_0"] == pixels(n, channels)).all()
        assert (arrays["arr_1"] == SUBSET.labels[:n]).all()
    assert (datasets.load(tmp_path / "a.npz").pixels == pixels(n, channels)).all()  # and it may be trained on


def test_npz_without_labels(tmp_path):
    writers.save_npz(tmp_path / "a.npz", pixels(3), range(3), None)
    assert list(np.load(tmp_path / "a.npz")) == ["arr_0"]


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_is_named_by_seed(tmp_path, channels):
    seeds = [7, 0, 49_999, 12_345_678]
    writers.writer(tmp_path / "a")(tmp_path / "a", pixels(4, channels), seeds, None)
    assert sorted(os.listdir(tmp_path / "a")) == ["000000.png", "000007.png", "049999.png", "12345678.png"]
    for seed, image in zip(seeds, pixels(4, channels), strict=True):
        assert (picture(tmp_path / "a" / f"{seed:06}.png") == image).all()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65])
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_geometry(tmp_path, n, channels):
    """Row by row, as square as may be, every pixel a square of one size, white between and where no image is."""
    writers.writer(tmp_path / "a.png")(tmp_path / "a.png", pixels(n, channels), range(n), None)
    sheet = picture(tmp_path / "a.png")
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    side = (sheet.shape[1] - 2) // columns - 2
    assert sheet.shape == (2 + rows * (side + 2), 2 + columns * (side + 2), channels)
    assert side % 28 == 0
    assert columns * side <= 640
    for i in range(rows * columns):
        top, left = (2 + at * (side + 2) for at in divmod(i, columns))
        cell = sheet[top : top + side, left : left + side].copy()
        sheet[top : top + side, left : left + side] = 255
        shown = pixels(n, channels)[i].repeat(side // 28, 0).repeat(side // 28, 1) if i < n else 255
        assert (cell == shown).all()
    assert (sheet == 255).all()


@pytest.mark.parametrize(("n", "columns", "size"), [(6, 3, (3, 2)), (6, 40, (6, 1)), (7, 3, (3, 3))])
def test_grid_columns(n, columns, size):
    sheet = writers.grid(pixels(n), columns, width=0, gap=0)
    assert sheet.size == (28 * size[0], 28 * size[1])


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.PNG.txt", "a.pt", "v1.0"])
def test_a_suffix_that_means_nothing_lists_those_that_do(tmp_path, name):
    with pytest.raises(InputError, match=r"\.png .*\.npz.*folder"):
        writers.writer(tmp_path / name)


def write_atomically(path, *what):
    with atomic(path) as part:
        writers.writer(path)(part, *what)


def test_a_folder_with_other_files_is_not_to_be_replaced(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "000001.png").write_text("image")
    writers.check_place(folder)
    (folder / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        writers.check_place(folder)


def test_a_folder_in_the_folder_is_not_to_be_lost(tmp_path):
    """A sub-folder whose name looks like an image may hold anything."""
    (tmp_path / "a" / "000001.png").mkdir(parents=True)
    with pytest.raises(InputError, match="other files"):
        writers.check_place(tmp_path / "a")


def test_a_file_where_a_folder_is_to_be_is_not_lost(tmp_path):
    (tmp_path / "a").write_text("years of work")
    with pytest.raises(InputError, match=r"a\b"):
        writers.check_place(tmp_path / "a")
    with pytest.raises(OSError, match=r"a\b"):
        write_atomically(tmp_path / "a", pixels(2), range(2), None)
    assert (tmp_path / "a").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_images_is_replaced_whole(tmp_path, linked):
    folder = tmp_path / "a"
    write_atomically(tmp_path / ("real" if linked else "a"), pixels(5), range(5), None)
    if linked:
        folder.symlink_to("real")
    write_atomically(folder, pixels(2), [8, 9], None)
    assert sorted(os.listdir(folder)) == ["000008.png", "000009.png"]
    assert sorted(os.listdir(tmp_path)) == (["a", "real"] if linked else ["a"])


@pytest.mark.parametrize("name", ["a.png", "a.npz", "a"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, name, exists):
    path = tmp_path / name
    if exists:
        write_atomically(path, pixels(3), range(3), None)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, pixels(2), range(2), None)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert os.listdir(tmp_path) == ([name] if exists else [])


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    write_atomically(folder, pixels(3), range(3), None)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(folder, pixels(2), [8, 9], None)
    assert sorted(os.listdir(folder)) == ["000000.png", "000001.png", "000002.png"]
    assert os.listdir(tmp_path) == ["a"]
