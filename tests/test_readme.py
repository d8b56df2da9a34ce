"""What documents show is what the code does: snippets run, and generated parts are up to date."""

import ast
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from diffode import schedules
from solvers import sample
from solvers.registry import find, table

ROOT = Path(__file__).parents[1]


def snippets(name):
    return re.findall(r"<!-- snippet: tests run this -->\n```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def part(text, name):
    return re.search(rf"<!-- {name}.*?-->\n(.*?)<!-- /{name} -->", text, re.S)[1].strip()


def reimported(monkeypatch, module):
    """A module of this name is imported again, now and after the test."""
    monkeypatch.setitem(sys.modules, module, None)
    del sys.modules[module]


def shown_network():
    """The network that README shows, a module in float32, taking labels as the snippets before it do."""
    scope = {}
    exec(re.search(r"<!-- mine\.py: tests run this -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1], scope)

    class Labelled(scope["Network"]):
        def forward(self, x, t, y=None):
            return super().forward(x, t)

    return Labelled(*scope["network"])


def test_readme_snippets_run(capsys):
    scope = {"network": shown_network()}
    found = snippets("README.md")
    assert len(found) == 7
    for code in found:
        exec(code, scope)
    assert scope["result"].nfe == 20
    shown = capsys.readouterr().out
    assert shown.startswith("20 40\nddim: 20 steps")
    assert "\nunipc3: 10 steps, 10 NFE" in shown
    assert len(scope["batches"]) == 2


def test_the_solver_of_contributing_is_a_solver(mixture64, tmp_path, monkeypatch):
    """Saved and named as its text says, it is dpm2, with and without a last step to λ = +∞, and spends its budget exactly."""
    (code,) = snippets("CONTRIBUTING.md")
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    reimported(monkeypatch, "mine")
    for budget in ({"nfe": 8}, {"nfe": 9, "denoise": True}):
        kw = {"shape": (2, 1, 28, 28), "dtype": torch.float64, **budget}
        mine, theirs = (sample(mixture64, solver=solver, **kw) for solver in ("mine:mymidpoint", "dpm2"))
        torch.testing.assert_close(mine.x, theirs.x, rtol=0, atol=1e-11)
        assert mine.nfe == budget["nfe"]


@pytest.mark.parametrize("command", ["compare", "sample --model mine:model --nfe 3"])
def test_a_users_network_takes_ten_lines_and_one_command(tmp_path, monkeypatch, command):
    """The file and the command that README shows, with few samples."""
    import cli

    shown = r"<!-- mine\.py: tests run this -->\n```python\n(.*?)```.*?```\npython cli\.py (.*?)\n```"
    code, command_line = re.search(shown, (ROOT / "README.md").read_text(encoding="utf-8"), re.S).groups()
    assert len([line for line in code.splitlines() if line]) <= 10
    assert command_line.startswith("compare --model mine:model ")
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    reimported(monkeypatch, "mine")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # whose curves take seconds
    args = shlex.split(command_line if command == "compare" else command)
    result = CliRunner().invoke(cli.main, [*args, "--n", "2"])
    assert result.exit_code == 0, result.output


def test_the_solver_table_is_generated():
    assert part((ROOT / "README.md").read_text(), "solvers") == table()


def test_the_plan_shown_is_the_plan():
    schedule = schedules.ddpm_linear()
    plan = find("dpm2").plan([schedule.lam_min, (schedule.lam_min + schedule.lam_max) / 2, schedule.lam_max], schedule)
    assert str(plan) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_option_that_readme_types_exists():
    import cli

    commands = [line for line in re.findall(r"`(python cli\.py [^`]*)`", (ROOT / "README.md").read_text())]
    assert len(commands) > 8
    for line in commands:
        _, _, command, *words = line.split()
        known = {
            option for parameter in cli.main.commands[command].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, line


def test_every_command_that_documents_type_exists():
    """Modules and options of `python -m experiments.NAME` and `python cli.py NAME`, in code spans and blocks."""
    import cli

    shown = r"python (-m experiments\.|-m diffode |cli\.py )([a-z]\w*(?:\.\w+)*)([^`\n;|&]*)"
    found = 0
    documents = *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")
    for path in sorted((*documents, *ROOT.glob("experiments/**/*.py"))):
        text = path.read_text(encoding="utf-8")
        for kind, name, rest in re.findall(shown, text):
            command = import_module(f"experiments.{name}").main if "experiments" in kind else cli.main.commands[name]
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            typed = {word.split("=")[0].rstrip(",.)") for word in rest.split() if re.match(r"--[a-z]", word)}
            assert typed <= known | {"--help"}, f"{path.name}: {name} {typed - known}"
            found += 1
    assert found > 30


def test_every_function_that_design_names_exists():
    """FILE:FUNCTION, as the walks have it; each in at most twelve calls."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(named) > 30
    for path, name in named:
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
            assert found, f"{path} has no {name}"
            body = found[0].body
    walks = re.findall(r"(?:^\d+\. .*\n)+", text, re.M)
    assert len(walks) == 3
    assert all(len(walk.splitlines()) <= 12 for walk in walks)


def test_files_that_design_names_exist():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:diffode|solvers|experiments|docs|tests)/[\w/]*(?:\.\w+)?)`", text):
        assert (ROOT / path).exists(), path
