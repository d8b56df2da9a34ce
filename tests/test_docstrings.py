"""Docstrings: help() of a solver teaches it: formula, options, reference. Every public function and class has a docstring."""

import importlib
import inspect
import pkgutil
import re
from functools import partial

import pytest

import diffode
import solvers
from solvers import SOLVERS

PLANNED = {name: entry for name, entry in SOLVERS.items() if entry.has_plan}
MODULES = [
    importlib.import_module(module.name)
    for package in (diffode, solvers)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


def missing(docstring, options):
    """What a solver's docstring lacks: of a formula, "Arguments", each option, "Reference"."""
    text, _, rest = inspect.cleandoc(docstring or "").partition("\nArguments:\n")
    arguments, _, reference = rest.partition("\nReference:\n")
    named = {name for line in re.findall(r"^    ([a-z_0-9, ]+): \S", arguments, re.M) for name in line.split(", ")}
    found = {
        "formula": re.search(r"^    .*x_t = \S", text, re.M),
        "Arguments": arguments.strip(),
        "Reference": re.match(r"    \S.{10}", reference),
    }
    return [part for part, there in found.items() if not there] + [option for option in options if option not in named]


@pytest.mark.parametrize("name", [name for name in PLANNED])
def test_help_teaches_the_solver(name):
    build = PLANNED[name].build
    function = build.func if isinstance(build, partial) else build
    assert inspect.isfunction(function)
    assert missing(function.__doc__, PLANNED[name].options) == []


def test_a_docstring_that_lacks_something_is_noticed():
    docstring = inspect.getdoc(PLANNED["sde-dpmpp2m"].build)
    assert missing(docstring, ["eta", "lower_final"]) == []
    assert missing(docstring, ["eta", "gamma"]) == ["gamma"]
    assert missing(docstring.replace("Reference:", ""), []) == ["Reference"]
    assert missing(docstring.replace("x_t = ", ""), []) == ["formula"]
    assert missing(None, ["eta"]) == ["formula", "Arguments", "Reference", "eta"]


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_unipc_is_four_functions(p):
    function = getattr(solvers.unipc, f"unipc{p}")
    assert function.__name__ == f"unipc{p}"
    assert f"UniPC-{p}" in function.__doc__
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options = {q.name: (q.annotation, q.default) for q in parameters if q.kind is q.KEYWORD_ONLY}
    assert options == {
        "variant": (str, "bh2"),
        "prediction": (str, "data"),
        "start": (str, "ramp"),
        "lower_final": (bool, False),
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_functions_and_classes_have_docstrings(module):
    for name, thing in vars(module).items():
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__ and name[0] != "_":
            documented = thing.__doc__ and not thing.__doc__.startswith(
                f"{name}("
            )  # a signature: what @dataclass writes for want of one
            assert documented, f"{module.__name__}.{name}"


def test_the_function_of_a_solver_is_an_attribute_of_its_name():
    """So that help(solvers.dpmpp2m) teaches it."""
    import solvers

    for name in ("dpmpp2m", "sde-dpmpp2m"):
        function, build = getattr(solvers, name.replace("-", "_")), SOLVERS[name].build
        assert (function.__doc__, inspect.signature(function)) == (build.__doc__, inspect.signature(build))
    assert {"dpmpp2m", "unipc3", "sample"} <= set(dir(solvers))
    assert not hasattr(solvers, "dopri5")
