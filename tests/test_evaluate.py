"""`evaluate`: every number with all that it is relative to, the same for an .npz and a folder, and bad input in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from diffode import grid
from diffode.images import datasets
from diffode.models import pretrained
from diffode.schedules import ddpm_linear


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def evaluated(*args):
    """What `evaluate` writes; it must not fail."""
    result = run("evaluate", *args, "--json", "out.json", "--overwrite", "--device", "cpu")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result, json.loads(Path("out.json").read_text())


def save(name, pixels, *labels):
    np.savez(name, pixels, *labels)


def real(n=60):
    subset = datasets.packaged()
    return subset.pixels[:n], subset.labels[:n]


def sampled(out, *args):
    result = run("sample", "--model", "mixture", "--nfe", 2, "--out", out, *args)
    assert result.exit_code == 0, result.output


def test_numbers_carry_how_the_samples_were_made():
    """Grid, τ rule, end point, NFE and its rule, N, seeds and reference; in what is printed, and in what is written."""
    sampled("s.npz", "--seeds", "5-34", "--nfe", 3, "--grid", "quadratic", "--denoise", "--clip")
    result, written = evaluated("s.npz")
    made = written["made"]
    assert (made["solver"], made["tau"], made["denoise"], made["nfe"], made["seeds"]) == ("ddim", "quadratic", True, 3, "5 to 34")
    assert len(made["grid"]) == 3
    assert made["nfe_rule"].startswith("evaluations of ε")
    assert made["sha256"] == pretrained.load("mixture").sha256
    assert written["reference"]["images"] == 60_000
    assert {"frechet", "frechet unbiased", "kernel", "precision", "recall", "own label", "classes"} == set(written["numbers"])
    for number in written["numbers"].values():
        assert number["images"] == 30
        assert f"{number['value']:.5f}" in result.stdout
        assert f"{number['error']:.5f}" in result.stdout
    for words in (
        "30 images",
        "ddim, clip True, 3 NFE",
        "quadratic: 3 steps",
        "σ = 0",
        "seeds 5 to 34",
        "Fashion-MNIST train, 60000",
    ):
        assert words in result.stdout
    assert "FID" not in result.stdout
    assert "fewer than the usual 10000" in result.stderr


@pytest.mark.parametrize("name", [*grid.GRIDS, *grid.TAUS])
def test_the_rule_of_a_grid_is_known_by_its_values(name):
    denoise = name in grid.TAUS
    lams = grid.make(name, ddpm_linear(), 10, denoise=denoise)
    finite = list(lams[lams < np.inf])
    assert grid.name_of(finite, ddpm_linear(), denoise=denoise) == name
    if not denoise:
        assert grid.name_of(list(grid.snap(lams, ddpm_linear())), ddpm_linear()) == name
    assert grid.name_of([lam + 0.01 for lam in finite], ddpm_linear(), denoise=denoise) == "listed"


def test_a_card_of_before_names_of_grids_is_read():
    sampled("s.npz", "--n", 22)
    card = json.loads(Path("s.npz.json").read_text())
    del card["grid_name"], card["schedule"]
    Path("s.npz.json").write_text(json.dumps(card))
    assert "grid unknown: 2 steps" in evaluated("s.npz")[0].stdout


@pytest.mark.parametrize("model", ["evil:model", "hub:google/ddpm-cifar10-32", "evil.safetensors", "cifar10:evil.safetensors"])
def test_a_card_is_data(model, monkeypatch):
    """What it names is neither imported, fetched nor opened."""
    sampled("s.npz", "--n", 22)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    Path("evil.safetensors").write_text("")
    card = json.loads(Path("s.npz.json").read_text())
    for more in ({}, {"solver": "evil:solver"}, {"solver": "evil.json"}, {"grid_name": "evil:grid"}):
        Path("s.npz.json").write_text(json.dumps(card | {"model": model} | more))
        monkeypatch.setattr("diffode.models.pretrained.load", lambda *args: pytest.fail("a model is loaded"))
        monkeypatch.setattr("diffode.models.diffusers_models.fetch", lambda *args: pytest.fail("something is fetched"))
        assert f"from {model}" in evaluated("s.npz")[0].stdout
        assert not Path("ran").exists()


def test_a_folder_is_the_npz_of_the_same_seeds():
    """Its labels are in its card, in the order of the seeds, which is not that of the file names."""
    seeds = ",".join(map(str, [1_000_000, 31, *range(20), 999_999, 30]))
    sampled("s.npz", "--seeds", seeds)
    sampled("folder", "--seeds", seeds)
    first, second = evaluated("s.npz")[1], evaluated("folder/")[1]
    assert second["numbers"]["own label"]["value"] == first["numbers"]["own label"]["value"] > 0.5
    assert second["numbers"]["classes"] == pytest.approx(first["numbers"]["classes"])
    assert first["made"].pop("seeds") == seeds.replace(",", ", ")
    assert second["made"].pop("seeds") == ", ".join(map(str, [*range(20), 30, 31, 1_000_000, 999_999]))
    assert second["made"] == {**first["made"], "command": second["made"]["command"]}


def test_the_floor_is_real_images(monkeypatch):
    """Those that are packaged, where the others are not installed."""
    monkeypatch.setattr(datasets, "FASHION_MNIST", Path("nowhere"))
    result, written = evaluated("fashion-test")
    numbers = written["numbers"]
    assert numbers["own label"]["value"] >= 0.9
    assert abs(numbers["frechet unbiased"]["value"]) < 4 * numbers["frechet unbiased"]["error"]
    assert numbers["own label"]["images"] == 1000
    assert "no fashion-test.json" not in result.stderr


def test_any_images_are_a_reference():
    pixels, labels = real()
    save("s.npz", pixels, labels)
    _, written = evaluated("s.npz", "--reference", "s.npz")
    numbers = {key: number["value"] for key, number in written["numbers"].items()}
    assert numbers["frechet"] == pytest.approx(0, abs=1e-6)
    assert (numbers["precision"], numbers["recall"], numbers["classes"]) == (1, 1, 0)
    assert written["reference"] == datasets.load("s.npz").identity


def test_only_the_first_n():
    pixels, labels = real()
    save("s.npz", pixels, labels)
    save("first.npz", pixels[:25], labels[:25])
    assert evaluated("s.npz", "--n", 25)[1]["numbers"] == evaluated("first.npz")[1]["numbers"]


def test_labels_of_class_folders_are_known_by_name():
    pixels, labels = real(25)
    for names, are_known in ((datasets.FASHION_CLASSES, True), (tuple("abcdefghij"), False)):
        folder = Path(f"known-{are_known}")
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            (folder / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / names[label] / f"{i}.png")
        result, written = evaluated(folder)
        assert (written["numbers"].get("own label", {"value": 0})["value"] > 0.8) is are_known
        assert ("has no labels that the classifier knows" in result.stderr) is not are_known


def test_a_card_of_other_images_is_not_believed():
    pixels, labels = real(25)
    save("s.npz", pixels, labels)
    for text in ("{}", "[", json.dumps({"seeds": [0] * 24})):
        Path("s.npz.json").write_text(text)
        result, written = evaluated("s.npz")
        assert written["made"] == {}
        assert "s.npz.json is not a card of these samples" in result.stderr


@pytest.mark.parametrize(
    "damage",
    [
        *({"labels": [0]}, {"labels": "a" * 22}, {"labels": [None] * 22}, {"labels": ["1"] * 22}, {"labels": [10**18] * 22}),
        *({"grid": []}, {"grid": None}, {"grid": [10**19, "1"]}, {"options": []}, {"options": {"a": {}}}, {"nfe": "x"}),
        *({"seeds": 3}, {"seeds": ["a"] * 22}, {"seeds": [-1] * 22}, {"solver": None}, {"guidance": True}),
    ],
    ids=lambda damage: str(damage)[:30],
)
def test_a_damaged_card_is_no_traceback(damage):
    sampled("folder", "--seeds", "0-21")
    card = json.loads(Path("folder.json").read_text())
    Path("folder.json").write_text(json.dumps(card | damage))
    result, written = evaluated("folder")
    assert written["made"] == {}
    assert "folder.json is not a card of these samples" in result.stderr


@pytest.mark.parametrize(
    ("shape", "args", "words"),
    [
        ((30, 32, 32, 3), (), "takes uint8 images of 1 × 28 × 28 (channels, height, width), not uint8 of 3 × 32 × 32"),
        ((19, 28, 28, 1), (), "at least 20"),
        (None, (), "s.npz does not exist"),
        ((30, 28, 28, 1), ("--reference", "gone.npz"), "gone.npz does not exist"),
        ((30, 28, 28, 1), ("--json", "out.txt"), "out.txt exists or is no .json"),
        ((30, 28, 28, 1), ("--json", "existing.json"), "existing.json exists"),
    ],
)
def test_bad_input_is_an_error_of_one_sentence(shape, args, words):
    Path("existing.json").write_text("{}")
    if shape:
        save("s.npz", np.zeros(shape, np.uint8))
    result = run("evaluate", "s.npz", "--device", "cpu", *args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert result.stdout == ""
    assert not Path("out.txt").exists()


def test_a_grid_of_images_is_no_set_of_images():
    sampled("grid.png", "--n", 2)
    result = run("evaluate", "grid.png")
    assert result.exit_code == 2
    assert "grid.png is not a set of images: give an .npz or a folder" in result.stderr


def test_labels_that_are_no_classes_are_an_error():
    save("s.npz", real(25)[0], np.full(25, 11))
    result = run("evaluate", "s.npz", "--device", "cpu")
    assert result.exit_code == 2
    assert "a label from 0 to 9" in result.stderr
