"""The printed curves show the rows: one line per solver, one panel per grid, the front as it is defined."""

import itertools
import re
import sys
import warnings
from xml.etree import ElementTree

import pytest
from PIL import Image

from diffode.errors import InputError
from experiments.comparison import curves
from experiments.comparison.ranking import pareto
from tests.fabricated import adaptive, cell, fixed, mixed, without


def panels(rows, cost="spent", measure="rmse"):
    return {panel.get_title(loc="left"): panel for panel in curves.draw_figure(rows, cost, measure).axes}


def drawn(panel):
    """Solver -> points."""
    return {line.get_label(): sorted(zip(*line.get_data(), strict=True)) for line in panel.lines}


def test_files_are_a_png_and_an_svg_each(tmp_path):
    written = curves.save_curves(mixed(), tmp_path / "new")
    assert [path.name for path in written] == ["error-nfe.png", "error-nfe.svg", "error-seconds.png", "error-seconds.svg"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in written}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 400
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_svg_of_the_same_rows_is_the_same(tmp_path):
    first, second = (curves.save_curves(mixed(), tmp_path / name)[1].read_bytes() for name in "ab")
    assert first == second


def test_one_panel_per_grid_with_one_line_per_solver():
    rows = mixed()
    shown = panels(rows)
    assert list(shown) == ["logsnr", "time"]
    for grid, panel in shown.items():
        lines = drawn(panel)
        for solver in {row["solver"] for row in rows}:
            mine = [row for row in rows if row["solver"] == solver and row["grid"] in (grid, "own") and "spent" in row]
            points = sorted((row["spent"], row["rmse"]) for row in mine if row["rmse"] != "inf")
            assert lines.get(solver, []) == points


@pytest.mark.parametrize("cost", ["spent", "seconds"])
def test_the_front_is_in_every_panel_and_ringed_where_its_rows_are(cost):
    front = pareto(fixed(), cost)
    for grid, panel in panels(fixed(), cost).items():
        lines = drawn(panel)
        assert lines["Pareto front"] == [(row[cost], row["rmse"]) for row in front]
        assert lines["_on it"] == [(row[cost], row["rmse"]) for row in front if row["grid"] == grid]


def test_ticks_are_the_budgets():
    for panel in panels(mixed()).values():
        assert list(panel.get_xticks()) == [5, 10, 20]
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ["5", "10", "20"]


def test_names_of_ticks_stay_apart():
    rows = fixed(budgets=range(5, 101))
    (panel, *_) = panels(rows).values()
    named = [tick for tick, label in zip(panel.get_xticks(), panel.get_xticklabels(), strict=True) if label.get_text()]
    assert min(b / a for a, b in itertools.pairwise(named)) > 20**0.06


def test_seventy_solvers_look_different_and_alike_in_all_figures():
    rows = fixed({f"s{i}": 1 for i in range(70)}, grids=["logsnr"])
    look = curves.styles(rows)
    assert len(set(look.values())) == 70
    for cost in ("spent", "seconds"):
        (panel,) = panels(rows, cost).values()
        assert {
            line.get_label(): (line.get_color(), line.get_marker()) for line in panel.lines if line.get_label() in look
        } == look


def test_a_size_is_drawn_and_what_has_no_logarithm_is_not(tmp_path):
    rows = [cell("a", "time", nfe, log_p=log_p) for nfe, log_p in ((5, -0.5), (10, 0.0), (20, 0.01))]
    (panel,) = panels(rows, measure="log_p").values()
    assert drawn(panel)["a"] == [(5, 0.5), (20, 0.01)]
    assert curves.save_curves([without("a", "time", 5, error="no"), cell("b", "time", 5, rmse=0.0)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rows", [adaptive(), [cell("ddim", "time", 10)], pytest.param(fixed(grids=list("abcdefg")), marks=pytest.mark.slow)]
)
def test_adaptive_ones_alone_one_row_and_many_grids(tmp_path, rows):
    assert len(curves.save_curves(rows, tmp_path)) == 4


def test_powers_of_ten_are_names_of_ticks():
    assert [curves._power(value) for value in (0.001, 0.02, 1.0, 1000.0, 1e-4, 2e-5, 1e6)] == [
        "0.001",
        "0.02",
        "1",
        "1000",
        "$10^{-4}$",
        "2·$10^{-5}$",
        "$10^{6}$",
    ]


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=re.escape("pip install 'diffode[plots]'")):
        curves.save_curves(fixed(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fifty_solvers_have_room_beside_a_single_panel():
    """matplotlib warns where axes collapse."""
    one = {"grid": "logsnr", "rtol": None, "rmse": 0.1}
    rows = [{**one, "solver": f"a-solver-of-a-long-name-{i}", "nfe": n, "spent": n} for i in range(50) for n in (5, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves.draw_figure(rows, "spent").canvas.draw()
