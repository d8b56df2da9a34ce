"""`import diffode` is the front door: light, and complete."""

import pydoc
import subprocess
import sys

import pytest

import diffode
import solvers

HEAVY = {"torch", "numpy", "scipy", "solvers", "experiments"}


def imported_by(*args):
    """The top-level modules that a fresh interpreter has after this."""
    code = f"import sys; {'; '.join(args)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_it_imports_neither_torch_nor_solvers():
    assert not imported_by("import diffode", "diffode.__version__") & HEAVY


def test_a_model_is_made_without_solvers():
    modules = imported_by("from diffode import EpsModel, InputError, Schedule, grid, schedules")
    assert "torch" in modules
    assert not modules & {"solvers", "experiments"}


def test_the_version_is_shown_without_torch():
    modules = imported_by("import cli", "cli.main(['--version'], standalone_mode=False)")
    assert diffode.__version__ in modules  # which the command printed
    assert "torch" not in modules


@pytest.mark.parametrize("name", diffode.__all__)
def test_every_name_resolves_and_is_described(name):
    assert getattr(diffode, name) is not None
    assert name in dir(diffode)
    assert name in diffode.__doc__


def test_names_are_those_of_their_rooms():
    from diffode import likelihood, model

    assert diffode.EpsModel is model.EpsModel
    assert diffode.log_likelihood is likelihood.log_likelihood
    for name in ("ALIASES", "SOLVERS", "Budget", "Plan", "encode", "sample"):
        assert getattr(diffode, name) is getattr(solvers, name)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="'diffode' has no attribute 'smaple'"):
        diffode.smaple  # noqa: B018
    with pytest.raises(ImportError, match="smaple"):
        from diffode import smaple  # noqa: F401


def test_help_shows_the_api():
    shown = pydoc.plain(pydoc.render_doc(diffode))
    for name in diffode.__all__:
        assert name in shown
    assert "class EpsModel" in shown
    assert "sample(model: " in shown
