"""Grids: what each name means, exact ends, and snapping to the labels a network was trained on."""

import json

import numpy as np
import pytest

from diffode import InputError, grid, schedules
from solvers import Budget
from solvers.registry import find

NAMES = list(grid.GRIDS)
STEPS = (1, 2, 7, 50)
SCHEDULES = list(schedules.SCHEDULES)
every_grid = pytest.mark.parametrize("name", NAMES)
every_schedule = pytest.mark.parametrize("schedule", [schedules.make(name) for name in SCHEDULES], ids=SCHEDULES)


def odd_schedules():
    """Schedules whose ends are no round numbers, so that (√t)² and log(e^λ) miss them by a rounding."""
    rng = np.random.default_rng(0)
    for clean, noisy in zip(rng.uniform(1e-4, 1e-2, 30), rng.uniform(0.9, 0.9999, 30), strict=True):
        yield schedules.flow(clean, noisy)
        yield schedules.cosine(t_clean=clean, t_noisy=noisy)
        yield schedules.edm(clean, 100 * noisy)
        yield schedules.vp_linear(t_clean=clean)


@every_grid
@every_schedule
def test_increasing_between_the_exact_ends(name, schedule):
    for n in STEPS:
        values = grid.make(name, schedule, n)
        assert values.dtype == np.float64
        assert values.shape == (n + 1,)
        assert (np.diff(values) > 0).all()
        assert (values[0], values[-1]) == (schedule.lam_min, schedule.lam_max)


@every_grid
def test_exact_ends_of_any_schedule(name):
    for schedule in odd_schedules():
        values = grid.make(name, schedule, 7)
        assert (values[0], values[-1]) == (schedule.lam_min, schedule.lam_max)


@every_schedule
def test_logsnr_is_uniform_in_lam(schedule):
    for n in STEPS:
        steps = np.diff(grid.make("logsnr", schedule, n))
        assert abs(steps - (schedule.lam_max - schedule.lam_min) / n).max() < 1e-12


@every_schedule
def test_time_is_uniform_in_t(schedule):
    for n in STEPS:
        t = schedule.t(grid.make("time", schedule, n))
        assert abs(np.diff(t) - (schedule.t_clean - schedule.t_noisy) / n).max() < 1e-9


@every_schedule
def test_quadratic_is_uniform_in_root_t(schedule):
    for n in STEPS:
        root = schedule.t_noisy**0.5 + (schedule.t_clean**0.5 - schedule.t_noisy**0.5) * np.arange(n + 1) / n
        # in t, not √t: at t = 0 the root of a rounding error is large
        assert abs(schedule.t(grid.make("quadratic", schedule, n)) - root**2).max() < 1e-9


@every_schedule
def test_karras_is_uniform_in_the_seventh_root_of_sigma_bar(schedule):
    for n in STEPS:
        values = grid.make("karras", schedule, n)
        first, last = ((schedule.sigma(lam) / schedule.alpha(lam)) ** (1 / 7) for lam in (schedule.lam_min, schedule.lam_max))
        sigma_bar = (first + np.arange(n + 1) / n * (last - first)) ** 7  # Karras et al. (2022), Eq. 5
        np.testing.assert_allclose(schedule.sigma(values) / schedule.alpha(values), sigma_bar, rtol=1e-11)


def test_karras_of_edm_is_the_published_one():
    sigma = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.edm().t(grid.make("karras", schedules.edm(), 17)), sigma, rtol=1e-11)


@every_grid
@every_schedule
def test_denoise_is_one_of_the_steps(name, schedule):
    for n in STEPS:
        values = grid.make(name, schedule, n, denoise=True)
        assert len(values) == n + 1
        assert values[-1] == np.inf
        without = grid.make(name, schedule, n - 1) if n > 1 else [schedule.lam_min]
        np.testing.assert_array_equal(values[:-1], without)


@pytest.mark.parametrize("given", [[-3.0, 0.5, 2.0], (-3, 0.5, 2), np.array([-3, 0.5, 2])])
def test_explicit_list(given):
    schedule = schedules.flow()
    np.testing.assert_array_equal(grid.make(given, schedule, 2), [-3, 0.5, 2])
    np.testing.assert_array_equal(grid.make(given, schedule, 3, denoise=True), [-3, 0.5, 2, np.inf])
    np.testing.assert_array_equal(grid.make([*given, np.inf], schedule, 3, denoise=True), [-3, 0.5, 2, np.inf])
    np.testing.assert_array_equal(grid.make([*given, np.inf], schedule, 3), [-3, 0.5, 2, np.inf])


