"""Table 1 of the DDIM paper: what its cells are, and that a run can be killed, extended, and not mixed with another."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from diffode import grid as grids
from diffode.images import datasets
from diffode.model import EpsModel
from diffode.models import checkpoint, presets, pretrained
from diffode.models.card import Card
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from diffode.networks.unet import UNet, UNetConfig
from diffode.schedules import SCHEDULES
from experiments import documents
from experiments.common import results
from experiments.ddim_paper import table1, table1_cells
from experiments.metrics.exact_mixture import MixtureReference
from experiments.metrics.features import FEATURES, Features
from experiments.sampling import generate
from solvers import sample

pytestmark = pytest.mark.usefixtures("small_mixture")


def run(*arguments):
    return CliRunner().invoke(table1.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def mixture_table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "mixture"
    result = run("--preset", "mixture", "--fast", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_cells_are_what_an_independent_run_gives(mixture_table):
    loaded = pretrained.load("mixture")
    small = loaded.model.network.pooled(2)
    model = EpsModel(small, loaded.model.schedule, "velocity", clock="lam")
    lams = [float(loaded.model.schedule.lam(label)) for label in range(900, -1, -100)]
    for eta, solver, options in (("0.5", "ddim", {"eta": 0.5}), ("sigma-hat", "ddpm", {"variance": "large"})):
        x = sample(model, shape=(40, *small.image), solver=solver, grid=[*lams, np.inf], seed=0, **options).x
        row = next(row for row in results.read(mixture_table)[1] if (row["eta"], row["S"]) == (eta, 10))
        assert row["nfe"] == 10
        for name, number in MixtureReference(small).measure(x).items():
            assert row[name] == pytest.approx(number.value, rel=1e-3)  # float32, in matrix products of another size


def test_the_report_has_every_cell_and_the_papers(mixture_table):
    text = table1.report(mixture_table)
    assert text.count("±") >= 2 * 10
    assert "| η = 0.0 | 13.36 | 6.84 |" in text
    assert "At S = 10 the best is η = " in text


def test_all_labels_are_one_tau_whatever_the_rule():
    schedule = pretrained.load("mixture").model.schedule
    assert table1_cells.lams_of_tau("quadratic", schedule, 1000) == table1_cells.lams_of_tau("linear", schedule, 1000)
    assert table1_cells.lams_of_tau("quadratic", schedule, 10) == grids.tau("tau-quadratic", schedule, 10)[:-1].tolist()


@pytest.fixture
def small(tmp_path):
    """A U-Net for the same images, untrained and much smaller than the shipped one, as a file."""
    config = UNetConfig((1, 28, 28), 10, patch=4, width=16, multipliers=(1,), blocks=1, attention=())
    model = EpsModel(UNet(config), SCHEDULES["ddpm_linear"](), "velocity", clock="lam", classes=10, shape=config.image)
    file = tmp_path / "weights" / "small.safetensors"
    checkpoint.save(file, model.network.state_dict(), Card.of(model, "unet", config=dataclasses.asdict(config)))
    return file


def test_a_network_is_killed_resumed_extended_and_not_mixed(tmp_path, monkeypatch, small):
    for module in (table1, table1_cells):
        monkeypatch.setattr(module, "BLOCK", 20)
    monkeypatch.setattr(
        datasets, "FASHION_MNIST", tmp_path / "none"
    )  # where the 10,000 test images are, which take seconds to judge
    out, made, real = tmp_path / "t", [], generate.generate

    def counted(task, file):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(file)
        return real(task, file)

    monkeypatch.setattr(generate, "generate", counted)
    weights = ("--weights", small)
    arguments = (*weights, "--steps", "2", "--n", 40, "--out", out)
    assert run(*arguments).exit_code == 130
    assert len(results.read(out)[1]) == 1  # two blocks of one cell, and one of the next
    monkeypatch.setattr(generate, "generate", lambda task, file: (made.append(file), real(task, file))[1])
    assert run(*arguments).exit_code == 0
    assert len(made) == len(set(made)) == 2 * len(table1.ETAS)
    assert {"frechet", "frechet ±", "own label", "kernel", "precision", "recall"} <= results.read(out)[1][0].keys()
    assert (tmp_path / "t.png").exists()
    assert "Fréchet distance in the features of classifier" in table1.report(out)

    assert run(*weights, "--steps", "2", "--n", 60, "--out", out).exit_code == 0
    assert len(made) == len(set(made)) == 3 * len(table1.ETAS)  # the blocks that were there are there
    assert "60 (S = 2)" in table1.report(out)

    refused = run(*weights, "--steps", "2", "--n", 40, "--tau", "quadratic", "--out", out)
    assert refused.exit_code == 2
    assert "another tau" in refused.output
    other = run(*weights, "--steps", "2", "--n", 40, "--tau", "quadratic", "--out", out, "--overwrite")
    assert other.exit_code == 1
    assert "samples of another model or setting" in other.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--preset", "cifar10"), "give its file as weights"),
        (("--preset", "mixture", "--weights", "fashion"), "is not for fashion, which is a unet"),
        (("--preset", "mixture", "--features", "classifier"), "leave features and reference out"),
        (("--steps", "a"), "not a comma-separated list"),
        (("--steps", "1,10"), "whole numbers from 2 on"),
        (("--steps", "1001"), "more than the 1000 labels"),
        (("--features", "inception"), "need a reference"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, sentence):
    result = run(*arguments, "--out", tmp_path / "t")
    assert result.exit_code == 2
    assert sentence in result.output
    assert not list(tmp_path.iterdir())


def test_the_picture_is_of_the_cells_own_seeds(tmp_path, monkeypatch, small):
    """Of as many samples as there are, and of no others."""
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path / "none")
    assert run("--weights", small, "--steps", "2", "--n", 20, "--seed", 7, "--out", tmp_path / "v1.5").exit_code == 0
    made = {path.name for path in (tmp_path / "v1.5-samples").rglob("*.npz")}
    assert made == {"7-26.npz"}
    assert {"v1.5.csv", "v1.5.json", "v1.5.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_floor_is_a_row_of_its_own(tmp_path, monkeypatch):
    """So that a run on another machine, where it rounds otherwise, goes on."""
    monkeypatch.setattr(table1_cells, "EXACT", 200)
    arguments = ("--preset", "mixture", "--n", 20, "--out", tmp_path / "t", "--steps")
    assert run(*arguments, "2").exit_code == 0
    assert run(*arguments, "2,3").exit_code == 0
    about, found = results.read(tmp_path / "t")
    assert [row["eta"] for row in found].count("floor") == 1
    assert len(about["made"]) == 1  # two runs of one command on one day
    assert "(200 exact samples: " in table1.report(tmp_path / "t")


@pytest.mark.parametrize(("table", "distance"), [("table1_fashion", "frechet"), ("table1_mixture", "moments")])
def test_the_papers_order_shows_in_the_committed_tables(table, distance):
    """At S = 10 the deterministic sampler is better than η = 1, and σ̂ far the worst; at S = 1000 σ̂ is good; and samples of
    the network in 50 steps are given their own label."""
    found = {(row["eta"], row["S"]): row for row in results.read(documents.RESULTS / table)[1]}
    at = {key: row[distance] for key, row in found.items()}
    assert {s for _, s in found} == {0, 10, 20, 50, 100, 1000}
    assert at["0.0", 10] < at["1.0", 10] < at["sigma-hat", 10] / 2
    assert at["sigma-hat", 10] > 3 * at["0.0", 10]
    assert at["sigma-hat", 1000] < at["0.0", 1000] + 3 * found["0.0", 1000][f"{distance} ±"]
    if table == "table1_fashion":
        assert found["0.0", 50]["own label"] >= 0.85


def test_the_presets_of_the_paper_run_unchanged(tmp_path, monkeypatch):
    """On a small network of the same kind, under the preset's name, with features that need no download."""
    config = DDPMUNetConfig(resolution=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=())
    monkeypatch.setitem(presets.PRESETS, "cifar10", presets.Preset(config, "CIFAR-10"))
    save_file(DDPMUNet(config).state_dict(), tmp_path / "weights.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=pixels)
    toy = Features("inception", 3, "toy", ("FID", "KID"), lambda x: (torch.from_numpy(x).double().mean((1, 2)), None))
    monkeypatch.setitem(FEATURES, "inception", lambda device: toy)
    out = tmp_path / "t"
    arguments = ("--preset", "cifar10", "--weights", tmp_path / "weights.safetensors", "--reference", tmp_path / "real.npz")
    result = run(*arguments, "--n", 20, "--steps", "2,31", "--out", out)
    assert result.exit_code == 0, result.output
    about, found = results.read(out)
    assert (about["tau"], about["paper"], about["features"]) == ("quadratic", "CIFAR-10", "inception toy")
    assert {row["nfe"] for row in found if row["S"] == 31} == {30}  # of 31 squares two fall on one label
    assert "S = 31 (30 NFE)" in table1.report(out)
