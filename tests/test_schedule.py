"""Schedules: the paths, the clocks and their inverses, against the papers' formulas in 50 digits."""

import copy
import pickle
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest

from diffode import InputError, schedules

mp.mp.dps = 50
NAMES = list(schedules.SCHEDULES)
BETAS = np.linspace(1e-4, 0.02, 1000)  # of DDPM
GAPS = np.array([0, 1e-12, 1e-9, 1e-6, 1e-3])
# The clean end as near to 0 as the next test goes, where 1 − α² would keep no digit; and the noisy one.
FAR = {
    "ddpm_linear": {"beta_first": 1e-12, "beta_last": 0.5},
    "vp_linear": {"beta_max": 40.0, "t_clean": 1e-9},
    "cosine": {"s": 1e-4, "t_clean": 1e-9, "t_noisy": 1 - 1e-9},
    "edm": {"sigma_min": 1e-9, "sigma_max": 1e9},
    "flow": {"t_clean": 1e-9, "t_noisy": 1 - 1e-9},
}
LABELLED = ("ddpm_linear", "scaled_linear")
CASES = [(name, {}) for name in FAR] + list(FAR.items())  # scaled_linear is the same code as ddpm_linear on other β


def between(first, last, n=41):
    """first, last, what is very near to them, and n points between."""
    sign = np.sign(last - first)
    scale = min(1, abs(last - first))
    return np.concatenate([first + sign * scale * GAPS, np.linspace(first, last, n)[1:-1], last - sign * scale * GAPS[::-1]])


def clock(schedule, n=41):
    """t from the noisy end to the clean one."""
    return between(schedule.t_noisy, schedule.t_clean, n)


def logsnrs(schedule, n=41):
    return between(schedule.lam_min, schedule.lam_max, n)


def ddpm_log_alpha(betas, t):
    """½ Σ log(1 − β) to label t, linear in t between labels."""
    low = int(mp.floor(t))
    log_alpha = sum(mp.log(1 - beta) for beta in betas[: low + 1]) / 2
    return log_alpha + (t - low) * mp.log(1 - betas[low + 1]) / 2 if t > low else log_alpha


def exact(name, t, beta_first=1e-4, beta_last=0.02, beta_min=0.1, beta_max=20.0, s=0.008, **ends):
    """(α, σ) at clock t as the papers define them."""
    t = mp.mpf(t)
    if name == "edm":
        return mp.mpf(1), t
    if name == "flow":
        return 1 - t, t
    if name == "ddpm_linear":
        first, last = mp.mpf(beta_first), mp.mpf(beta_last)
        alpha = mp.exp(ddpm_log_alpha([first + (last - first) * i / 999 for i in range(1000)], t))
    elif name == "vp_linear":
        first, last = mp.mpf(beta_min), mp.mpf(beta_max)
        alpha = mp.exp(-mp.quad(lambda u: first + u * (last - first), [0, t]) / 2)
    else:
        s = mp.mpf(s)
        f = [mp.cos((u + s) / (1 + s) * mp.pi / 2) ** 2 for u in (t, mp.mpf(0))]
        alpha = mp.sqrt(f[0] / f[1])
    return alpha, mp.sqrt(1 - alpha**2)


@pytest.mark.parametrize("name", NAMES)
def test_path_identity(name):
    schedule = schedules.make(name)
    lam = np.concatenate([logsnrs(schedule), [-12, 12]])
    alpha, sigma = schedule.alpha(lam), schedule.sigma(lam)
    kept = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[schedule.path.name]
    assert abs(kept - 1).max() < 4e-15
    assert abs(np.log(alpha / sigma) - lam).max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_round_trips(name):
    schedule = schedules.make(name)
    lam, t = logsnrs(schedule), clock(schedule)
    assert abs(schedule.lam(schedule.t(lam)) - lam).max() < 1e-10
    assert abs(schedule.t(schedule.lam(t)) - t).max() < 1e-10
    assert float(schedule.t(schedule.lam_min)) == pytest.approx(schedule.t_noisy, abs=1e-10)
    assert float(schedule.t(schedule.lam_max)) == pytest.approx(schedule.t_clean, abs=1e-10)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_against_50_digits(name, options):
    schedule = schedules.make(name, **options)
    for t in clock(schedule, n=9):
        alpha, sigma = exact(name, t, **options)
        lam = schedule.lam(t)
        assert abs(lam - mp.log(alpha / sigma)) < 1e-10  # an error of λ is a relative error of σ/α
        assert abs(schedule.alpha(lam) / alpha - 1) < 1e-10
        assert abs(schedule.sigma(lam) / sigma - 1) < 1e-10


