"""docs/imports.svg and the longest functions in docs/design.md are what the code says, and no import points back."""

from collections import Counter

import pytest

from docs import draw_imports, longest_functions


def test_the_drawing_and_the_list_are_up_to_date():
    assert draw_imports.complaints() == []


def test_an_arrow_back_is_noticed(monkeypatch):
    edges = draw_imports.read_edges() + Counter({("diffode: core", "solvers"): 1})
    assert draw_imports.backward(edges)
    assert draw_imports.BACK in draw_imports.draw(edges)
    assert draw_imports.BACK not in draw_imports.draw(draw_imports.read_edges())
    monkeypatch.setattr(draw_imports, "read_edges", lambda: edges)
    assert [line for line in draw_imports.complaints() if "points back" in line]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("diffode.model.EpsModel", "core"),
        ("diffode.models.card", "models"),
        ("experiments.claims.order", "claims"),
        ("cli", "cli.py"),
    ],
)
def test_modules_are_drawn_in_the_box_of_their_package(module, name):
    assert draw_imports.box(module).removeprefix("diffode: ") == name


def test_a_reason_is_that_of_a_long_function():
    lines = {name: n for n, name in longest_functions.functions()}
    assert all(lines.get(name, 0) > longest_functions.LONGEST_FUNCTION for name in longest_functions.REASONS)
