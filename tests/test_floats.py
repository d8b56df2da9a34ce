"""What is no image is written as the numbers that it is, or drawn; and so is an image, if that is asked for."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from PIL import Image

from cli import main
from diffode.images import drawings
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from experiments.comparison import compare, report
from solvers import sample

SHAPES = [(), (2,), (7,), (2, 30), (9, 30), (9, 3), (4, 6, 6), (3, 3, 4, 4)]

NAMES = itertools.count()  # of modules, which are imported once


@pytest.fixture
def model(tmp_path, monkeypatch):
    """model(shape, classes): the name of a model of one's own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def make(shape, classes=0):
        module = f"floats_{next(NAMES)}"
        network = "lambda x, t, y=None: -2 * (x + (0 if y is None else y.view(-1, *[1] * (x.ndim - 1)))).sin()"
        call = f"EpsModel({network}, schedules.vp_linear(), 'velocity', shape={shape}, classes={classes})"
        (tmp_path / f"{module}.py").write_text(f"from diffode import EpsModel, schedules\nmodel = {call}\n")
        return f"{module}:model"

    return make


def run(*args):
    return CliRunner().invoke(main, ["sample", "--nfe", "3", *map(str, args)])


def drawn(name, seeds, **more):
    """The same samples by the API."""
    loaded = pretrained.load(name).model
    loaded = loaded.labelled(more["labels"]) if "labels" in more else loaded
    return sample(loaded, shape=(len(seeds), *loaded.shape), seed=seeds, nfe=3).x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_written_as_it_is(model, shape):
    name, seeds = model(shape), [5, 0, 9]
    expected = drawn(name, seeds).numpy()
    for out in ("a.npz", "a.safetensors"):
        result = run("--model", name, "--seeds", "5,0,9", "--out", out)
        assert result.exit_code == 0, result.output
        assert "ddim: 3 samples, 3 NFE" in result.output
    with np.load("a.npz") as arrays:
        assert list(arrays) == ["arr_0"]
        written = arrays["arr_0"]
    tensors = safetensors.numpy.load_file("a.safetensors")
    assert (tensors.keys(), tensors["seeds"].tolist()) == ({"samples", "seeds"}, seeds)
    for found in (written, tensors["samples"]):
        assert (found.dtype, found.shape) == (np.float32, (3, *shape))
        assert (found == expected).all()
    assert json.loads(Path("a.npz.json").read_text())["floats"] is True


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_drawn(model, shape):
    """A sheet, and one of the trajectory, with as many pictures as there are to see."""
    result = run("--model", model(shape), "--n", 4, "--trajectory", "--out", "a.png")
    assert result.exit_code == 0, result.output
    with np.load("a-trajectory.npz") as states:
        assert states["x"].shape == (4, 4, *shape)
    for name in ("a.png", "a-trajectory.png"):
        pixels = np.array(Image.open(name).convert("L"))
        assert pixels.std() > 1
        assert 100 < pixels.shape[1] < 1500


def test_labels_go_with_them_and_a_name_is_given(model):
    name = model((2,), classes=3)
    assert run("--model", name, "--n", 4).exit_code == 0
    (file,) = Path("samples").glob("*.npz")
    with np.load(file) as arrays:
        assert arrays["arr_1"].tolist() == [0, 1, 2, 0]
        assert (arrays["arr_0"] == drawn(name, [0, 1, 2, 3], labels=[0, 1, 2, 0]).numpy()).all()
    assert run("--model", name, "--n", 4, "--out", "a.safetensors").exit_code == 0
    assert safetensors.numpy.load_file("a.safetensors")["labels"].tolist() == [0, 1, 2, 0]


def test_an_image_is_an_image_unless_its_floats_are_asked_for(model):
    name = model((3, 4, 5))
    for more in (["--out", "a.npz"], ["--floats", "--out", "b.npz"], ["--floats"]):
        assert run("--model", name, "--n", 3, *more).exit_code == 0
    with np.load("a.npz") as images, np.load("b.npz") as floats:
        assert (images["arr_0"].dtype, floats["arr_0"].dtype) == (np.uint8, np.float32)
        assert abs(floats["arr_0"]).max() > 1  # not clipped
        assert (to_pixels(torch.from_numpy(floats["arr_0"])) == images["arr_0"]).all()
    assert [path.suffix for path in Path("samples").iterdir() if path.suffix != ".json"] == [".npz"]


