"""torchdiffeq through diffode: agreement with exact solutions and planned solvers, and what it is kept from doing."""

import numpy as np
import pytest
import torch

from diffode import InputError, ode
from diffode.noise import SeededNoise
from solvers import SOLVERS, BlackBox, sample

METHODS = [name for name, entry in SOLVERS.items() if isinstance(entry, BlackBox)]
KW = {"shape": (8, 1, 28, 28), "dtype": torch.float64}


@pytest.fixture(scope="module")
def truth(mixture64):
    schedule = mixture64.schedule
    x = SeededNoise(range(8))(0, torch.empty(KW["shape"], dtype=torch.float64)) * float(schedule.sigma(schedule.lam_min))
    return ode.accurate(mixture64, x, schedule.lam_min, schedule.lam_max)


def rms(x):
    """Root mean square over the pixels, a number a sample."""
    return x.flatten(1).square().mean(1).sqrt()


def test_dopri5_agrees_with_the_accurate_solution(mixture64, truth):
    assert (sample(mixture64, solver="dopri5", rtol=1e-10, atol=1e-10, **KW).x - truth).abs().max() < 1e-6


def test_dpm3_at_600_evaluations_agrees_with_the_accurate_solution(mixture64, truth):
    """To 1e-6 rms over all samples on the quadratic grid; on the default one for the median sample."""
    assert rms(sample(mixture64, solver="dpm3", nfe=600, grid="quadratic", **KW).x - truth).square().mean().sqrt() < 1e-6
    assert rms(sample(mixture64, solver="dpm3", nfe=600, **KW).x - truth).median() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_the_equation_and_stays_between_the_ends(method, mixture64, truth):
    asked = []
    model = mixture64.watched(lambda evaluation, lam, m: asked.append(lam))
    how = {"rtol": 1e-4, "atol": 1e-4} if SOLVERS[method].method.adaptive else {"steps": 100}
    result = sample(model, solver=method, **how, **KW)
    assert rms(result.x - truth).median() < (0.1 if SOLVERS[method].order == 1 else 0.01)
    assert result.nfe == len(asked)
    assert model.schedule.lam_min == min(asked)
    assert max(asked) <= model.schedule.lam_max


@pytest.mark.parametrize(("method", "nfe"), [("euler-lambda", 7), ("midpoint", 8), ("heun2", 8), ("heun3", 9), ("rk4", 12)])
def test_fixed_methods_spend_what_they_are_given(method, nfe, mixture32):
    assert sample(mixture32, solver=method, nfe=nfe, shape=(1, 1, 28, 28)).nfe == nfe


@pytest.mark.parametrize("method", ["midpoint", "heun3", "rk4"])
def test_fixed_methods_are_of_their_order(method, mixture64):
    schedule, errors = mixture64.schedule, []
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = ode.accurate(mixture64, x, -1.0, 1.0)
    for steps in (20, 40):
        lams = np.linspace(-1, 1, steps + 1)
        result = SOLVERS[method].solve(mixture64, x, lams, noise=None, on_commit=None, trajectory=False)
        errors.append(float((result.x - exact).square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(SOLVERS[method].order, abs=0.15)
    assert schedule is mixture64.schedule


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"solver": "dopri5", "nfe": 20}, "adaptive"),
        ({"solver": "explicit_adams", "nfe": 20}, "--steps"),
        ({"solver": "dopri5", "rtol": -1.0}, "positive"),
        ({"solver": "dopri5", "denoise": True, "steps": 2}, "finite"),
        ({"solver": "dopri5", "rtol": 1e-9, "atol": 1e-9, "max_nfe": 50}, "spent 50 evaluations by λ = "),
        ({"solver": "dopri5", "eta": 1.0}, "no option"),
    ],
)
def test_what_it_cannot_do_is_said(options, what, mixture32):
    with pytest.raises(InputError, match=what):
        sample(mixture32, shape=(1, 1, 28, 28), **options)


def test_a_tolerance_below_the_precision_of_the_state_ends_with_a_place(mixture32):
    with pytest.raises(InputError, match="λ = "):
        sample(mixture32, solver="dopri5", rtol=1e-14, atol=1e-14, max_nfe=20_000, shape=(1, 1, 28, 28))