@pytest.mark.parametrize("denoise", [False, True])
def test_explicit_list_of_another_length(denoise):
    with pytest.raises(InputError, match="5 were asked for"):
        grid.make([-3.0, 0.5, 2.0], schedules.flow(), 5, denoise=denoise)


@pytest.mark.parametrize(
    "given",
    [
        [],
        [0.0],
        [1.0, 0.0],
        [0.0, 1.0, 1.0],
        [0.0, np.nan, 1.0],
        [[0.0, 1.0], [2.0, 3.0]],
        [np.inf],
        [np.inf, 1.0],
        [0.0, np.inf, np.inf],
        [-np.inf, -np.inf, 0.0],
    ],
    ids=str,
)
def test_not_a_grid(given):
    with pytest.raises(InputError, match=r"strictly increasing|a list of 2 to \d+ numbers, not "):
        grid.check(given)


@pytest.mark.parametrize("denoise", [False, True])
def test_empty_list(denoise):
    with pytest.raises(InputError):
        grid.make([], schedules.flow(), 1, denoise=denoise)


@pytest.mark.parametrize("n", [0, -3])
def test_no_steps(n):
    with pytest.raises(InputError, match="whole number from 1 to 100000"):
        grid.make("logsnr", schedules.flow(), n)


def test_unknown_grid_lists_the_known():
    with pytest.raises(InputError, match=", ".join([*NAMES, *grid.TAUS])):
        grid.make("uniform", schedules.flow(), 5)


@every_grid
@pytest.mark.parametrize("n", [1, 2, 10, 20])
def test_snap_moves_to_the_nearest_label(name, n):
    schedule = schedules.ddpm_linear()
    values = grid.make(name, schedule, n)
    snapped = grid.snap(values, schedule)
    assert set(snapped) <= set(schedule.knots)  # λ and label are one pair, exactly
    moved = abs(schedule.t(snapped) - schedule.t(values))
    assert moved.max() <= 0.5 + 1e-9
    assert (np.diff(snapped) > 0).all()
    np.testing.assert_array_equal(grid.snap(snapped, schedule), snapped)


def test_snap_keeps_the_step_to_infinity():
    schedule = schedules.ddpm_linear()
    values = grid.make("time", schedule, 10, denoise=True)
    snapped = grid.snap(values, schedule)
    assert snapped[-1] == np.inf
    np.testing.assert_array_equal(snapped[:-1], grid.snap(values[:-1], schedule))


def test_all_labels_are_a_grid_of_their_own():
    schedule = schedules.ddpm_linear()
    np.testing.assert_array_equal(grid.snap(schedule.knots, schedule), schedule.knots)
    np.testing.assert_array_equal(grid.snap(grid.make("time", schedule, 999), schedule), schedule.knots)


def test_snap_refuses_two_on_one_label():
    schedule = schedules.ddpm_linear()
    with pytest.raises(InputError, match="label 500 twice"):
        grid.snap(schedule.lam([700, 500.3, 499.8, 3]), schedule)
    with pytest.raises(InputError, match="use fewer steps"):
        grid.snap(grid.make("time", schedule, 1000), schedule)


def test_snap_refuses_what_no_label_reaches():
    schedule = schedules.ddpm_linear()
    for values in ([-8.0, 0.0, 4.0], [-np.inf, 0.0, 4.0], [-np.inf, np.inf]):
        with pytest.raises(InputError):
            grid.snap(np.array(values), schedule)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("ddpm_linear", "scaled_linear")])
def test_snap_refuses_a_continuous_schedule(name):
    schedule = schedules.make(name)
    with pytest.raises(InputError, match="continuous"):
        grid.snap(grid.make("logsnr", schedule, 5), schedule)


# The sub-sequences τ of the DDIM paper