@pytest.mark.parametrize(
    ("shape", "args", "words"),
    [
        ((2,), ["--out", "folder"], "'folder' is no output of floats: give an .npz, a .safetensors, or a .png (a drawing)"),
        ((2,), ["--out", "a.pt"], "no output of floats"),
        ((3, 4, 4), ["--floats", "--out", "folder"], "no output of floats"),
        ((3, 4, 4), ["--out", "a.safetensors"], "a .safetensors holds floats: --floats"),
    ],
)
def test_where_floats_cannot_go(model, shape, args, words):
    result = run("--model", model(shape), "--n", 2, *args)
    assert (result.exit_code, words in " ".join(result.output.replace("│", " ").split())) == (2, True), result.output
    assert not Path("a.npz").exists()


def test_floats_are_not_measured_as_images(model):
    assert run("--model", model((2,)), "--n", 2, "--out", "a.npz").exit_code == 0
    result = run("--model", model((3, 4, 4)), "--n", 2, "--floats", "--out", "b.safetensors")
    assert result.exit_code == 0
    assert re.search(r": 2 samples, \d+ NFE per sample, ", result.stdout)
    for file, words in (("a.npz", "floats, as `sample` writes them, are no images"), ("b.safetensors", "is not a set of images")):
        result = CliRunner().invoke(main, ["evaluate", file])
        assert (result.exit_code, words in " ".join(result.output.replace("│", " ").split())) == (2, True), result.output


@pytest.mark.parametrize("shape", [*SHAPES, (1,), (5, 2), (2, 6, 6), (4, 2, 5, 4)], ids=str)
def test_pictures_are_of_the_size_that_is_said_and_show_what_differs(shape):
    torch.manual_seed(0)
    reference = torch.randn(5, *shape)
    pictures = drawings.tiles(reference, reference)
    assert pictures.dtype == np.uint8
    assert pictures.shape[:3] == (1 if drawings.are_drawn_together(shape) else 5, *drawings.size_of(shape))
    assert pictures.shape[3] in (1, 3)
    assert (pictures == drawings.tiles(reference, reference)).all()
    other = drawings.tiles(reference + 0.5, reference)
    assert all((other[i] != pictures[i]).any() for i in range(len(pictures)))
    assert drawings.tiles(1e30 * reference, reference).shape == pictures.shape  # a solver that went astray


@pytest.mark.parametrize(
    ("shape", "words", "rows"),
    [
        ((2,), "All samples in one picture, one column per solver", 1),
        ((2, 30), "Grey, behind each, is the reference", 3),
        ((4, 6, 6), "Samples are 4×6×6; shown are the first three channels, as red, green and blue", 3),
        ((2, 4, 4, 4), "Samples are 2×4×4×4; shown are some frames, of each the first three channels", 3),
    ],
    ids=str,
)
def test_compare_draws_any_shape_beside_the_reference(model, monkeypatch, shape, words, rows):
    monkeypatch.setattr(compare, "save_curves", lambda rows, out: None)  # for time
    args = [
        "--solvers",
        "ddim,dpmpp2m",
        "--nfe",
        "4",
        "--grids",
        "logsnr",
        "--n",
        "3",
        "--tolerance",
        "1e-3",
        "--out",
        "compared",
    ]
    result = CliRunner().invoke(main, ["compare", "--model", model(shape), *args])
    assert result.exit_code == 0, result.output
    height, width = drawings.size_of(shape)
    pictures = {path.stem: Image.open(path) for path in Path("compared/pictures").iterdir()}
    assert pictures.keys() == {"reference", "ddim-logsnr-4", "dpmpp2m-logsnr-4"}
    assert {picture.size for picture in pictures.values()} == {(rows * width, height)}
    assert (np.array(pictures["reference"].convert("L")) != np.array(pictures["ddim-logsnr-4"].convert("L"))).any()
    page = Path("compared/report.html").read_text(encoding="utf-8")
    assert words in page
    assert ('name="difference"' in page) == (not drawings.are_drawn(shape))
    strip = report.template_values(Path("compared"), "a")["data"]["strip"]
    assert strip == {"width": width, "height": height, "count": rows}
