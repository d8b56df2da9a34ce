"""Rows of experiments: written as they are finished, resumed, never mixed, and complete about what failed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffode import InputError
from experiments.common import results

CELLS = [{"solver": solver, "nfe": nfe} for solver in ("a", "b") for nfe in (1, 2)]


def fill(out, compute=lambda cell: {"error of": cell["nfe"] / 3, "pair": (1, "x")}, cells=CELLS, **about):
    return results.fill(out, cells, compute, about={"model": "m", **about}, command="c")


def failing(at):
    """A compute that is interrupted at its `at`-th call, and says what it was called with."""
    seen = []

    def compute(cell):
        if len(seen) == at:
            raise KeyboardInterrupt
        seen.append(cell)
        return {"error of": cell["nfe"] / 3, "pair": (1, "x")}

    return compute, seen


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_run_goes_on_and_ends_with_the_same_rows(tmp_path, at):
    fill(tmp_path / "whole")
    compute, seen = failing(at)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "killed", compute)
    assert len(results.read(tmp_path / "killed")[1]) == at
    rest, again = failing(99)
    fill(tmp_path / "killed", rest)
    assert [*seen, *again] == CELLS  # nothing twice
    for suffix in (".json", ".csv"):
        assert (tmp_path / f"whole{suffix}").read_bytes() == (tmp_path / f"killed{suffix}").read_bytes()


def test_rows_are_in_the_order_of_the_cells_and_others_stay(tmp_path):
    fill(tmp_path / "x", cells=CELLS[2:])
    fill(tmp_path / "x")
    assert [(row["solver"], row["nfe"]) for row in results.read(tmp_path / "x")[1]] == [(c["solver"], c["nfe"]) for c in CELLS]
    fill(tmp_path / "x", cells=CELLS[:1])
    assert len(results.read(tmp_path / "x")[1]) == 4


def test_csv_and_json_say_the_same(tmp_path):
    fill(tmp_path / "x", lambda cell: {"value": np.float64(cell["nfe"]) / 3, "bad": float("inf")})
    with open(tmp_path / "x.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    held = json.loads((tmp_path / "x.json").read_text())
    assert [row.pop("made") for row in held["rows"]] == [0] * 4  # which of held["made"], and not in the CSV
    assert [{name: str(value) for name, value in row.items()} for row in held["rows"]] == lines
    assert lines[0]["bad"] == "inf"
    assert float(lines[0]["value"]) == 1 / 3  # to the last bit
    assert held["made"][0].keys() == {"command", "versions", "machine", "commit", "date"}


def test_a_failed_cell_is_a_row_and_is_tried_again(tmp_path, capsys):
    def compute(cell):
        if cell["nfe"] == 2:
            raise InputError("two is too many")
        return {"value": 1}

    made = fill(tmp_path / "x", compute)
    assert [row.get("error") for row in made] == [None, "two is too many"] * 2
    with pytest.raises(SystemExit) as ended:
        results.finish(made, tmp_path / "x")
    assert ended.value.code == 1
    assert "two is too many" in capsys.readouterr().err
    assert not any("error" in row for row in fill(tmp_path / "x"))


@pytest.mark.parametrize(
    "error", [RuntimeError("out of\nmemory"), torch.OutOfMemoryError("out of\nmemory"), ValueError("out of\nmemory")], ids=type
)
def test_whatever_a_cell_raises_is_a_row_but_what_the_disk_says_is_not(tmp_path, error):
    def compute(cell):
        if cell["nfe"] == 2:
            raise error
        return {"value": 1}

    made = fill(tmp_path / "x", compute)
    assert [row.get("error") for row in made] == [None, f"{type(error).__name__}: out of memory"] * 2
    error = OSError("no space left")
    with pytest.raises(OSError, match="no space"):
        fill(tmp_path / "x", compute)


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    fill(tmp_path / "x", n=10)
    with pytest.raises(InputError, match="another n: give `out` another name, or overwrite=True"):
        fill(tmp_path / "x", n=20)
    results.fill(tmp_path / "x", CELLS, lambda cell: {}, about={"n": 20}, command="c", overwrite=True)
    assert results.read(tmp_path / "x")[0]["n"] == 20


ROWS = '{"about": {"model": "m"}, "made": [{}], "rows": [%s]}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", "{", "[" * 10_000, '{"about": {}, "rows": []}', '{"about": null, "made": [], "rows": []}'),
        *(ROWS % row for row in ("1", "null", '{"made": null}', '{"made": 1}', '{"made": -1}', '{"made": 0, "error": 1}')),
        ROWS % ('{"made": 0, "nfe": 1' + "0" * 5000 + "}"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_and_stays(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="is not a file of rows"):
        fill(tmp_path / "x")
    assert (tmp_path / "x.json").read_text() == text


def test_rows_without_the_names_of_the_cells_are_refused_and_stay(tmp_path):
    (tmp_path / "x.json").write_text(ROWS % '{"made": 0, "nfe": 1}')
    with pytest.raises(InputError, match="a row without solver"):
        fill(tmp_path / "x")
    assert (tmp_path / "x.json").read_text() == ROWS % '{"made": 0, "nfe": 1}'


@pytest.mark.parametrize("name", ["x.csv", "x.png", "x-images.png"])
def test_files_that_are_not_of_the_experiment_stay(tmp_path, name):
    """They are looked at before the first cell; beside OUT.json they are its own."""
    (tmp_path / name).write_text("mine")
    also, seen = (".png", "-images.png"), []
    with pytest.raises(InputError, match=f"{name} exists"):
        results.fill(tmp_path / "x", CELLS, seen.append, about={}, command="c", also=also)
    assert (seen, [path.name for path in tmp_path.iterdir()]) == ([], [name])
    results.fill(tmp_path / "x", CELLS, lambda cell: {}, about={}, command="c", also=also, overwrite=True)
    results.fill(tmp_path / "x", CELLS, lambda cell: {}, about={}, command="c", also=also)


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/"])
def test_a_name_for_results_is_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no name for results"):
        fill(Path(name))
    assert not list(tmp_path.iterdir())


def test_no_results_is_said(tmp_path):
    with pytest.raises(InputError, match="no results at"):
        results.read(tmp_path / "x")