@pytest.mark.parametrize(("name", "options"), CASES)
def test_clock_against_50_digits(name, options):
    schedule = schedules.make(name, **options)
    for t in clock(schedule, n=9):
        alpha, sigma = exact(name, t, **options)
        lam = float(mp.log(alpha / sigma))
        assert abs(schedule.t(lam) - t) <= 1e-10 * max(abs(t), schedule.t_clean, 1e-3 if name in LABELLED else 0)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_rate_against_50_digits(name, options):
    """dλ/dt, at the ends too: the one-sided difference into the clock is off by h/2 · λ''/λ' < 1e-18 of itself."""
    schedule = schedules.make(name, **options)
    middle = (schedule.t_noisy + schedule.t_clean) / 2
    for t in clock(schedule, n=9):
        h = mp.mpf(10) ** -28 * (1 if t < middle else -1)
        lams = [mp.log(alpha / sigma) for alpha, sigma in (exact(name, mp.mpf(t) + step, **options) for step in (0, h))]
        assert abs(schedule.rate(t) * h / (lams[1] - lams[0]) - 1) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_rate_is_the_central_difference_of_the_clock(name):
    """At points that are no labels, where the slope of a table jumps."""
    schedule = schedules.make(name)
    t = np.linspace(schedule.t_noisy, schedule.t_clean, 102)[1:-1]
    h = 1e-6 * t
    central = (schedule.lam(t + h) - schedule.lam(t - h)) / (2 * h)
    # the difference itself is off by 1e-15/(h dλ/dt) in rounding, and by h² times the third derivative
    assert abs(schedule.rate(t) / central - 1).max() < 1e-7


def test_rate_at_a_label_is_that_of_its_noisier_side():
    schedule = schedules.ddpm_linear()
    for label in (0, 1, 500, 998):
        assert schedule.rate(label) == pytest.approx(schedule.rate(label + 1e-9), rel=1e-6)
    assert schedule.rate(999) == pytest.approx(schedule.rate(999 - 1e-9), rel=1e-6)
    assert schedule.rate(1) / schedule.rate(1 - 1e-9) > 1.1  # β_3/β_2


@pytest.mark.parametrize(
    ("path", "noisy", "clean"), [("vp", (0, 1, 1), (1, 0, 0)), ("ve", (1, np.inf, 0), (1, 0, 0)), ("flow", (0, 1, 1), (1, 0, 0))]
)
def test_limits(path, noisy, clean):
    path = schedules.PATHS[path]
    for lam, limits in ((np.float64(-np.inf), noisy), (np.float64(np.inf), clean)):
        assert (path.alpha(lam), path.sigma(lam), path.dlog_alpha(lam)) == limits


@pytest.mark.parametrize("name", NAMES)
def test_dlog_alpha(name):
    schedule, h = schedules.make(name), 1e-5
    lam = np.linspace(schedule.lam_min, schedule.lam_max, 101)
    central = (np.log(schedule.alpha(lam + h)) - np.log(schedule.alpha(lam - h))) / (2 * h)
    # the difference itself is off by h²/6 · |third derivative| and by 1e-15/h in rounding
    assert abs(schedule.path.dlog_alpha(lam) - central).max() < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_monotone(name):
    schedule = schedules.make(name)
    t = np.linspace(schedule.t_noisy, schedule.t_clean, 2001)
    lam = schedule.lam(t)
    assert (np.diff(lam) > 0).all()
    assert (np.diff(schedule.sigma(lam)) < 0).all()
    assert (np.diff(schedule.alpha(lam)) >= 0).all()
    back = schedule.t(np.linspace(schedule.lam_min, schedule.lam_max, 2001))
    assert (np.diff(back) * np.sign(schedule.t_clean - schedule.t_noisy) > 0).all()


