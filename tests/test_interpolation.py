"""Interpolation: slerp is what Eq. 67 says, of each pair alone; the numbers are those of the paths; and the command."""

import math

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffode import InputError
from diffode.models import checkpoint, pretrained
from experiments.common import results
from experiments.ddim_paper import interpolation
from experiments.ddim_paper.interpolation import POINTS, ends, lerp, measure, path, slerp
from solvers import Budget, find, sample


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((5, 1, 28, 28), generator=generator, dtype=torch.float64) for _ in range(2)]


def test_slerp_begins_at_x_and_ends_at_y(pair):
    x, y = pair
    torch.testing.assert_close(slerp(x, y, 0.0), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(slerp(x, y, 1.0), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("w", [0.1, 0.5, 0.8])
def test_slerp_is_equation_67(pair, w):
    """Written out for one pair at a time."""
    for x, y, between in zip(*pair, slerp(*pair, w), strict=True):
        theta = math.acos(float((x * y).sum() / x.norm() / y.norm()))
        expected = (math.sin((1 - w) * theta) * x + math.sin(w * theta) * y) / math.sin(theta)
        torch.testing.assert_close(between, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("w", [0.25, 0.5, 0.9])
def test_slerp_of_one_norm_keeps_it_and_turns_evenly(pair, w):
    x, y = (z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for z in pair)
    between = slerp(x, y, w)
    one = torch.ones(len(x), dtype=torch.float64)
    torch.testing.assert_close(between.flatten(1).norm(dim=1), one, rtol=0, atol=1e-12)
    angle, whole = (torch.acos((x * z).flatten(1).sum(1)) for z in (between, y))
    torch.testing.assert_close(angle, w * whole, rtol=0, atol=1e-12)


def test_slerp_is_of_each_pair_alone(pair):
    x, y = pair
    whole = slerp(x, y, 0.3)
    for i in range(len(x)):
        assert (slerp(x[[i]], y[[i]], 0.3) == whole[[i]]).all()
    scaled = x * torch.arange(1, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(slerp(scaled, y, 0.3)[0], whole[0], rtol=0, atol=0)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-7, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_of_nearly_parallel_states_is_linear(pair, apart, dtype):
    x = pair[0].to(dtype)
    y = (2 * x + apart * pair[1]).to(dtype)
    for w in (0.0, 0.4, 1.0):
        torch.testing.assert_close(
            slerp(x, y, w), lerp(x, y, w), rtol=0, atol=max(apart, 1e-5 if dtype == torch.float32 else 1e-12)
        )


def test_slerp_refuses(pair):
    x, y = pair
    with pytest.raises(InputError, match="one shape"):
        slerp(x, y[:2], 0.5)
    for other in (-x, -3 * x, 0 * x):
        with pytest.raises(InputError, match="opposite"):
            slerp(x, other, 0.5)


def test_slerp_of_noise_is_noise_and_lerp_is_not():
    """In 784 dimensions, to the spread of a norm of N(0, I): 1/sqrt(2 · 784) relative."""
    x, y = ends(pretrained.load("mixture"), 200, 0)
    for w in (0.3, 0.5):
        for way, ratio in ((slerp, 1.0), (lerp, math.hypot(w, 1 - w))):
            norm = way(x, y, w).flatten(1).norm(dim=1) / math.sqrt(784)
            assert abs(norm - ratio).max() < 5 / math.sqrt(2 * 784)


def test_the_numbers_of_known_paths():
    """A straight path of even steps; and one that jumps, of x_T of twice the norm in the middle, without detail there."""
    a, b = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    a[:, :, ::2], b[:, :, ::2] = 1, 0  # stripes, of detail 1
    w = torch.linspace(0, 1, POINTS).view(1, -1, 1, 1, 1)
    straight = (1 - w) * a[:, None] + w * b[:, None]
    found = measure(torch.ones_like(straight), straight)
    assert found["norm"] == 1
    assert abs(found["largest"] - 1 / (POINTS - 1)) < 1e-6
    assert abs(found["detail"]) < 1e-6  # the stripes and their negative cancel in the middle
    jumping = torch.where(w < 0.45, a[:, None], b[:, None])
    between = torch.ones_like(jumping)
    between[:, POINTS // 2] = 2
    found = measure(between, jumping)
    assert (found["norm"], found["largest"], found["detail"]) == (2, 1, 1)
    assert all(found[f"{name}_se"] == 0 for name in ("norm", "largest", "detail"))


def test_a_path_is_of_its_pair_alone_and_its_ends_are_samples(mixture32):
    loaded = pretrained.load("mixture")
    x, y = ends(loaded, 4, 7)
    prepared = find("dpmpp2m").prepare(Budget(nfe=6), loaded.model.schedule)
    how = {"way": "slerp", "labels": "same", "solver": prepared}
    states, decoded = path(loaded, x, y, **how)
    assert states.shape == decoded.shape == (4, POINTS, 1, 28, 28)
    assert (decoded[:2] == path(loaded, x[:2], y[:2], **how)[1]).all()
    labelled = mixture32.labelled([0, 1, 2, 3])
    expected = sample(labelled, shape=(4, 1, 28, 28), seed=[7, 9, 11, 13], solver="dpmpp2m", nfe=6).x
    torch.testing.assert_close(decoded[:, 0], expected, rtol=0, atol=1e-4)
    other = path(loaded, x, y, **{**how, "labels": "none"})[1]
    assert ((other - decoded).abs() > 0.01).any()


def run(*args):
    return CliRunner().invoke(interpolation.main, [*args])


def test_the_command_resumes_and_reports(tmp_path, monkeypatch):
    out = tmp_path / "new" / "interpolation"
    fast = ["--fast", "--model", "mixture", "--out", str(out)]
    result = run(*fast)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.parent.iterdir()) == [f"interpolation{end}" for end in (".csv", ".json", ".png")]
    with Image.open(out.with_suffix(".png")) as image:
        assert image.width > 28 * POINTS
        assert image.height > 4 * 2 * 28
    _, found = results.read(out)
    assert [(row["way"], row["labels"]) for row in found] == [(w, p) for w in ("slerp", "lerp") for p in ("same", "none")]
    text = interpolation.report(out)
    assert result.stdout.endswith(text + "\n")
    assert all(f"{row['detail']:.3f} ± {row['detail_se']:.3f}" in text for row in found)

    def again(*args):
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(interpolation, "measure", again)
    assert run(*fast).exit_code == 0
    assert results.read(out)[1] == found
    assert run(*fast, "--seed", "1").exit_code == 2


def test_a_model_without_labels(tmp_path, toy_tensors):
    card = {"kind": "mixture", "image": [1, 2, 3], "classes": [], "predicts": "velocity", "clock": "lam"}
    checkpoint.save(tmp_path / "toy.safetensors", toy_tensors, {**card, "schedule": {"name": "ddpm_linear", "options": {}}})
    out = tmp_path / "a"
    result = run("--fast", "--model", str(tmp_path / "toy.safetensors"), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert [row["labels"] for row in results.read(out)[1]] == ["none", "none"]


@pytest.mark.parametrize(
    ("args", "word"),
    [(["--solver", "ddpm"], "draws noise"), (["--solver", "ddmi"], "ddim"), (["--model", "nonesuch"], "no model")],
)
def test_the_command_refuses(tmp_path, args, word):
    result = run("--fast", "--model", "mixture", "--out", str(tmp_path / "a"), *args)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert list(tmp_path.iterdir()) == []
