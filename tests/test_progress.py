"""Long commands say how far they are: a bar on a terminal, plain lines elsewhere."""

import io
import re
import time

import pytest

from experiments.common import progress as shown
from experiments.common.progress import announce, duration, progress


def test_where_no_terminal_is_a_line_comes_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(shown, "EVERY", 0.05)
    with progress(10, "solution", "samples") as bar:
        bar.update(4)
        bar.set_postfix_str("λ = +1.2")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"solution: 4 of 10 samples, λ = \+1\.2, after 00:00, about 00:0\d to go", line) for line in lines)
    time.sleep(0.2)
    assert not capsys.readouterr().err  # it is over


@pytest.mark.parametrize(
    ("how", "done", "line"),
    [
        ({"desc": "refinement", "unit": "runs"}, 12, "refinement: 12 runs, after 00:00"),
        ({"total": 1.0, "desc": "ddim"}, 0.25, "ddim: 25%, after 00:00, about 00:00 to go"),
        ({"total": 200, "desc": "run", "unit": "images", "initial": 100}, 0, "run: 100 of 200 images, after 00:00"),
    ],
)
def test_what_a_line_says(how, done, line):
    with progress(**how) as bar:
        bar.update(done)
    assert str(bar) == line


def test_a_short_command_says_nothing(capsys):
    with progress(3, "rows", "cells") as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_is_a_bar_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    announce("what is to come")
    with progress(3, "rows", "cells") as bar:
        bar.update()
    assert "what is to come" not in terminal.getvalue()
    assert "rows:" in terminal.getvalue()
    assert "%|" in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "0.012 s"), (12.3, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
