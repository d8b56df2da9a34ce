"""Images from disk are read as they are, or refused in a sentence; nothing is unpickled."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffode import InputError
from diffode.images import datasets
from diffode.images.datasets import ImageSet, to_pixels, to_tensor

SUBSET = datasets.packaged()
PIXELS, LABELS = SUBSET.pixels[:12], SUBSET.labels[:12]
IDX = {
    f"{split}-{what}": array
    for split in ("train", "t10k")
    for what, array in (("images-idx3", PIXELS[..., 0]), ("labels-idx1", LABELS))
}


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def idx(array, magic=0x0800):
    return struct.pack(f">I{array.ndim}I", magic + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, gzipped=True):
    for name, array in IDX.items():
        raw = idx(array)
        (folder / f"{name}-ubyte{'.gz' if gzipped else ''}").write_bytes(gzip.compress(raw) if gzipped else raw)


def write_image(path, pixels=PIXELS[0], mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).convert(mode).save(path)


def test_all_levels_survive_the_network_range():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_tensor(levels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert (to_pixels(x) == levels).all()
    assert (to_pixels(x.double()) == levels).all()


def test_what_is_beyond_the_range_is_clipped():
    assert to_pixels(torch.tensor([-9.0, -1.01, 1.01, 9.0]).view(1, 1, 2, 2)).ravel().tolist() == [0, 0, 255, 255]


def test_axes_are_nhwc_on_disk_and_nchw_in_networks():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    assert to_tensor(pixels).shape == (2, 3, 3, 5)
    assert (to_pixels(to_tensor(pixels)) == pixels).all()
    assert ImageSet("x", pixels).shape == (3, 3, 5)


def test_the_packaged_subset_is_real_and_may_be_shared():
    assert SUBSET.pixels.shape == (1000, 28, 28, 1)
    assert sorted(set(SUBSET.labels.tolist())) == list(range(10))
    assert len(set(SUBSET.classes)) == 10
    assert len(np.unique(SUBSET.pixels.reshape(1000, -1), axis=0)) == 1000
    assert "MIT" in (datasets.PACKAGED.parent / "NOTICE").read_text()


@pytest.mark.skipif(not datasets.FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_packaged_subset_is_the_first_of_the_test_set():
    whole = datasets.load(split="test")
    assert (whole.pixels[:1000] == SUBSET.pixels).all()
    assert (whole.labels[:1000] == SUBSET.labels).all()
    assert whole.classes == SUBSET.classes


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx(tmp_path, gzipped, split):
    write_idx(tmp_path, gzipped)
    read = datasets.load(tmp_path, split)
    assert (read.pixels == PIXELS).all()
    assert (read.labels == LABELS).all()


@pytest.mark.parametrize("length", [0, 2, 4, 15, 16, 17, 500, -1])
@pytest.mark.parametrize("gzipped", [True, False])
def test_idx_truncated(tmp_path, gzipped, length):
    write_idx(tmp_path, gzipped)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=path.name):
        datasets.load(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        idx(PIXELS[..., 0]) + b"x",
        idx(PIXELS[..., 0], magic=0x0D00),  # floats
        idx(PIXELS[..., 0], magic=0x10800),
        struct.pack(">IIII", 0x803, 2**31, 2**31, 4),  # whose product is 0 in 64 bits
        struct.pack(">I255I", 0x8FF, *[1] * 255) + b"x",
        b"\x89PNG\r\n\x1a\n" * 4,
    ],
    ids=["longer", "floats", "magic", "overflow", "255 axes", "png"],
)
def test_not_an_idx_file(tmp_path, raw):
    write_idx(tmp_path, gzipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("name", IDX)
def test_one_of_four_missing_tells_both_ways_to_the_data(tmp_path, name):
    write_idx(tmp_path)
    (tmp_path / f"{name}-ubyte.gz").unlink()
    with pytest.raises(InputError, match=f"{name}-ubyte") as error:
        datasets.load(tmp_path, "train" if name.startswith("train") else "test")
    assert "apt-get install dataset-fashion-mnist" in str(error.value)
    assert "name another folder" in str(error.value)


def test_nothing_there_tells_both_ways_to_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path / "absent")
    for path in (None, tmp_path, tmp_path / "absent.npz", Path(__file__)):
        with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist") as error:
            datasets.load(path)
        assert "name a folder that holds" in str(error.value)


def test_idx_with_too_few_labels(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:-1])))
    with pytest.raises(InputError, match="expected 12 labels"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg"])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_folder_of_images(tmp_path, suffix, mode, channels):
    jpeg = suffix.startswith(".j")
    if mode not in (("L", "RGB", "CMYK") if jpeg else ("L", "LA", "1", "RGB", "P", "RGBA")):
        pytest.skip("no such files")
    for i in (2, 0, 1):
        write_image(tmp_path / f"{i}{suffix}", PIXELS[i], mode)
    read = datasets.load(tmp_path)
    assert read.pixels.shape == (3, 28, 28, channels)
    assert (read.labels, read.classes) == (None, ())
    if mode in ("L", "LA", "RGB", "RGBA"):  # in the order of their names; JPEG is not exact
        assert np.abs(read.pixels.astype(int) - PIXELS[:3]).max() <= (48 if jpeg else 0)


def test_16_bits_are_not_cut_off(tmp_path):
    """Scaled to 8 bits or refused; Pillow's convert saturates them to white."""
    deep = PIXELS[0, :, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "0.png")
    try:
        read = datasets.load(tmp_path).pixels
    except InputError:
        return
    assert np.abs(read[0].astype(int) - PIXELS[0]).max() <= 1


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["shoe", "bag", "shoe", "coat/long"]):
        write_image(tmp_path / name / f"{i}.png", PIXELS[i])
    read = datasets.load(tmp_path)
    assert read.classes == ("bag", "coat/long", "shoe")
    assert [read.classes[label] for label in read.labels] == ["bag", "coat/long", "shoe", "shoe"]
    assert (read.pixels == PIXELS[[1, 3, 0, 2]]).all()