def test_ddpm_table_is_the_product():
    betas = np.random.default_rng(0).uniform(1e-4, 0.3, 20)
    schedule = schedules.ddpm_table(betas)
    product = mp.mpf(1)
    for label, beta in enumerate(betas):
        product *= 1 - mp.mpf(float(beta))
        lam = schedule.lam(label)
        assert abs(schedule.alpha(lam) ** 2 / product - 1) < 1e-13
        assert abs(schedule.sigma(lam) ** 2 / (1 - product) - 1) < 1e-13


def test_ddpm_is_log_linear_between_labels():
    schedule = schedules.ddpm_linear()
    log_alpha = np.log(schedule.alpha(schedule.lam([500, 500.25, 501])))
    assert log_alpha[1] == pytest.approx(0.75 * log_alpha[0] + 0.25 * log_alpha[2], abs=1e-13)


def test_knots_are_the_labels():
    schedule = schedules.ddpm_linear()
    assert (np.diff(schedule.knots) > 0).all()
    assert abs(schedule.t(schedule.knots) - np.arange(999, -1, -1)).max() < 1e-9
    assert (schedule.knots[0], schedule.knots[-1]) == (schedule.lam_min, schedule.lam_max)
    assert all(schedules.make(name).knots is None for name in NAMES if name not in LABELLED)


def test_scaled_linear_has_equal_steps_of_the_root_of_beta():
    schedule = schedules.scaled_linear(0.00085, 0.012, 1000)
    root = np.sqrt(1 - np.exp(np.diff(2 * np.log(schedule.alpha(schedule.lam(np.arange(1000)))))))
    exact = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
    assert abs(root - exact[1:]).max() < 1e-11
    assert schedule.sigma(schedule.lam_max) ** 2 == pytest.approx(0.00085, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_outside_the_clock(name):
    schedule = schedules.make(name)
    low, high = sorted((schedule.t_noisy, schedule.t_clean))
    for t in (low - 1e-6, high + 1e-6 * max(high, 1), np.nan, np.inf):
        with pytest.raises(InputError, match=f"outside the clock of {name}"):
            schedule.lam([high, t])
    for lam in (schedule.lam_min - 1e-6, schedule.lam_max + 1e-6, np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=f"outside the schedule {name}"):
            schedule.t([0.0, lam])
    # rounding is not outside, and never leaves the clock
    assert schedule.t(schedule.lam_min - 5e-10) == schedule.t_noisy
    assert schedule.t(schedule.lam_max + 5e-10) == schedule.t_clean


@pytest.mark.parametrize("name", NAMES)
def test_any_shape(name):
    schedule = schedules.make(name)
    lam = logsnrs(schedule, 11)[:18].reshape(3, 6)
    for function in (schedule.alpha, schedule.sigma, schedule.t, lambda lam: schedule.rate(schedule.t(lam))):
        whole = function(lam)
        assert whole.shape == (3, 6)
        assert whole.dtype == np.float64
        # numpy's vector loops may differ from its scalar ones in the last bits
        np.testing.assert_allclose(whole, [[function(value) for value in row] for row in lam], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), FAR.items())
def test_options_name_the_schedule(name, options):
    schedule = schedules.make(name, **options)
    assert schedule.name == name
    assert options.items() <= dict(schedule.options).items()
    again = schedules.make(schedule.name, **dict(schedule.options))
    ends = [(s.lam_min, float(s.lam((s.t_noisy + s.t_clean) / 2)), s.lam_max) for s in (schedule, again, schedules.make(name))]
    assert ends[0] == ends[1] != ends[2]


def test_unknown_schedule_lists_the_known():
    with pytest.raises(InputError, match=", ".join(NAMES)):
        schedules.make("linear")


@pytest.mark.parametrize("betas", [[], [0.1], [[0.1, 0.2]], [0.1, 0.0], [0.1, 1.0, 0.2], [0.1, -0.2], [0.1, 1.1], [0.1, np.nan]])
def test_bad_betas(betas):
    with pytest.raises(InputError, match=r"between 0 and 1|list of 2 to"):
        schedules.ddpm_table(betas)


@pytest.mark.parametrize(
    ("values", "instead"),
    [(np.cumprod(1 - BETAS), r"β_t = 1 − ᾱ_t/ᾱ_{t−1}"), (1 - BETAS, "1 − α"), ([0.9, 0.5, 0.1], "β_t = 1")],
)
def test_alphas_in_place_of_betas_are_told_apart(values, instead):
    with pytest.raises(InputError, match=rf"these look like .*{instead}"):
        schedules.ddpm_table(values)
    assert schedules.ddpm_table(BETAS[::-1]).lam_min == pytest.approx(schedules.ddpm_table(BETAS).lam_min, abs=1e-12)


