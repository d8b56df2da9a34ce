"""Whatever a user's module raises is one sentence; a Ctrl-C during its import is a Ctrl-C."""

import signal
import sys
from pathlib import Path

import pytest

from diffode.errors import InputError
from diffode.importing import import_object


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("theirs", None)


@pytest.mark.parametrize(
    "error", ["GeneratorExit", "KeyboardInterrupt", "SystemExit(3)", "RecursionError", "ValueError('\\x1b' * 999)"]
)
def test_what_a_module_raises_is_one_sentence(error):
    Path("theirs.py").write_text(f"import os\n\nraise {error}\n")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InputError, match=r"cannot import 'theirs:x': line 3 of theirs\.py raises") as told:
        import_object("theirs:x", int, "1")
    assert len(str(told.value)) < 400
    assert str(told.value).isprintable()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ctrl_c_during_the_import_is_one():
    Path("theirs.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        import_object("theirs:x", int, "1")


def test_a_handler_that_the_module_sets_stays():
    Path("theirs.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nx = 1\n")
    before = signal.getsignal(signal.SIGINT)
    try:
        assert import_object("theirs:x", int, "1")[1] == 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
