"""Contenders: what may be named, and the cells that the names make."""

import pytest

from diffode import InputError
from experiments.comparison.cells import cell_filename, make_cells, parse_contender, parse_contenders, parse_tolerances
from solvers import SOLVERS
from solvers.registry import find


def test_options_are_in_parentheses():
    solver, options = parse_contender(" unipc3 ( start = single , variant=bh1 ) ")
    assert (solver.name, options) == ("unipc3", {"start": "single", "variant": "bh1"})
    assert parse_contender("rk:rk4")[0].name == "rk:rk4"
    assert parse_contenders("ddim, unipc3(start=single,variant=bh1),dpmpp2m+unic") == [
        "ddim",
        "unipc3(start=single,variant=bh1)",
        "dpmpp2m+unic",
    ]


def test_all_are_those_with_a_solution_to_find():
    every = parse_contenders("all")
    assert set(every) < set(SOLVERS)
    assert {"ddim", "unipc3", "dpm23", "dopri5", "midpoint"} <= set(every)
    for name in SOLVERS.keys() - set(every):
        assert find(name).stochastic or name in ("explicit_adams", "implicit_adams")
    assert parse_contenders("unipc3(start=single),all")[1:] == every


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dim", "did you mean"),
        ("", "no solver"),
        ("ddim,,unipc3", "no solver"),
        ("unipc3(start=single", "no solver"),
        ("unipc3(begin=single)", "no option 'begin'"),
        ("unipc3(start)", "no value"),
        ("ddpm", "draws noise"),
        ("ddim(eta=0.5)", "draws noise"),
        ("ddim,unipc3,ddim", "ddim is named twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_contenders(text)


def test_cells_are_all_pairs_and_adaptive_solvers_choose_their_own():
    cells = make_cells(["ddim", "dpm23", "midpoint"], ["logsnr", "optimal"], [5, 10], [0.1, 0.01])
    assert [cell["rtol"] for cell in cells if cell["solver"] == "dpm23"] == [0.1, 0.01]
    assert {cell["grid"] for cell in cells if cell["solver"] == "dpm23"} == {"own"}
    assert len([cell for cell in cells if cell["solver"] == "ddim"]) == 4
    assert {cell["grid"] for cell in cells if cell["solver"] == "midpoint"} == {"logsnr"}  # which has no plan
    assert len({cell_filename(cell) for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("grids", "budgets", "words"),
    [(["linear"], [5], "unknown grid 'linear'"), (["logsnr"], [0], "at least 1"), (["optimal"], [5], "nothing to compare")],
)
def test_cells_that_cannot_be_are_refused(grids, budgets, words):
    with pytest.raises(InputError, match=words):
        make_cells(["midpoint"], grids, budgets)


@pytest.mark.parametrize("text", ["", "a", "0.1,0.1", "2", "0", "nan", "-0.1"])
def test_tolerances_are_different_numbers_between_0_and_1(text):
    with pytest.raises(InputError, match="tolerances"):
        parse_tolerances(text)


def test_names_of_files_are_names_of_files():
    cell = {"solver": "unipc3(start=single,variant=bh1)", "grid": "logsnr", "nfe": 10, "rtol": None}
    assert cell_filename(cell) == "unipc3_start=single_variant=bh1_-logsnr-10"
    assert cell_filename({"solver": "rk:rk4", "grid": "own", "nfe": None, "rtol": 0.01}) == "rk_rk4-own-rtol-0.01"
