"""The shape of the tree: imports point one way, between packages and between rooms of experiments; files are short."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["diffode", "solvers", "experiments", "cli"]
FRONT_DOORS = {  # what each may import from above
    "diffode/__init__.py": {"solvers"},
    "diffode/kdiffusion.py": {"solvers"},
    "diffode/__main__.py": {"cli"},
}
FILES = [path for package in PACKAGES[:3] for path in sorted((ROOT / package).rglob("*.py"))] + [ROOT / "cli.py"]
# A room imports the rooms named here, all lower ones of which it may use, and no others.
ROOMS = {
    "published": set(),
    "common": set(),
    "sampling": {"common"},
    "metrics": {"common", "sampling"},
    "training": {"common", "sampling", "metrics"},
    "comparison": {"common", "sampling", "metrics"},
    "claims": {"common", "sampling", "metrics", "comparison", "published"},
    "ddim_paper": {"common", "sampling", "metrics", "comparison", "published"},
}
LONGEST_FILE = 250


def name_of(path):
    return str(path.relative_to(ROOT))


@cache
def nodes(path):
    """All nodes of a file's syntax tree."""
    return [*ast.walk(ast.parse(path.read_text()))]


def imported(path):
    """(where, module) of every import, lazy ones and those for types too; `from a import b` is both a and a.b."""
    for node in nodes(path):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from ((where, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where} imports relatively"
            yield from ((where, f"{node.module}.{alias.name}") for alias in node.names)


def calls(path):
    """(where, what is called, the call), of every call; as text, what is called."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield f"{name_of(path)}:{node.lineno}", ast.unparse(node.func), node


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    rank, found = PACKAGES.index(package), []
    for path in (path for path in FILES if path.relative_to(ROOT).parts[0].removesuffix(".py") == package):
        allowed = {*PACKAGES[: rank + 1], *FRONT_DOORS.get(name_of(path), set())}
        for where, module in imported(path):
            top = module.split(".")[0]
            if top in PACKAGES and top not in allowed:
                found.append(f"{where} imports {module}")
    assert not found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_lower_rooms_alone(room):
    found = []
    for path in (ROOT / "experiments" / room).glob("*.py"):
        for where, module in imported(path):
            if module.startswith("experiments.") and module.split(".")[1] not in {room, *ROOMS[room]}:
                found.append(f"{where} imports {module}")
    assert not found


def test_the_rooms_are_all_there_and_have_an_order():
    assert set(ROOMS) == {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    for room, lower in ROOMS.items():
        for other in lower:
            assert list(ROOMS).index(other) < list(ROOMS).index(room)
            assert ROOMS[other] <= lower


def test_solvers_are_told_apart_by_data():
    """Nothing asks what kind of solver it has."""
    found = []
    for where, called, call in (each for path in FILES for each in calls(path)):
        if called == "isinstance":
            kinds = {
                ast.unparse(kind).split(".")[-1] for kind in ast.walk(call.args[1]) if isinstance(kind, ast.Name | ast.Attribute)
            }
            found += [where] * bool(kinds & {"Solver", "Planned", "Adaptive", "BlackBox"})
    assert not found


def test_no_file_is_long():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_nothing_unpickles():
    """Not PyTorch's own reader of weights either: pickles are read by diffode/models/pickle_machine.py."""
    unpickle = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}
    found = [ast.unparse(call) for path in FILES for _, called, call in calls(path) if called in unpickle]
    assert not found