def zero_terminal(betas=BETAS):
    """Algorithm 1 of Lin et al. (2024): sqrt(ᾱ) shifted and scaled so that its last value is 0 and its first stays."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - np.concatenate([[root[0]], root[1:] / root[:-1]]) ** 2


def test_zero_terminal_snr_begins_at_pure_noise():
    """β_T = 1: the last label is λ = −∞, the others are those of the table without it, and the clock is one map, both ways."""
    betas = zero_terminal()
    assert betas[-1] == 1
    schedule, before = schedules.ddpm_table(betas), schedules.ddpm_table(betas[:-1])
    assert schedule.lam_min == schedule.lam(999) == schedule.knots[0] == -np.inf
    assert schedule.t(-np.inf) == 999
    assert (schedule.alpha(-np.inf), schedule.sigma(-np.inf)) == (0, 1)
    t = np.linspace(0, 998, 1999)
    np.testing.assert_array_equal(schedule.lam(t), before.lam(t))
    np.testing.assert_array_equal(schedule.t(before.lam(t)), before.t(before.lam(t)))
    np.testing.assert_array_equal(schedule.rate(t[:-1]), before.rate(t[:-1]))
    t = np.linspace(998, 999, 101)
    lam = schedule.lam(t)
    assert np.all(np.diff(lam) < 0)
    np.testing.assert_allclose(schedule.t(lam), t, rtol=0, atol=1e-12)
    np.testing.assert_allclose(schedule.alpha(lam), (999 - t) * schedule.alpha(lam[0]), rtol=0, atol=1e-15)  # linear
    h, middle = 1e-6, t[1:-1]
    slope = (schedule.lam(middle + h) - schedule.lam(middle - h)) / (2 * h)
    np.testing.assert_allclose(schedule.rate(middle), slope, rtol=1e-6)


def test_a_clock_in_float32_is_within_the_schedule():
    """0.999 is above the end of flow's clock when it is rounded to float32, and is that end."""
    for schedule in (schedules.flow(), schedules.cosine(), schedules.edm(0.002, 80.1)):
        assert schedule.lam(np.float32(schedule.t_noisy)) == pytest.approx(schedule.lam_min, abs=1e-3)
        assert schedule.lam(np.float32(schedule.t_clean)) == pytest.approx(schedule.lam_max, abs=1e-6)
    assert float(np.float32(0.999)) > 0.999
    assert schedules.flow().lam(np.float32(0.999)) == schedules.flow().lam_min
    with pytest.raises(InputError, match=r"t = 0\.999001 is outside"):
        schedules.flow().lam(0.999001)


def test_a_schedule_is_printed_in_one_line():
    assert repr(schedules.ddpm_linear()) == (
        "ddpm_linear(beta_first=0.0001, beta_last=0.02, steps=1000): vp path, λ from -5.06 to 4.61, t from 999 to 0"
    )


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda schedule: pickle.loads(pickle.dumps(schedule))], ids=["copy", "pickle"])
def test_a_named_schedule_is_pickled_by_its_name(name, options, copied):
    schedule = schedules.make(name, **options)
    schedule = replace(schedule, t_noisy=0.9 * schedule.t_noisy)
    again = copied(schedule)
    assert repr(again) == repr(schedule)
    t = np.linspace(schedule.t_noisy, schedule.t_clean, 101)
    np.testing.assert_array_equal(again.lam(t), schedule.lam(t))
    np.testing.assert_array_equal(again.rate(t), schedule.rate(t))


@pytest.mark.parametrize("path", schedules.PATHS)
def test_alpha_and_sigma_at_one_lam_are_those_of_the_functions(path):
    """To the last bit, asked for once and again."""
    path = schedules.PATHS[path]
    for lam in [*np.random.default_rng(0).uniform(-20, 20, 1000), 0.0, -0.0, np.inf]:
        expected = float(path.alpha(np.float64(lam))), float(path.sigma(np.float64(lam)))
        assert path.at(lam) == path.at(float(lam)) == expected
