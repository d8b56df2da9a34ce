"""Consistency: the correlation is what it says on laws that are known; one x_T is one sample, but for DDPM; and the command."""

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffode.models import checkpoint
from experiments.common import results
from experiments.ddim_paper import consistency
from experiments.ddim_paper.consistency import Sampler, cells
from solvers import sample

TRUTH = {"solver": "dpm3", "nfe": 60, "grid": "logsnr"}


@pytest.fixture(scope="module")
def sampler():
    return Sampler("mixture", 40, 0, TRUTH, 40)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_correlation_is_that_of_the_samples_about_their_class(sampler, monkeypatch, shared):
    """x = class mean + sqrt(ρ) a + sqrt(1 − ρ) b, r = class mean + sqrt(ρ) a + sqrt(1 − ρ) c have correlation ρ."""
    generator = torch.Generator().manual_seed(0)
    a, b, c, mean = (torch.randn((40, 1, 28, 28), generator=generator) for _ in range(4))
    mean = 10 * mean[sampler.labels]

    def draw(self, cell, rows=None):
        return mean + shared**0.5 * a + (1 - shared) ** 0.5 * (c if cell["solver"] == TRUTH["solver"] else b)

    monkeypatch.setattr(Sampler, "draw", draw)
    row = Sampler("mixture", 40, 0, TRUTH, 40).measure({"solver": "ddim", "nfe": 10, "grid": "time"})
    assert abs(row["correlation"] - shared) < 0.02
    assert abs(row["unrelated"] - 2**0.5) < 0.02
    assert abs(row["distance"] - (2 - 2 * shared) ** 0.5) < 0.02


def test_one_x_t_is_one_sample_but_for_ddpm(sampler):
    """DDIM comes nearer with S, and its samples are the reference's; those of DDPM are as good as unrelated."""
    ddim = [sampler.measure({"solver": "ddim", "nfe": nfe, "grid": "logsnr"}) for nfe in (10, 20, 40)]
    assert ddim[0]["median"] > 1.5 * ddim[1]["median"] > 2.25 * ddim[2]["median"]
    assert ddim[2]["correlation"] > 0.99
    ddpm = sampler.measure({"solver": "ddpm", "nfe": 20, "grid": "logsnr"})
    assert ddpm["correlation"] < 0.5
    assert ddpm["reference"] == "its own at 40 NFE"
    assert sampler.measure({**TRUTH, "nfe": 48})["distance"] < 0.01


def test_rows_are_seeds_in_any_batch(sampler):
    for solver in ("ddim", "ddpm"):
        cell = {"solver": solver, "nfe": 6, "grid": "time"}
        assert (sampler.draw(cell)[[3, 8]] == sampler.draw(cell, [3, 8])).all()
    assert (Sampler("mixture", 2, 8, TRUTH, 40).x == sampler.x[8:10]).all()


def test_two_s_share_their_x_t_and_no_other_noise(sampler, monkeypatch):
    seen = []

    def sampled(model, *, x, seed, **how):
        seen.append((x, seed))
        return sample(model, x=x, seed=seed, **how)

    monkeypatch.setattr(consistency, "sample", sampled)
    for nfe in (5, 10):
        sampler.draw({"solver": "ddpm", "nfe": nfe, "grid": "time"})
    (x, seeds), (other_x, other_seeds) = seen
    assert (x == other_x).all()
    assert len({*seeds, *other_seeds, *sampler.seeds}) == 3 * len(x)


def test_the_cells():
    made = cells(consistency.SOLVERS, (10, 100, 1000), "time", TRUTH)
    of = {solver: [cell["nfe"] for cell in made[:-1] if cell["solver"] == solver] for solver in consistency.SOLVERS}
    assert of.pop("ddim") == [10, 100, 1000]
    assert of.pop("ddpm") == [10, 100]  # the last is the reference
    assert all(nfes == [10, 100] for nfes in of.values())
    assert made[-1] == {**TRUTH, "nfe": 30}


def run(*args):
    return CliRunner().invoke(consistency.main, [*args])


def test_the_command_resumes_and_reports(tmp_path, monkeypatch):
    out = tmp_path / "new" / "consistency"
    fast = ["--fast", "--model", "mixture", "--solver", "ddim", "--solver", "ddpm", "--out", str(out)]
    result = run(*fast)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.parent.iterdir()) == [f"consistency{end}" for end in (".csv", ".json", ".png")]
    with Image.open(out.with_suffix(".png")) as image:
        assert image.width > image.height > 3 * 28
    _, found = results.read(out)
    assert [(row["solver"], row["nfe"]) for row in found[:-1]] == [*(("ddim", s) for s in (5, 10, 20)), ("ddpm", 5), ("ddpm", 10)]
    text = consistency.report(out)
    assert result.stdout.endswith(text + "\n")
    assert f"| ddim | {found[0]['correlation']:.3f} ± " in text

    def measure(sampler, cell):
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(Sampler, "measure", measure)
    assert run(*fast).exit_code == 0
    assert results.read(out)[1] == found


def test_a_model_without_labels(tmp_path, toy_tensors):
    card = {"kind": "mixture", "image": [1, 2, 3], "classes": [], "predicts": "velocity", "clock": "lam"}
    checkpoint.save(tmp_path / "toy.safetensors", toy_tensors, {**card, "schedule": {"name": "ddpm_linear", "options": {}}})
    result = run("--fast", "--model", str(tmp_path / "toy.safetensors"), "--solver", "ddim", "--out", str(tmp_path / "a"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--solver", "ddmi"], "ddim"),
        (["--solver", "dpm23"], "chooses"),
        (["--grid", "nonesuch"], "unknown grid"),
        (["--model", "nonesuch"], "no model"),
    ],
)
def test_the_command_refuses(tmp_path, args, word):
    result = run("--fast", "--model", "mixture", "--out", str(tmp_path / "a"), *args)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert list(tmp_path.iterdir()) == []