def their_tau(name, steps, labels=1000):
    """As the authors' code makes τ: a range, or squares cut off, from the first label to the last."""
    if name == "tau-linear":
        return list(range(0, labels, labels // steps))
    return [int(u * u) for u in np.linspace(0, np.sqrt(labels * 0.8), steps)]


@pytest.mark.parametrize(
    ("name", "steps"),
    [*(("tau-linear", s) for s in (2, 10, 20, 50, 100, 500, 1000)), *(("tau-quadratic", s) for s in (2, 10, 20, 29))],
)
def test_tau_is_the_authors_and_its_last_step_leads_to_alpha_1(name, steps):
    schedule = schedules.ddpm_linear()
    values = grid.make(name, schedule, steps, denoise=True)
    labels = their_tau(name, steps)
    assert len(values) == steps + 1
    assert values[-1] == np.inf
    np.testing.assert_array_equal(values[:-1], schedule.lam(labels[::-1]))
    assert labels[0] == 0
    assert set(values[:-1]) <= set(schedule.knots)


def test_tau_in_numbers():
    schedule = schedules.ddpm_linear()
    linear, quadratic = (schedule.t(grid.make(name, schedule, 10, denoise=True)[:-1]) for name in grid.TAUS)
    np.testing.assert_allclose(linear, np.arange(900, -1, -100), atol=1e-9)
    np.testing.assert_allclose(quadratic, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0], atol=1e-9)
    assert linear[0] < schedule.t_noisy  # x_T is at the last label of τ, not of the schedule


@pytest.mark.parametrize(
    ("name", "steps", "words"),
    [
        ("tau-quadratic", 30, "29 different labels of 1000: take 29 steps"),
        ("tau-quadratic", 50, "49 different"),
        ("tau-linear", 30, "31 different labels of 1000: take 25 or 40 steps"),
        ("tau-linear", 501, "1000 different labels of 1000: take 500 or 1000 steps"),
        ("tau-linear", 1001, "take 1000 steps"),
        ("tau-linear", 1, "2 or more"),
        ("tau-quadratic", 0, "whole number from 1"),
    ],
)
def test_tau_of_an_s_that_does_not_fit(name, steps, words):
    with pytest.raises(InputError, match=words):
        grid.make(name, schedules.ddpm_linear(), steps, denoise=True)


@pytest.mark.parametrize(
    ("name", "steps"), [("tau-quadratic", 50), ("tau-quadratic", 1000), ("tau-linear", 30), ("tau-linear", 10)]
)
def test_tau_can_be_had_without_its_repetitions(name, steps):
    """A step from a label to itself changes nothing: what is left is the authors' sampler, in fewer evaluations."""
    schedule = schedules.ddpm_linear()
    values = grid.tau(name, schedule, steps)
    np.testing.assert_array_equal(values, [*schedule.lam(sorted(set(their_tau(name, steps)), reverse=True)), np.inf])
    np.testing.assert_array_equal(grid.make(list(values), schedule), values)


@pytest.mark.parametrize("name", grid.TAUS)
def test_tau_is_of_labels_and_ends_at_alpha_1(name):
    with pytest.raises(InputError, match="denoise=True"):
        grid.make(name, schedules.ddpm_linear(), 10)
    with pytest.raises(InputError, match="continuous"):
        grid.make(name, schedules.cosine(), 10, denoise=True)
    with pytest.raises(InputError, match="2 or more"):
        grid.tau(name, schedules.ddpm_linear(), 1)


@pytest.mark.parametrize("nfe", [{"nfe": 50}, {"steps": 50}, {}])
def test_sample_takes_tau_by_name(nfe):
    """Whatever numbers the search for the budget passes by on its way, of which no τ can be made."""
    prepared = find("ddim").prepare(Budget(**nfe, grid="tau-linear", denoise=True), schedules.ddpm_linear())
    assert len(prepared.grid) == 51


@pytest.mark.parametrize("solver", ["dpm23", "dopri5"])
def test_solvers_that_choose_their_steps_take_no_tau(solver):
    with pytest.raises(InputError, match="chooses its own steps"):
        find(solver).prepare(Budget(grid="tau-linear", denoise=solver == "dpm23"), schedules.ddpm_linear())


def test_a_grid_is_read_from_its_file_to_the_last_bit(tmp_path):
    lam = [-5.058836591650516, -0.1, 0, np.pi, 4.605120183487924]
    (tmp_path / "g.json").write_text(json.dumps({"lam": lam, "solver": "anything else"}))
    assert grid.load(tmp_path / "g.json") == lam


NO_LISTS = ["[1, 2]", '"lam"', "{}", '{"lam": 3}', '{"lam": []}', '{"lam": ["1", 2]}', '{"lam": [[1], 2]}', '{"lam": [true, 2]}']


@pytest.mark.parametrize("text", ["", "{", *NO_LISTS, "\xff"])
def test_what_is_no_grids_file(tmp_path, text):
    file = tmp_path / "g.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"g\.json is not a grid"):
        grid.load(file)


def test_a_grids_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no grid .*none\.json: expected .* as python -m"):
        grid.load(tmp_path / "none.json")


def test_a_list_made_of_float32_sigmas_begins_and_ends_with_the_schedule():
    schedule = schedules.edm(0.03, 14.6)
    sigmas = np.array([14.6, 1.0, 0.03], np.float32)
    made = grid.make((-np.log(sigmas)).tolist(), schedule)
    assert made[-1] == schedule.lam_max
    assert abs(made[0] - schedule.lam_min) < 2e-6
    with pytest.raises(InputError, match="outside the schedule"):
        grid.make([schedule.lam_min, 1.0, schedule.lam_max + 1e-5], schedule)
