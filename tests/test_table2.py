"""Reconstruction: the round trip errs as its order says, at equal cost, in rows that can be resumed."""

import itertools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffode import InputError
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from experiments import published
from experiments.common import results
from experiments.common.examples import real_images
from experiments.ddim_paper import table2
from experiments.ddim_paper.common import prepare_whole_steps
from experiments.ddim_paper.table2_cells import Reconstruction, cells, images_of, round_trip


@pytest.mark.parametrize(("solver", "falls"), [("ddim", 1), ("dpm2", 3), ("heun", 3), ("dpm3", 3), ("rk:rk4", 5)])
@pytest.mark.parametrize("grid", ["logsnr", "karras"])
def test_the_error_falls_with_the_order_of_the_solver(toy, solver, falls, grid):
    """C h^(p+1) one way and C (−h)^(p+1) back: order p where p is odd, p + 1 where it is even."""
    model = toy("vp")
    x0 = model.network.sample(8, seed=1)
    budgets = (200, 400) if falls == 1 else (120, 240)
    off = [(round_trip(model, x0, solver=solver, nfe=nfe, grid=grid)[1] - x0).square().mean().sqrt() for nfe in budgets]
    assert abs(float((off[0] / off[1]).log2()) - falls) < 0.15


@pytest.mark.parametrize("solver", table2.SOLVERS)
def test_more_evaluations_bring_back_more(mixture32, solver):
    x0, labels, _ = images_of(pretrained.load("mixture"), 4, None)
    model = mixture32.labelled(labels)
    errors = [(round_trip(model, x0, solver=solver, nfe=nfe, grid="logsnr")[1] - x0).square().mean() for nfe in (12, 24, 48)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_ddim_is_brought_back_as_its_formula_says(toy):
    """Both ways written out: x_t = α_t x̂0 + σ_t ε, with the ε of where the step begins (Eq. 12 with η = 0)."""
    model = toy("vp")
    x0 = model.network.sample(3, seed=2)
    grid = np.linspace(model.schedule.lam_min, model.schedule.lam_max, 8)
    x = x0
    for way in (grid[::-1], grid):
        for lam_s, lam_t in itertools.pairwise(way):
            (a_s, s_s), (a_t, s_t) = model.schedule.path.at(lam_s), model.schedule.path.at(lam_t)
            eps = model(x, lam_s)
            x = a_t * (x - s_s * eps) / a_s + s_t * eps
        if way[0] > way[-1]:
            noise = x
    x_t, back, spent = round_trip(model, x0, solver="ddim", nfe=7, grid="logsnr")
    torch.testing.assert_close(x_t, noise, rtol=0, atol=1e-10)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    assert spent == 7


def test_budgets_are_kept_in_whole_steps(mixture32):
    prepared = [prepare_whole_steps(solver, mixture32, 20, "time") for solver in ("ddim", "dpm2", "dpm3", "unipc3")]
    assert [len(each.grid) - 1 for each in prepared] == [20, 10, 6, 20]
    assert [each.nfe for each in prepared] == [20, 20, 18, 20]
    for solver, word in [("pndm", "pndm spends"), ("dpm23", "chooses"), ("dopri5", "dopri5"), ("dpm3", "at least 3")]:
        with pytest.raises(InputError, match=word):
            prepare_whole_steps(solver, mixture32, 2 if solver == "dpm3" else 20, "time")


def test_noise_at_the_clean_end_is_that_of_its_sigma():
    images = Reconstruction("mixture", 20, None, 0)
    model = images.model("float64")
    cell = {"dtype": "float64", "start": "x0 + noise"}
    alpha, sigma = model.schedule.path.at(model.schedule.lam_max)
    z = (images.start(model, cell) - alpha * images.x0.double()) / sigma
    assert abs(z.square().mean() - 1) < 5 * np.sqrt(2 / z.numel())
    assert (images.start(model, {**cell, "start": "x0"}) == images.x0).all()


def test_a_mean_square_is_that_of_pixels_on_0_to_1():
    images = Reconstruction("mixture", 3, None, 0)
    cell = cells(("ddim",), (10,))[0]
    row = images.measure(cell)
    model = images.model("float32")
    back = round_trip(model, images.x0, solver="ddim", nfe=10, grid=cell["grid"])[1]
    pixels = [(x.double() + 1) / 2 for x in (images.x0, back)]
    each = (pixels[0] - pixels[1]).square().flatten(1).mean(1)
    assert abs(row["mse"] - each.mean()) < 1e-7
    assert abs(row["mse_se"] - np.std(each.numpy(), ddof=1) / np.sqrt(3)) < 1e-7


def test_the_cells():
    """Every solver at each S up to MOST, ddim beyond; two extra cells beside one of the same numbers; no cell twice."""
    made = cells(table2.SOLVERS, table2.BUDGETS)
    assert len({json.dumps(cell) for cell in made}) == len(made)
    plain = [cell for cell in made if (cell["dtype"], cell["start"]) == ("float32", "x0")]
    assert {cell["nfe"] for cell in plain if cell["solver"] == "ddim"} == set(table2.BUDGETS)
    for other in (cell for cell in made if cell not in plain):
        assert {**other, "dtype": "float32", "start": "x0"} in plain


def run(*args):
    return CliRunner().invoke(table2.main, [*args])


FAST = ["--fast", "--model", "mixture", "--solver", "ddim", "--solver", "dpm3"]


def test_the_command_resumes_and_reports(tmp_path, monkeypatch):
    out = tmp_path / "new" / "table2"
    result = run(*FAST, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.parent.iterdir()) == [
        f"table2{end}" for end in ("-images.png", ".csv", ".json", ".png")
    ]
    for name, shape in {"-images.png": (2, 4), ".png": None}.items():
        with Image.open(out.with_name(out.name + name)) as image:
            assert image.width > image.height > 100
            assert shape is None or abs(image.width / image.height - shape[1] / shape[0]) < 0.4
    about, found = results.read(out)
    assert about["images"] == 2
    assert len(found) == len(cells(("ddim", "dpm3"), (10, 20)))
    assert all(0 < row["mse"] < 1 and row["spent"] <= row["nfe"] for row in found)
    text = table2.report(out)
    assert result.stdout.endswith(text + "\n")
    assert f"| ddim | {found[0]['mse']:.2g} ± {found[0]['mse_se']:.1g} |" in text
    assert "0.014" in text

    def measure(images, cell):
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(Reconstruction, "measure", measure)
    assert run(*FAST, "--out", str(out)).exit_code == 0
    assert results.read(out)[1] == found


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--solver", "dmpp2m"], "did you mean"),
        (["--solver", "ddpm"], "draws noise"),
        (["--solver", "dpm23"], "chooses"),
        (["--model", "nonesuch"], "no model"),
        (["--data-dir", "nowhere"], "no images"),
    ],
)
def test_the_command_refuses(tmp_path, args, word):
    result = run("--fast", "--model", "mixture", "--out", str(tmp_path / "a"), *args)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_images(tmp_path):
    """Real ones; a mixture's own; others with their labels, or none; of the model's shape, or a refusal."""
    fashion, mixture = pretrained.load("fashion"), pretrained.load("mixture")
    x0, labels, _ = images_of(fashion, 12, None)
    assert (x0 == real_images(12)[0]).all()
    own, of_class, _ = images_of(mixture, 12, None)
    assert (of_class == labels).all()
    assert (own[3] == mixture.model.network.sample(1, seed=3, y=3)).all()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    images = Reconstruction("mixture", 2, str(tmp_path / "a.npz"), 0)
    assert (to_pixels(images.x0) == pixels[:2]).all()
    assert not images.model("float32").condition
    np.savez(tmp_path / "b.npz", arr_0=pixels[:, :14], arr_1=np.arange(3))
    with pytest.raises(InputError, match=r"\(1, 14, 28\).*data_dir"):
        images_of(mixture, 2, str(tmp_path / "b.npz"))


# The published tables


def test_table_1_is_every_cell_of_the_paper():
    found = published.table("ddim_table1")
    keys = {(row["dataset"], row["eta"], row["S"]) for row in found}
    assert len(keys) == len(found) == 2 * 5 * 5
    of = {(row["dataset"], row["eta"], int(row["S"])): float(row["fid"]) for row in found}
    for dataset in ("CIFAR-10", "CelebA"):
        for eta in ("0.0", "0.2", "0.5", "1.0", "sigma-hat"):
            line = [of[dataset, eta, steps] for steps in (10, 20, 50, 100, 1000)]
            assert line == sorted(line, reverse=True)
        assert min(of[dataset, eta, 10] for eta in ("0.0", "0.2", "0.5", "1.0", "sigma-hat")) == of[dataset, "0.0", 10]
        assert min(of[dataset, eta, 1000] for eta in ("0.0", "0.2", "0.5", "1.0", "sigma-hat")) == of[dataset, "sigma-hat", 1000]


def test_table_2_and_an_unknown_one():
    found = published.table("ddim_table2")
    assert [int(row["S"]) for row in found] == list(table2.BUDGETS)
    with pytest.raises(InputError, match="ddim_table1, ddim_table2"):
        published.table("ddim_table3")
