"""MODULE:NAME: a module is looked for here, run once, and whatever it does wrong is one sentence."""

import sys
from pathlib import Path

import pytest

from diffode import EpsModel, InputError
from diffode.importing import import_object


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(code, name): code as a module in the working directory, forgotten after the test."""
    monkeypatch.chdir(tmp_path)

    def make(code, name="mine"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")

    return make


def refusal(given, kind=int):
    """The sentence, of one line; sys.path is as it was."""
    before = list(sys.path)
    with pytest.raises(InputError) as refused:
        import_object(given, kind, "int(...)")
    assert sys.path == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_module_is_looked_for_here_and_run_once(write):
    write("open('log', 'a').write('run ')\nvalue, other = 7, 8")
    before = list(sys.path)
    (module, value), (again, other) = (import_object(f"mine:{name}", int, "int(...)") for name in ("value", "other"))
    assert (value, other, module, module.value) == (7, 8, again, 7)
    assert Path("log").read_text() == "run "
    assert sys.path == before


def test_a_module_that_needs_another_beside_it(write):
    write("value = 7", "helper_of_mine")
    write("from helper_of_mine import value")
    assert import_object("mine:value", int, "int(...)")[1] == 7


def test_a_module_that_was_not_there_a_moment_ago(write):
    assert "No module named 'mine'; give MODULE:NAME" in refusal("mine:value")
    write("value = 7")
    assert import_object("mine:value", int, "int(...)")[1] == 7


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\nraise RuntimeError('size\\nmismatch')", "line 2 of mine.py raises RuntimeError: size mismatch"),
        ("import nonesuch", "line 1 of mine.py raises ModuleNotFoundError: No module named 'nonesuch'"),
        ("import sys\nsys.exit(3)", "line 2 of mine.py raises SystemExit: 3"),
        ("def f():\n    1 / 0\n\nf()", "line 4 of mine.py raises ZeroDivisionError: division by zero"),
        ("value = ", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("class Own(Exception): pass\nraise Own", "line 2 of mine.py raises Own"),
        ("import sys\nsys.path.clear()\n1 / 0", "line 3 of mine.py raises ZeroDivisionError"),
    ],
)
def test_what_a_module_raises_is_named(write, monkeypatch, code, words):
    write(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError) as refused:
        import_object("mine:value", int, "int(...)")
    assert f"cannot import 'mine:value': {words}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_ctrl_c_is_no_error_of_the_module(write):
    write("import signal; signal.raise_signal(signal.SIGINT)")
    with pytest.raises(KeyboardInterrupt):
        import_object("mine:value", int, "int(...)")


def test_what_is_not_there_or_something_else(write):
    write("value, other, text = 7, 8, 'seven'")
    assert "mine.py has no 'valu'; give" in (sentence := refusal("mine:valu"))
    assert "give MODULE:NAME, NAME being an int there (value, other)" in sentence
    assert "has no ''" in refusal("mine:")
    assert refusal("mine:text") == "mine:text is a str, not an int: write text = int(...)"
    assert "(none)" in refusal("mine:model", EpsModel)
    assert "not an EpsModel" in refusal("mine:text", EpsModel)
    assert "sys has no 'value'" in refusal("sys:value")  # which has no file
    for given in (":value", "a/b:value", "..mine:value", "mine.value:value"):
        assert f"cannot import {given!r}" in refusal(given)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("mine.py:value", "type mine:value"),
        ("./mine.py:value", "type mine:value"),
        ("sub/mine.py:value", "type mine:value in the folder sub"),
    ],
)
def test_the_name_of_a_file_is_not_run_but_said_how_to_type(write, given, instead):
    write("1 / 0")
    assert refusal(given).endswith(instead)