@pytest.mark.parametrize("other", [PIXELS[0, :20], PIXELS[0].repeat(3, axis=2)], ids=["size", "mode"])
def test_mixed_images(tmp_path, other):
    write_image(tmp_path / "0.png")
    write_image(tmp_path / "1.png", other, "RGB" if other.shape[2] == 3 else "L")
    with pytest.raises(InputError, match=r"1\.png"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.3, 0.6])
def test_truncated_image(tmp_path, suffix, part):
    write_image(tmp_path / "0.png")
    write_image(tmp_path / f"1{suffix}")
    path = tmp_path / f"1{suffix}"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match=path.name):
        datasets.load(tmp_path)


def test_an_image_too_large_to_open(tmp_path, monkeypatch):
    write_image(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's guard against decompression bombs
    with pytest.raises(InputError, match=r"0\.png"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("labelled", [True, False])
def test_npz(tmp_path, labelled):
    np.savez_compressed(tmp_path / "a.npz", PIXELS, *([LABELS] if labelled else []))
    read = datasets.load(tmp_path / "a.npz")
    assert (read.pixels == PIXELS).all()
    assert (read.labels == LABELS).all() if labelled else read.labels is None


@pytest.mark.parametrize("which", ["arr_0", "arr_1", "classes"])
def test_pickles_in_an_npz_are_not_opened(tmp_path, which):
    trap = np.empty(12, object)
    trap[:] = [Trap(tmp_path / "sprung") for _ in range(12)]
    np.savez(tmp_path / "a.npz", **{"arr_0": PIXELS, "arr_1": LABELS, which: trap}, allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npz"):
        datasets.load(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_named_npz_is_not_opened(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match=r"a\.npz"):
        datasets.load(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0, 10, 400, -30, -1])
def test_truncated_npz(tmp_path, length):
    np.savez(tmp_path / "a.npz", PIXELS, LABELS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:length])
    with pytest.raises(InputError, match=r"a\.npz"):
        datasets.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": PIXELS},
        {"arr_0": PIXELS / 255.0},
        {"arr_0": PIXELS[..., 0]},
        {"arr_0": PIXELS[:0]},
        {"arr_0": PIXELS[:, :0]},
        {"arr_0": PIXELS.repeat(4, axis=3)},
        {"arr_0": PIXELS, "arr_1": LABELS[:-1]},
        {"arr_0": PIXELS, "arr_1": LABELS - 10},
        {"arr_0": PIXELS, "arr_1": np.full(12, np.nan)},
        {"arr_0": PIXELS, "arr_1": np.linspace(0, 1.5, 12)},
        {"arr_0": PIXELS, "arr_1": np.array(list("abcdefghijkl"))},
        {"arr_0": PIXELS, "arr_1": np.arange(12), "classes": np.array(["a", "b"])},  # 12 labels, two names
    ],
    ids=[
        "names",
        "floats",
        "3 axes",
        "none",
        "empty",
        "4 channels",
        "few labels",
        "negative",
        "nan",
        "halves",
        "text",
        "classes",
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_npz_with_something_else(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError):
        datasets.load(tmp_path / "a.npz")
