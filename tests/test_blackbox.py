"""torchdiffeq through diffode: agreement with exact solutions and planned solvers, and what it is kept from doing."""

import numpy as np
import pytest
import scipy.stats
import torch

from diffode import EpsModel, InputError, ode, schedules
from diffode.noise import SeededNoise
from solvers import SOLVERS, BlackBox, sample

METHODS = [name for name, entry in SOLVERS.items() if isinstance(entry, BlackBox)]
KW = {"shape": (16, 1, 28, 28), "dtype": torch.float64}


@pytest.fixture(scope="module")
def truth(mixture64):
    schedule = mixture64.schedule
    x = SeededNoise(range(16))(0, torch.empty(KW["shape"], dtype=torch.float64)) * float(schedule.sigma(schedule.lam_min))
    return ode.accurate(mixture64, x, schedule.lam_min, schedule.lam_max)


def rms(x):
    """Root mean square over the pixels, a number a sample."""
    return x.flatten(1).square().mean(1).sqrt()


def test_dopri5_agrees_with_the_accurate_solution(mixture64, truth):
    assert (sample(mixture64, solver="dopri5", rtol=1e-10, atol=1e-10, **KW).x - truth).abs().max() < 1e-6


def test_dpm3_at_600_evaluations_agrees_with_the_accurate_solution(mixture64, truth):
    """To 1e-6: the median sample on the default grid, and the rms of all on one that is denser where the images form."""
    assert rms(sample(mixture64, solver="dpm3", nfe=600, **KW).x - truth).median() < 1e-6
    ends = mixture64.schedule.lam_min, mixture64.schedule.lam_max
    normal = scipy.stats.norm(-0.5, 3)
    lams = [ends[0], *normal.ppf(np.linspace(*normal.cdf(ends), 201))[1:-1], ends[1]]
    result = sample(mixture64, solver="dpm3", nfe=600, grid=lams, **KW)
    assert rms(result.x - truth).square().mean().sqrt() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_the_equation_and_stays_between_the_ends(method, mixture64, truth):
    asked = []
    model = mixture64.watched(lambda evaluation, lam, m: asked.append(lam))
    how = {"rtol": 1e-6, "atol": 1e-6} if SOLVERS[method].method.adaptive else {"steps": 100}
    result = sample(model, solver=method, **how, **KW)
    assert rms(result.x - truth).median() < (0.1 if SOLVERS[method].order == 1 else 0.01)
    assert result.nfe == len(asked)
    assert model.schedule.lam_min == min(asked)
    assert max(asked) <= model.schedule.lam_max


@pytest.mark.parametrize(("method", "nfe"), [("euler-lambda", 7), ("midpoint", 8), ("heun2", 8), ("heun3", 9), ("rk4", 12)])
def test_fixed_methods_spend_what_they_are_given(method, nfe, mixture32):
    assert sample(mixture32, solver=method, nfe=nfe, shape=(1, 1, 28, 28)).nfe == nfe


@pytest.mark.parametrize("method", [name for name in METHODS if not SOLVERS[name].adaptive])
def test_fixed_methods_are_of_their_order(method, mixture64):
    errors = []
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = ode.accurate(mixture64, x, -1.0, 1.0)
    for steps in (160, 320) if method.endswith("adams") else (40, 80):
        lams = np.linspace(-1, 1, steps + 1)
        result = SOLVERS[method].solve(mixture64, x, lams)
        errors.append(float((result.x - exact).square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(SOLVERS[method].order, abs=0.15)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"solver": "dopri5", "nfe": 20}, "adaptive"),
        ({"solver": "explicit_adams", "nfe": 20}, "--steps"),
        ({"solver": "dopri5", "rtol": -1.0}, "positive"),
        ({"solver": "dopri5", "denoise": True}, "finite"),
        ({"solver": "dopri5", "rtol": 1e-9, "atol": 1e-9, "max_nfe": 50}, "spent 50 evaluations by λ = "),
        ({"solver": "explicit_adams", "steps": 9, "grid": "karras"}, "equal steps"),
        ({"solver": "dopri5", "eta": 1.0}, "no option"),
        ({"solver": "dopri5", "steps": 5}, "chooses its own steps"),
        ({"solver": "dopri5", "grid": [-4.0, 0.0, 4.0]}, "chooses its own steps"),
        ({"solver": "rk4", "steps": 5, "rtol": 1e-3}, "no option"),
    ],
)
def test_what_it_cannot_do_is_said(options, what, mixture32):
    with pytest.raises(InputError, match=what):
        sample(mixture32, shape=(1, 1, 28, 28), **options)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_an_output_that_is_not_finite_is_named(method):
    model = EpsModel(lambda x, t: x / (t[0] > 500), schedules.ddpm_linear())
    with pytest.raises(InputError, match=r"not finite at λ = -?\d.*evaluation \d+"):
        sample(model, solver=method, shape=(2, 3))
