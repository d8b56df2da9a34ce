"""Draw the workflow of the ComfyUI nodes, integrations/comfyui/example.json: python -m docs.draw_comfyui writes docs/comfyui.svg.

A wire goes from an output of a node to an input of another, and diffode's nodes are blue. LEFT and TOP leave room for all wires.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from diffode.files import atomic

ROOT = Path(__file__).resolve().parent.parent
SVG = ROOT / "docs" / "comfyui.svg"
WIDTH, TITLE, ROW = 200, 26, 20
TITLES = {"DiffodeSampler": "diffode sampler", "DiffodeGrid": "diffode grid"}
WIDGETS = {"DiffodeSampler": ("solver", "options", "plan"), "DiffodeGrid": ("grid", "steps", "denoise", "plan")}
LEFT = {1: 0, 2: 260, 3: 260, 4: 260, 5: 260, 6: 260, 7: 520, 8: 780, 9: 1040}  # of each node, by its id
TOP = {1: 230, 2: 365, 3: 430, 4: 495, 5: 0, 6: 124, 7: 316, 8: 250, 9: 250}


def drawing() -> str:
    """The SVG."""
    flow = json.loads((ROOT / "integrations" / "comfyui" / "example.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in flow["nodes"]}
    wires = [wire(nodes[source], slot, nodes[target], into) for _, source, slot, target, into, _ in flow["links"]]
    boxes = [box(node) for node in nodes.values()]
    title = "<title>The workflow of example.json: diffode sampler and diffode grid into SamplerCustom</title>"
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 1260 575" font-family="sans-serif" font-size="13" role="img">'
    )
    return "\n".join([head, title, '<rect x="-10" y="-10" width="1260" height="575" fill="#fff"/>', *wires, *boxes, "</svg>", ""])


def port(node: dict[str, Any], slot: int, is_output: bool) -> tuple[int, int]:
    """Where an input or an output is."""
    return LEFT[node["id"]] + WIDTH * is_output, TOP[node["id"]] + TITLE + ROW * slot + ROW // 2


def wire(source: dict[str, Any], slot: int, target: dict[str, Any], into: int) -> str:
    """A curve between two ports; diffode's are dark."""
    (x, y), (u, v) = port(source, slot, True), port(target, into, False)
    stroke = ("#1f5fa8", 2.5) if source["type"] in WIDGETS else ("#999", 1.5)
    middle = (x + u) // 2
    return f'<path d="M{x} {y}C{middle} {y} {middle} {v} {u} {v}" fill="none" stroke="{stroke[0]}" stroke-width="{stroke[1]}"/>'


def box(node: dict[str, Any]) -> str:
    """A node: its title, its inputs on the left, its outputs on the right, and the values of diffode's below."""
    ours = node["type"] in WIDGETS
    names = [f"{name}: {value}" for name, value in zip(WIDGETS.get(node["type"], ()), node["widgets_values"], strict=False)]
    slots = max(len(node["inputs"]), len(node["outputs"]))
    x, y, height = LEFT[node["id"]], TOP[node["id"]], TITLE + ROW * (slots + len(names)) + 4
    colours = ("#1f5fa8", "#e6f0fb") if ours else ("#777", "#f4f4f4")
    lines = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="5" fill="{colours[1]}" stroke="{colours[0]}"/>',
        f'<text x="{x + 10}" y="{y + 18}" font-weight="bold" fill="{colours[0]}">{TITLES.get(node["type"], node["type"])}</text>',
    ]
    for is_output, key in ((False, "inputs"), (True, "outputs")):
        for slot, one in enumerate(node[key]):
            u, v = port(node, slot, is_output)
            side = f'x="{u - 10}" text-anchor="end"' if is_output else f'x="{u + 10}"'
            lines += [f'<circle cx="{u}" cy="{v}" r="4" fill="{colours[0]}"/>', f'<text {side} y="{v + 4}">{one["name"]}</text>']
    first = y + TITLE + ROW * slots + 14
    lines += [f'<text x="{x + 10}" y="{first + ROW * row}" fill="#555">{escape(name)}</text>' for row, name in enumerate(names)]
    return "\n".join(lines)


if __name__ == "__main__":
    with atomic(SVG) as part:
        part.write_text(drawing(), encoding="utf-8")
