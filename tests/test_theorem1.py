"""Theorem 1 of the DDIM paper (experiments/ddim_paper/theorem1.py): the pieces against the equations, and the command."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from diffode import grid, schedules
from diffode.ddim_family import Family
from diffode.noise import SeededNoise
from experiments.ddim_paper import theorem1, theorem1_models

SCHEDULE = schedules.ddpm_linear()
TAU = grid.make("tau-quadratic", SCHEDULE, 5, denoise=True)
each_sigma = pytest.mark.parametrize("sigma", ["η = 1", "η = 0.5", "random"])


def family(sigma):
    return Family(TAU, SCHEDULE, theorem1.sigmas(TAU, SCHEDULE, 0)[sigma])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_sigma
def test_trajectories_are_drawn_from_q(sigma):
    """Every state has the marginal of Lemma 1, and a step the correlation that Eq. 7 gives it."""
    q, n = family(sigma), 20_000
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    states = torch.cat(theorem1.trajectory(q, x0, lambda draw, like: normal(n, 1, seed=draw)), 1).numpy()
    z = (states - q.alpha[:-1] * 0.7) / q.sigma[:-1]
    np.testing.assert_allclose(z.mean(0), 0, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(z.var(0), 1, atol=5 * np.sqrt(2 / n))
    kept = np.sqrt(1 - (q.noise[:-1] / q.sigma[1:-1]) ** 2)
    np.testing.assert_allclose((z[:, 1:] * z[:, :-1]).mean(0), kept, atol=5 * np.sqrt(2 / n))


@each_sigma
def test_the_log_ratio_is_that_of_the_densities(sigma):
    """Eq. 11, with the transition means typed from Eqs. 7, 9 and 10 and torch's normal density."""
    q, x0 = family(sigma), normal(3, 4)
    states = theorem1.trajectory(q, x0, SeededNoise([0, 1, 2]))
    eps = [normal(3, 4, seed=9 + i) for i in range(5)]
    a = np.append(SCHEDULE.alpha(TAU[:-1]) ** 2, 1.0)

    def logpdf(x, mean, std):
        return torch.distributions.Normal(torch.as_tensor(mean), std).log_prob(x).sum(1).numpy()

    def mean(i, x, known):
        return np.sqrt(a[i + 1]) * known + np.sqrt(max(1 - a[i + 1] - q.noise[i] ** 2, 0)) * (
            x - np.sqrt(a[i]) * known
        ) / np.sqrt(1 - a[i])

    f = [(x - np.sqrt(1 - a[i]) * eps[i]) / np.sqrt(a[i]) for i, x in enumerate(states)]
    expected = logpdf(states[0], np.sqrt(a[0]) * x0, np.sqrt(1 - a[0])) - logpdf(states[0], np.zeros((3, 4)), 1)
    for i in range(4):
        expected += logpdf(states[i + 1], mean(i, states[i], x0), q.noise[i]) - logpdf(
            states[i + 1], mean(i, states[i], f[i]), q.noise[i]
        )
    expected -= logpdf(x0, f[4], q.noise[4])
    np.testing.assert_allclose(theorem1.log_ratio(q, x0, states, eps), expected, rtol=1e-9)


@each_sigma
def test_j_of_the_true_noise_is_the_constant(sigma):
    """Where ε_θ knows x0, L = 0: what is left is random in x_T alone, and its mean is C."""
    q, n = family(sigma), 4000
    x0 = normal(n, 4)
    states = theorem1.trajectory(q, x0, lambda draw, like: normal(n, 4, seed=1 + draw))
    true = [(x - a * x0) / s for x, a, s in zip(states, q.alpha, q.sigma, strict=False)]
    off = (theorem1.log_ratio(q, x0, states, true) - theorem1.constant(q, x0)).numpy()
    assert abs(off.mean()) < 5 * off.std() / np.sqrt(n)
    assert off.std() < 0.2 * 4  # the prior's part alone


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """The rows of a fast run on the mixture, and where they lie."""
    out = tmp_path_factory.mktemp("theorem1") / "new" / "theorem1"
    result = CliRunner().invoke(theorem1.main, ["--fast", "--model", "mixture", "--n", "128", "--steps", "8", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return json.loads(out.with_suffix(".json").read_text())["rows"], out, result.output


def test_j_less_l_is_the_same_constant_for_every_eps(fast):
    rows, _, _ = fast
    assert len({row["eps"] for row in rows}) == 5
    assert len(rows) == 15
    for row in rows:
        assert abs(row["paired"]) < 5 * row["paired se"]
        assert abs(row["apart"]) < 5 * row["apart se"]
        assert row["paired se"] < 0.01 * row["J"]  # or the error would hide anything


@pytest.mark.parametrize("wrong", theorem1.WRONG)
@each_sigma
def test_with_the_wrong_factors_it_is_not(fast, wrong, sigma):
    """Neither 0 nor any other constant: it moves from one ε_θ to another by far more than its error."""
    found = {row["eps"]: row for row in fast[0] if row["sigma"] == sigma}
    zero, own = found["zero"], found["its own"]
    assert abs(zero[wrong] - own[wrong]) > 5 * np.hypot(zero[f"{wrong} se"], own[f"{wrong} se"])
    assert abs(zero["paired"] - own["paired"]) < 5 * np.hypot(zero["paired se"], own["paired se"])


def test_the_report_holds_every_row(fast):
    rows, out, _ = fast
    text = theorem1.report(out)
    assert text.count("| mixture |") == len(rows) + 5
    assert "128 images of d = 49, S = 8" in text
    assert all(formula in text for formula in theorem1.WRONG.values())


def test_an_interrupted_run_resumes(fast, tmp_path):
    """With no cell to compute, the rows are those that were there."""
    rows, out, said = fast
    again = CliRunner().invoke(theorem1.main, ["--fast", "--model", "mixture", "--n", "128", "--steps", "8", "--out", str(out)])
    assert again.output.splitlines()[-16:] == said.splitlines()[-16:]
    assert json.loads(out.with_suffix(".json").read_text())["rows"] == rows


def test_the_network(tmp_path):
    """ε_θ of the shipped U-Net, on real images."""
    out = tmp_path / "theorem1"
    result = CliRunner().invoke(theorem1.main, ["--model", "fashion", "--n", "4", "--steps", "3", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert {row["eps"] for row in rows} == set(theorem1_models.OF_NETWORK)
    assert all(abs(row["paired"]) < 8 * row["paired se"] for row in rows)  # a standard error of 4 images is rough


def test_steps_that_make_no_tau(tmp_path):
    result = CliRunner().invoke(theorem1.main, ["--fast", "--model", "mixture", "--steps", "50", "--out", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert "take 29 steps" in result.stderr
