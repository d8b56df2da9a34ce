"""The shape of the tree: imports point one way, between packages and between rooms of experiments; files are short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["diffode", "solvers", "experiments", "cli"]
FRONT_DOORS = {"diffode/__init__.py": {"solvers"}, "diffode/__main__.py": {"cli"}}  # what each may import from above
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


def trees():
    return [pytest.param(path, ast.parse(path.read_text()), id=name_of(path)) for path in FILES]


def imported(tree):
    """(line, module) of every import, lazy ones and those for types too; `from a import b` is both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(("path", "tree"), trees())
def test_imports_point_one_way(path, tree):
    rank = PACKAGES.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    allowed = {*PACKAGES[: rank + 1], *FRONT_DOORS.get(name_of(path), set())}
    for line, module in imported(tree):
        package = module.split(".")[0]
        assert package not in PACKAGES or package in allowed, f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize(("path", "tree"), [case for case in trees() if case.values[0].parent.parent.name == "experiments"])
def test_rooms_import_lower_rooms_alone(path, tree):
    room = path.parent.name
    for line, module in imported(tree):
        if module.startswith("experiments."):
            other = module.split(".")[1]
            assert other in {room, *ROOMS[room]}, f"{path.name}:{line} imports {module}"


def test_the_rooms_are_all_there_and_have_an_order():
    assert set(ROOMS) == {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    for room, lower in ROOMS.items():
        for other in lower:
            assert list(ROOMS).index(other) < list(ROOMS).index(room)
            assert ROOMS[other] <= lower


@pytest.mark.parametrize(("path", "tree"), trees())
def test_solvers_are_told_apart_by_data(path, tree):
    """Nothing asks what kind of solver it has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = {
                ast.unparse(kind).split(".")[-1] for kind in ast.walk(node.args[1]) if isinstance(kind, ast.Name | ast.Attribute)
            }
            assert not kinds & {"Solver", "Planned", "Adaptive", "BlackBox"}, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize(("path", "tree"), trees())
def test_nothing_unpickles(path, tree):
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"torch.load", "pickle.load", "pickle.loads"}
