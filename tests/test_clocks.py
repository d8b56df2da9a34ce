"""Clocks by name and by function, whichever way they run; and EDM's preconditioning, with a clock and an input of its own."""

import math

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, encode, log_likelihood, sample, schedules
from diffode.clocks import CLOCKS, lam_at, named

SCHEDULE = schedules.vp_linear()
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def clock_seen(clock, lams, schedule=SCHEDULE):
    seen = []

    def network(x, t):
        seen.append(t)
        return 0 * x

    model = EpsModel(network, schedule, clock=clock)
    model.at(X.double(), lams) if np.ndim(lams) else model(X.double(), lams)
    return seen[0]


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.flow(), schedules.edm()], ids=lambda s: s.name)
def test_every_clock_by_its_formula(schedule):
    lams = np.array([-1.0, 0.5, 2.0])
    alpha, sigma, t = schedule.alpha(lams), schedule.sigma(lams), schedule.t(lams)
    exact = {"t": t, "lam": lams, "sigma": sigma, "sigma_bar": sigma / alpha, "log_sigma_bar": np.log(sigma / alpha)}
    exact |= {"c_noise": np.log(sigma / alpha) / 4, "1000t": 1000 * t, "1-t": 1 - t, "500t": 500 * t}
    exact["angle"] = np.arctan2(sigma, alpha) * 2 / np.pi
    assert exact.keys() == (CLOCKS.keys() - {"label"}) | {"500t"}
    for clock, values in exact.items():
        np.testing.assert_allclose(clock_seen(clock, lams, schedule), values, rtol=1e-12, atol=1e-12)


def test_a_clock_of_ones_own():
    lams = np.array([-1.0, 0.5, 2.0])
    assert clock_seen(np.tanh, lams).tolist() == np.tanh(lams).tolist()
    assert clock_seen(np.tanh, 0.5).tolist() == [np.tanh(0.5)] * 3


@pytest.mark.parametrize("clock", [lambda: 1, lambda lam: 1 / 0, float, lambda lam: [math.log(one) for one in lam]])
def test_a_clock_that_fails_is_named_with_its_λ(clock):
    with pytest.raises(InputError, match=r"the clock must be a function of an array of λ; .* from -1 to 2 it fails with"):
        clock_seen(clock, np.array([-1.0, 0.5, 2.0]))


@pytest.mark.parametrize("lam", [-np.inf, np.inf])
@pytest.mark.parametrize("clock", ["c_noise", "lam", "sigma_bar", "log_sigma_bar", "t", "angle", "sigma"])
def test_a_clock_that_is_infinite_does_not_reach_the_network(clock, lam):
    """σ̄ is finite for data, where its logarithm is not. λ itself is what a network that takes it knows, with its ends."""
    schedule = schedules.flow(0.0, 1.0)
    if clock == "lam":
        assert clock_seen(clock, lam, schedule).tolist() == [lam] * 3
        return
    if clock in ("t", "angle", "sigma") or (clock, lam) == ("sigma_bar", np.inf):
        assert clock_seen(clock, lam, schedule).tolist() == [float(lam < 0)] * 3
        return
    with pytest.raises(InputError, match=f"the clock {clock} is infinite at λ = {lam:g}, .* whose end is finite"):
        clock_seen(clock, lam, schedule)


