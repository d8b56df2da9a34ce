"""Predictions: any native output of a network, with x, gives any other exactly."""

import numpy as np
import pytest

from diffode import InputError, prediction, schedules

NAMES = ("noise", "data", "velocity", "tangent", "flow", "reverse-flow", "score", "edm", "edm(0.7)")
ENDS = [(np.sin(0.3), np.cos(0.3)), (1.0, 0.7), (1.0, 80.0), (1.0, 0.002), (0.02, 0.98), (0.0, 1.0), (1.0, 0.0)]
every_pair = [(native, wanted) for native in NAMES for wanted in NAMES]


def predicted(name, x0, eps, alpha, sigma):
    """What a perfect network of that kind returns at α x0 + σ ε."""
    if name in ("velocity", "tangent"):
        return alpha * eps - sigma * x0
    if name.startswith("edm"):  # solved for F in D(y; σ̄) = c_skip y + c_out F, y = x/α, Table 1 of Karras et al. (2022)
        sigma_data = 0.7 if "0.7" in name else 0.5
        with np.errstate(divide="ignore", invalid="ignore"):
            y, sigma_bar = x0 + sigma / np.float64(alpha) * eps, sigma / np.float64(alpha)
            c_skip = sigma_data**2 / (sigma_bar**2 + sigma_data**2)
            c_out = sigma_bar * sigma_data / np.hypot(sigma_bar, sigma_data)
            return x0 / sigma_data if alpha == 0 else -eps if sigma == 0 else (x0 - c_skip * y) / c_out  # the limits
    opposite = {"flow": eps - x0, "reverse-flow": x0 - eps}
    return {**opposite, "noise": eps, "data": x0, "score": -eps / sigma if sigma else np.inf * eps}[name]


def assert_converts(native, wanted, alpha, sigma):
    x0, eps = np.random.default_rng(0).standard_normal((2, 1000))
    a, b = prediction.convert(native, wanted, alpha, sigma)
    assert np.isfinite([a, b]).all()
    found = a * (alpha * x0 + sigma * eps) + b * predicted(native, x0, eps, alpha, sigma)
    exact = predicted(wanted, x0, eps, alpha, sigma)
    # roundings of 4e-16 in x, enlarged by dividing by the smallest α or σ here (0.001), twice for the score
    assert abs(found - exact).max() < (5e-9 if wanted == "score" else 5e-12)


def test_all_predictions_are_here():
    assert {*prediction.PREDICTIONS, "edm(0.7)"} == set(NAMES)


@pytest.mark.parametrize(("native", "wanted"), every_pair)
def test_every_pair(native, wanted):
    for alpha, sigma in (end for end in ENDS if all(end)):
        assert_converts(native, wanted, alpha, sigma)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_pair_at_the_ends_of_every_schedule(name):
    schedule = schedules.make(name)
    for native, wanted in every_pair:
        for lam in (schedule.lam_min, schedule.lam_max):
            assert_converts(native, wanted, float(schedule.alpha(lam)), float(schedule.sigma(lam)))


@pytest.mark.parametrize("native", ["noise", "velocity", "flow", "edm", "edm(0.7)"])
@pytest.mark.parametrize("wanted", ["noise", "data", "velocity", "flow", "reverse-flow", "edm"])
def test_pure_data(native, wanted):
    assert_converts(native, wanted, 1.0, 0.0)


@pytest.mark.parametrize("native", ["data", "velocity", "flow", "reverse-flow", "edm", "edm(0.7)"])
@pytest.mark.parametrize("wanted", NAMES)
def test_pure_noise(native, wanted):
    assert_converts(native, wanted, 0.0, 1.0)


def test_state_alone_tells_the_visible_half():
    assert prediction.convert("data", "noise", 0.0, 2.0) == (0.5, 0.0)
    assert prediction.convert("noise", "data", 2.0, 0.0) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("native", "wanted", "alpha", "sigma"),
    [
        *[("noise", wanted, 0.0, 1.0) for wanted in ("data", "velocity", "flow")],
        *[("score", wanted, 0.0, 1.0) for wanted in ("data", "velocity", "flow")],
        *[("data", wanted, 1.0, 0.0) for wanted in ("noise", "velocity", "flow", "score")],
        *[(native, "score", 1.0, 0.0) for native in ("noise", "velocity", "flow")],  # −ε/0
    ],
)
def test_left_open(native, wanted, alpha, sigma):
    with pytest.raises(InputError, match=f"predicts {native} does not determine {wanted}"):
        prediction.convert(native, wanted, alpha, sigma)


@pytest.mark.parametrize("native", NAMES)
def test_itself_is_itself(native):
    for alpha, sigma in ENDS:
        assert prediction.convert(native, native, alpha, sigma) == (0.0, 1.0)


def test_check():
    assert [prediction.check(name) for name in NAMES] == list(NAMES)
    with pytest.raises(InputError, match="noise, data, velocity, tangent, flow, reverse-flow, score, edm"):
        prediction.check("epsilon")


@pytest.mark.parametrize("name", ["edm(0)", "edm(-1)", "edm(nan)", "edm(x)", "edm()", "edm(1e9)", "edm(0.5", "noise(1)"])
def test_a_standard_deviation_that_is_none(name):
    with pytest.raises(InputError):
        prediction.check(name)


def test_two_names_of_the_same_preconditioning():
    assert prediction.convert("edm", "edm(0.5)", 0.6, 0.8) == (0.0, 1.0)


@pytest.mark.parametrize("sigma_data", [0.5, 0.7])
def test_the_input_scale_makes_data_of_that_deviation_unit(sigma_data):
    """Var(c x) = c² (α² σ_data² + σ²) = 1, for numbers and for arrays, at both ends too; all other networks see x."""
    alpha, sigma = np.array(ENDS).T
    c = prediction.input_scale(f"edm({sigma_data})", alpha, sigma)
    assert abs(c**2 * (alpha**2 * sigma_data**2 + sigma**2) - 1).max() < 1e-14
    assert prediction.input_scale("edm", 0.0, 2.0) == 0.5
    assert prediction.input_scale("noise", alpha, sigma).tolist() == [1.0] * len(ENDS)
