"""The longest functions outside tests, each with a reason if it is over 40 lines; draw_imports.py writes them into design.md."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE, LONGEST_FUNCTION, SHOWN = 250, 40, 10
# Why a function is longer than LONGEST_FUNCTION.
REASONS = {
    "solvers/multistep.py:multistep": "28 lines of code: one loop over the steps, in which start, final order, corrector and "
    "noise are decided in one place for every multistep solver; the rest is its signature and what its arguments mean.",
    "solvers/adaptive.py:integrate": "29 lines of code: ends, loop, result; the rest is its signature, and what tolerances, ends "
    "and the result mean.",
    "solvers/blackbox.py:integrate": "24 lines of code; the rest is its signature, and what torchdiffeq's tolerances and "
    "trajectories mean.",
    "solvers/sampling.py:sample": "14 lines of code; the rest is the signature of the function that users call, and what its "
    "arguments mean.",
    "solvers/sampling.py:encode": "20 lines of code; the rest is its signature, and what its arguments mean.",
    "solvers/inpainting.py:inpaint": "23 lines of code; the rest is its signature, and what its arguments mean.",
    "diffode/likelihood.py:log_likelihood": "18 lines of code; the rest is its signature, and what its arguments mean.",
    "experiments/comparison/compare.py:compare_solvers": "The whole command in its order: problem, solution, rows, answer.",
    "experiments/sampling/jobs.py:prepare_job": "22 lines of code; the rest is its signature: all that decides a job, by name.",
    "cli.py:sample": "It lists each option of the command by name, and hands it on.",
}


def files() -> list[Path]:
    """The code outside tests, benchmarks and docs."""
    return [
        *sorted(path for package in ("diffode", "solvers", "experiments") for path in (ROOT / package).rglob("*.py")),
        ROOT / "cli.py",
    ]


def functions() -> list[tuple[int, str]]:
    """(lines, file:function) of every function and method, longest first; from its def to its end, docstring and all."""
    found = []
    for path in files():
        stack: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text(encoding="utf-8")))]
        while stack:
            prefix, node = stack.pop()
            for child in ast.iter_child_nodes(node):
                named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                name = f"{prefix}{child.name}" if named else prefix
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert child.end_lineno is not None
                    found.append((child.end_lineno - child.lineno + 1, f"{path.relative_to(ROOT)}:{name}"))
                stack.append((f"{name}." if named else prefix, child))
    return sorted(found, key=lambda row: (-row[0], row[1]))


def long_files() -> list[str]:
    """The files over LONGEST_FILE lines."""
    counted = ((len(path.read_text(encoding="utf-8").splitlines()), path) for path in files())
    return [f"{path.relative_to(ROOT)} ({n} lines)" for n, path in counted if n > LONGEST_FILE]


def unexplained() -> list[str]:
    """The functions of more than LONGEST_FUNCTION lines for which REASONS says nothing."""
    return [name for lines, name in functions() if lines > LONGEST_FUNCTION and name not in REASONS]


def longest() -> str:
    """The longest functions as a Markdown table, with the reason of each that is longer than it should be."""
    rows = functions()
    shown = [row for i, row in enumerate(rows) if i < SHOWN or row[0] > LONGEST_FUNCTION]
    lines = [f"| `{name}` | {n} | {REASONS.get(name, '')} |" for n, name in shown]
    over = long_files()
    files_said = f"Files of more than {LONGEST_FILE} lines: {', '.join(over) if over else 'none'}."
    return "\n".join(["| function | lines | why so long |", "| --- | --- | --- |", *lines, "", files_said, ""])