@pytest.mark.parametrize("predicts", ["edm", "edm(0.7)"])
@pytest.mark.parametrize("name", ["edm", "vp_linear", "flow"])
def test_an_edm_network_by_karras_formula(predicts, name):
    """D(y; σ̄) = c_skip y + c_out F(c_in y; c_noise), y = x/α and σ̄ = σ/α, at one λ and at one for each sample, by hand."""
    sigma_data = 0.7 if "0.7" in predicts else 0.5

    def raw(x, c_noise):
        return torch.sin(3 * x) + c_noise[:, None, None, None]

    schedule, x = schedules.make(name), X.double()
    model = EpsModel(raw, schedule, predicts, clock="c_noise")
    for lams in (np.array([0.3, 0.3, 0.3]), np.array([-1.0, 0.5, 2.0])):
        alpha, sigma = (torch.as_tensor(f(lams)).view(3, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        y, sigma_bar = x / alpha, sigma / alpha
        total = sigma_bar**2 + sigma_data**2
        inner = raw(y / total.sqrt(), sigma_bar.log().flatten() / 4)
        denoised = sigma_data**2 / total * y + sigma_bar * sigma_data / total.sqrt() * inner
        assert abs(model.at(x, lams, "data") - denoised).max() < 1e-12
    assert abs(model(x, 0.3, "data") - model.at(x, [0.3] * 3, "data")).max() < 1e-12


def gaussian(schedule, s, predicts):
    """The exact network of N(0, s²) data: F of EDM, or x0 − ε, from x̂0 = α s² x/(α² s² + σ²), called as such networks are."""

    def edm(x, c_noise):
        lam, of_each = (-4 * c_noise).detach().numpy(), (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (torch.as_tensor(function(lam)).view(of_each) for function in (schedule.alpha, schedule.sigma))
        n = torch.sqrt(sigma**2 + alpha**2 / 4)
        x = x * n
        x0 = alpha * s**2 * x / (alpha**2 * s**2 + sigma**2)
        return (x0 - x * alpha / 4 / n**2) * 2 * n / sigma

    def flow(x, t):
        alpha = t.view(-1, *[1] * (x.ndim - 1))
        return (alpha * s**2 - (1 - alpha)) * x / (alpha**2 * s**2 + (1 - alpha) ** 2)

    return edm if predicts == "edm" else flow


@pytest.mark.parametrize("name", ["edm", "vp_linear"])
def test_the_likelihood_of_an_edm_network_is_that_of_its_data(name):
    """log N(x; 0, s²) in closed form. The divergence is of the network as it is called, with c_in x: without the scale in it the
    result is off by more than 1."""
    schedule, s = schedules.make(name), 0.8
    model = EpsModel(gaussian(schedule, s, "edm"), schedule, "edm", clock="c_noise")
    x = s * torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = log_likelihood(model, x, encode, solver="dpm3", nfe=60, probes=0).log_p
    exact = torch.distributions.Normal(0, s).log_prob(x).sum(1)
    assert (found - exact).abs().max() < 2e-3  # both ends of the schedule are a little short


@pytest.mark.parametrize(
    "how",
    [
        *({"solver": solver, "steps": 6} for solver in ("deis-t", "euler")),
        {"solver": "dpmpp2m", "steps": 6, "denoise": True},
        {"solver": "rk4", "variable": "t", "steps": 6},
        {"solver": "unipc3", "nfe": 7, "grid": "quadratic"},
    ],
    ids=lambda how: how["solver"],
)
@pytest.mark.parametrize("ends", [(0.001, 0.999), (0.0, 1.0)], ids=["finite", "infinite"])
def test_the_direction_of_the_clock_changes_nothing(how, ends):
    """One exact flow network, said with t = σ and with t = 1 − σ, shifted by 3: the same grid and samples, whatever variable is
    stepped in."""
    if ends == (0.0, 1.0) and how["solver"] in ("deis-t", "rk4"):
        pytest.skip("steps in variables that are infinite there")
    backwards = schedules.flow(*ends, shift=3.0, reverse=True)
    network = gaussian(backwards, 0.8, "reverse-flow")
    reversed_ = EpsModel(network, backwards, "reverse-flow")
    forwards = EpsModel(lambda x, t: -network(x, 1 - t), schedules.flow(*ends, shift=3.0), "flow")
    given = {"shape": (3, 2), "dtype": torch.float64, **how}
    x = sample(reversed_, **given).x
    assert x.std() > 0.1
    torch.testing.assert_close(x, sample(forwards, **given).x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("clock", "schedule"),
    [
        ("t", schedules.scaled_linear()),
        ("1000t", schedules.flow(0, 1, 3.0, reverse=True)),
        ("500t", schedules.flow(0, 1)),
        ("c_noise", schedules.edm()),
        ("sigma", schedules.edm()),
        ("angle", schedules.vp_sigma()),
    ],
)
def test_the_clock_of_lam_is_inverted(clock, schedule):
    """At rounding, and in float32 at both ends within the schedule."""
    lams = np.linspace(max(schedule.lam_min, -9), min(schedule.lam_max, 9), 5)
    clocks = named(clock)(schedule, lams)
    np.testing.assert_allclose([lam_at(schedule, clock, t) for t in clocks], lams, rtol=0, atol=1e-8)
    for t in clocks[[0, -1]].astype(np.float32):
        assert schedule.lam_min <= lam_at(schedule, clock, float(t)) <= schedule.lam_max
