"""Checks of arguments: what is taken, and the sentence for what is not."""

import numpy as np
import pytest
import torch

from diffode import InputError
from diffode.checks import choice, flag, nearest, number, numbers, unknown, whole
from diffode.errors import shown
from solvers import ALIASES, SOLVERS

HUGE = 10**5000  # Python refuses to write it


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3), np.array(3)])
def test_whole_numbers_of_every_kind_are_taken(value):
    assert whole("nfe", value, 1, 10) == 3
    assert type(whole("nfe", value)) is int
    assert type(number("rtol", value)) is float


@pytest.mark.parametrize(
    "value",
    [
        10.5,
        True,
        None,
        "3",
        np.nan,
        np.inf,
        -1,
        11,
        HUGE,
        [3],
        torch.zeros(2),
        torch.zeros((), device="meta"),
        np.bool_(True),
        3j,
    ],
    ids=shown,
)
def test_what_is_no_whole_number_in_the_bounds_is_refused(value):
    with pytest.raises(InputError, match=r"^`nfe` must be a whole number from 1 to 10, not ") as error:
        whole("nfe", value, 1, 10)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize("value", [True, None, "3", np.nan, np.inf, -np.inf, 0, -1, HUGE, [3], 3j], ids=shown)
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(InputError, match=r"^the option rtol must be a positive finite number, not "):
        number("the option rtol", value, positive=True)


def test_infinity_is_a_number_where_it_is_meant():
    assert number("s_tmax", np.inf, 0, finite=False) == np.inf


def test_how_many_numbers_are_expected():
    for most, said in ((2, "a list of 2 numbers"), (5, "a list of 2 to 5 numbers"), (2**63 - 1, "a list of at least 2 numbers")):
        with pytest.raises(InputError, match=f"^`lams` must be {said}, not "):
            numbers("lams", [1.0], most, least=2)


@pytest.mark.parametrize(
    "values", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5]), np.array([1, 2.5], np.float32)]
)
def test_lists_of_numbers(values):
    assert numbers("grid", values, 10).tolist() == [1, 2.5]


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        "12",
        ["a"],
        [None],
        [1, [2, 3]],
        [np.nan],
        [],
        range(11),
        {1: 2},
        [HUGE],
        [[1], [2]],
        np.array([1, "a"], object),
        iter([1]),
    ],
    ids=shown,
)
def test_what_is_no_list_of_numbers_is_refused(values):
    with pytest.raises(InputError, match=r"^`?grid`? must be a list of 1 to 10 numbers, not "):
        numbers("grid", values, 10)


def test_names_and_flags():
    assert choice("start", "ramp", ("ramp", "single")) == "ramp"
    assert flag("denoise", np.bool_(True)) is True
    for wrong in ("no", None, 1, ["ramp"]):
        with pytest.raises(InputError, match=r"^`start` must be ramp or single, not "):
            choice("start", wrong, ("ramp", "single"))
        with pytest.raises(InputError, match=r"^`denoise` must be True or False, not "):
            flag("denoise", wrong)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dpm++2m", "dpmpp2m"),
        ("DPM++ 2M", "dpmpp2m"),
        ("DPM++ 2M Karras", "dpmpp2m"),
        ("DPM++ SDE", "dpmpp2s"),
        ("dmpp2m", "dpmpp2m"),
        ("UniPC", "unipc1"),
        ("Euler a", "euler-ancestral"),
        ("DDIM", "ddim"),
        ("deis_rho", "deis-rho"),
        ("LMS", "lms"),
    ],
)
def test_the_nearest_names_are_those_that_are_meant(name, meant):
    assert meant in nearest(name, SOLVERS | ALIASES)
    assert nearest(meant.upper().replace("-", " "), SOLVERS | ALIASES)[0] == meant


def test_a_long_list_is_not_printed():
    few = unknown("grid", "Time", ("logsnr", "time"), "a list")
    assert str(few) == "unknown grid 'Time': did you mean time? known are logsnr, time"
    many = str(unknown("solver", "DPM++ 2M", SOLVERS, "`solvers` lists all"))
    assert many == "unknown solver 'DPM++ 2M': did you mean dpmpp2m, dpmpp2s or dpmpp3m? `solvers` lists all"
    assert str(unknown("solver", None, SOLVERS, "`solvers` lists all")) == "unknown solver None: `solvers` lists all"
    assert len(str(unknown("solver", "x" * 10**6, SOLVERS, "`solvers` lists all"))) < 200
