"""Draw who imports whom, and list the longest functions, from the code alone: python -m docs.draw_imports

It writes docs/imports.svg and the block `longest functions` of docs/design.md; --check writes nothing, and exits with code 1 if
one of them is not what the code says, or if an import points back.

The boxes stand on the diagonal, importers above what they import. An import goes from its box to the right, and down to what is
imported; the number in the circle counts the statements. So all arrows point down and lie above the diagonal; one
that pointed back would lie below it, in red.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

from diffode.files import atomic
from docs.longest_functions import LONGEST_FUNCTION, ROOT, files, longest, unexplained

SVG, DESIGN = ROOT / "docs" / "imports.svg", ROOT / "docs" / "design.md"
BLOCK = re.compile(r"(<!-- longest functions.*?-->\n).*?(<!-- /longest functions -->)", re.DOTALL)

FRONT_DOOR, DOORS = "diffode: front door", ("diffode.__init__", "diffode.kdiffusion", "diffode.__main__")
GROUPS = {  # of boxes, top to bottom, with their colours
    "entry points": ("#8a5a00", "#fdf1d8"),
    "experiments: research": ("#7a3b8f", "#f5eaf8"),
    "experiments: product": ("#1f5fa8", "#e6f0fb"),
    "solvers": ("#0b7a4b", "#e3f5ec"),
    "diffode": ("#9c2f2f", "#fbe9e7"),
}
RESEARCH = ("claims", "ddim_paper", "documents")
MODULE = re.compile(r"(diffode|solvers|experiments)(\.\w+)+\.?")
Edges = Counter[tuple[str, str]]


def box(module: str) -> str:
    """The box that a module is drawn in."""
    package, *rest = module.split(".")
    if package == "diffode":
        return f"diffode: {rest[0]}" if rest and (ROOT / "diffode" / rest[0]).is_dir() else "diffode: core"
    if package == "experiments" and rest:
        return rest[0]
    return {"cli": "cli.py"}.get(package, package)


def group(name: str) -> str:
    """The group of a box."""
    if name in ("cli.py", FRONT_DOOR):
        return "entry points"
    if name == "solvers" or name.startswith("diffode: "):
        return name.partition(":")[0]
    return "experiments: research" if name in RESEARCH else "experiments: product"


def imported(tree: ast.AST) -> Iterator[set[str]]:
    """What every import statement imports, those within functions and for types too; and modules that are named in strings, as
    import_module takes them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            yield {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            yield {node.value}


def read_edges() -> Edges:
    """(importing box, imported box) -> number of statements, between the boxes of this house."""
    edges: Edges = Counter()
    for path in files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        importer = FRONT_DOOR if module in DOORS else box(module)
        if importer == "experiments":  # the package's docstring
            continue
        for modules in imported(ast.parse(path.read_text(encoding="utf-8"))):
            inside = {box(module) for module in modules if module.split(".")[0] in ("diffode", "solvers", "experiments", "cli")}
            edges.update((importer, name) for name in inside - {importer, "experiments"})
    return edges


def layered(edges: Edges) -> list[str]:
    """The boxes, importers first: of those that nothing left imports, that of the first group which imports most."""
    left, order = {name for edge in edges for name in edge}, list[str]()
    while left:
        importers = {name: sum(n for (a, b), n in edges.items() if b == name and a in left) for name in left}
        free = [name for name in left if not importers[name]] or [min(left, key=lambda name: (importers[name], name))]
        order.append(min(free, key=lambda name: (list(GROUPS).index(group(name)), -sum(a == name for a, _ in edges), name)))
        left.remove(order[-1])
    return order


def backward(edges: Edges) -> list[tuple[str, str]]:
    """The imports that point back, from a lower box to a higher one."""
    order = layered(edges)
    return [(a, b) for a, b in edges if order.index(a) > order.index(b)]


BACK = "#e00000"
COLUMN, ROW, WIDTH, HEIGHT, LEFT, TOP = 68, 42, 104, 28, 74, 18


def draw(edges: Edges) -> str:
    """The drawing, as SVG."""
    order = layered(edges)
    at = {name: (LEFT + COLUMN * i, TOP + ROW * i + HEIGHT // 2) for i, name in enumerate(order)}
    width, height = LEFT + COLUMN * (len(order) - 1) + WIDTH // 2 + 16, TOP + ROW * len(order) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12">',
        "<title>Who imports whom in diffode: every arrow points down</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_sideways(at[a], at[b], colours(order, a, b)[0]) for a, b in sorted(edges)),
        *(_down(at[a], at[b], colours(order, a, b)[1]) for a, b in _longest_of_each_column(edges, order)),
        *(_count(at[a], at[b], n, colours(order, a, b)[0]) for (a, b), n in sorted(edges.items())),
        *(_box(name, at[name]) for name in order),
        *_legend(height - 34),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def colours(order: list[str], importer: str, name: str) -> tuple[str, str]:
    """Of the two parts of an arrow: those of its ends, or red if it points back."""
    back = order.index(importer) > order.index(name)
    return (BACK, BACK) if back else (GROUPS[group(importer)][0], GROUPS[group(name)][0])


def _longest_of_each_column(edges: Edges, order: list[str]) -> list[tuple[str, str]]:
    """The highest importer of every box, whose line holds those of the others, and all that point back."""
    highest = {name: min((a for a, b in edges if b == name), key=order.index) for name in {b for _, b in edges}}
    return sorted({*((a, name) for name, a in highest.items()), *backward(edges)})


def _sideways(start: tuple[int, int], end: tuple[int, int], colour: str) -> str:
    """From a box to the column of another."""
    return f'<path d="M{start[0]},{start[1]} H{end[0]}" stroke="{colour}" stroke-opacity="0.35" stroke-width="1.3"/>'


def _down(start: tuple[int, int], end: tuple[int, int], colour: str) -> str:
    """And along it to the box (up, if it points back)."""
    (_, y0), (x, y1) = start, end
    way = 1 if y1 > y0 else -1
    tip = y1 - way * HEIGHT // 2
    return (
        f'<path d="M{x},{y0} V{tip - 7 * way}" stroke="{colour}" stroke-opacity="0.6" stroke-width="1.3"/>'
        f'<path d="M{x},{tip} l-4,{-7 * way} h8 z" fill="{colour}"/>'
    )


def _count(start: tuple[int, int], end: tuple[int, int], n: int, colour: str) -> str:
    """The number of statements, where the arrow turns."""
    (_, y), (x, _), width = start, end, min(0.8 + n / 12, 3.5)
    return (
        f'<circle cx="{x}" cy="{y}" r="10" fill="#ffffff" stroke="{colour}" stroke-width="{width:.1f}"/>'
        f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-size="11" fill="{colour}">{n}</text>'
    )


def _box(name: str, at: tuple[int, int]) -> str:
    """A box with its name, in the colours of its group."""
    (x, y), (dark, light) = at, GROUPS[group(name)]
    label = name.removeprefix("diffode: ") if name != FRONT_DOOR else "import diffode"
    return (
        f'<rect x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
        f'fill="{light}" stroke="{dark}"/>'
        f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-weight="bold" fill="{dark}">{escape(label)}</text>'
    )


def _legend(y: int) -> Iterator[str]:
    """The groups and their colours, left below, where no arrow is."""
    x = 22
    for name, (dark, light) in GROUPS.items():
        yield f'<rect x="{x}" y="{y}" width="16" height="16" rx="3" fill="{light}" stroke="{dark}"/>'
        yield f'<text x="{x + 23}" y="{y + 13}" fill="{dark}">{escape(name)}</text>'
        x += 56 + 7 * len(name)


def made() -> dict[Path, str]:
    """What this script writes."""
    text = BLOCK.sub(lambda match: f"{match[1]}{longest()}{match[2]}", DESIGN.read_text(encoding="utf-8"))
    return {SVG: draw(read_edges()), DESIGN: text}


def complaints() -> list[str]:
    """What is not as it should be, a sentence each."""
    stale = [path for path, text in made().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return [
        *(f"{path.relative_to(ROOT)} is out of date: run python -m docs.draw_imports" for path in stale),
        *(f"{a} imports {b}, which points back" for a, b in backward(read_edges())),
        *(f"{name} is longer than {LONGEST_FUNCTION} lines: shorten it, or say why in REASONS" for name in unexplained()),
    ]


def main() -> int:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if anything is out of date")
    if not parser.parse_args().check:
        for path, text in made().items():
            with atomic(path) as part:
                part.write_text(text, encoding="utf-8")
    found = complaints()
    sys.stdout.write("".join(f"{line}\n" for line in found) or longest())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
