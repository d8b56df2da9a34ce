"""Table 1 of the DDIM paper: η against the number of steps S (Song, Meng and Ermon, 2021, section 5.1).

    python -m experiments.ddim_paper.table1 --preset mixture
    python -m experiments.ddim_paper.table1 --preset cifar10 --weights FILE.safetensors --reference IMAGES

A cell is n samples of one η and one S, on the paper's own sub-sequence τ (tau-linear or tau-quadratic, see grid.py), from the
prior at τ_S to α = 1, where the last step adds no noise. It costs one evaluation per label: S of them, or fewer where a quadratic
τ names one twice. "sigma-hat" is DDPM's larger variance, σ² = β of τ. Nothing is clipped but the finished image; the authors'
code clips x̂0 in this row, and in this row alone. All cells have the same seeds. The samples of a network are kept beside the
table, so that an interrupted run continues within a cell, and one with a larger n adds to whole blocks of them. How samples are
judged is in table1_cells.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont
from scipy.special import stdtrit

from diffode.errors import InputError
from diffode.files import atomic
from diffode.images import writers
from diffode.models import presets, pretrained
from experiments import published
from experiments.common import figures, results, script_options
from experiments.common.commands import Script, command_line
from experiments.common.markdown import provenance_sentence, table
from experiments.common.options import MOST_IMAGES, FileName, as_one
from experiments.ddim_paper.table1_cells import BLOCK, ETAS, NetworkSamples, Table1Model, lams_of_tau, of_mixture, of_network
from experiments.ddim_paper.table1_presets import PRESETS, Table1Options
from experiments.metrics.features import FEATURES
from experiments.metrics.measurement import BLOCKS, MIN_IMAGES, Measurement
from experiments.sampling.recipe import Recipe, choose_device

STEPS = (10, 20, 50, 100, 1000)
FLOOR: results.Row = {"S": 0, "eta": "floor", "n": 0}  # the cell of the floor, which has no η and no S
SHOWN = 10  # samples of each cell, in the picture
CELL, GAP, LINE = 300, 12, 20  # pixels: the width of a cell, between cells, and above a row
T_95 = float(stdtrit(BLOCKS - 1, 0.975))  # half a 95 % interval, in standard errors of the jackknife
REPORTED = {  # the numbers of a cell that the report shows, their titles and digits
    "frechet": ("Fréchet distance in the features of {features}", 3),
    "frechet unbiased": ("The same without its bias of 1/N, by the jackknife, as columns of different N are to be compared", 3),
    "own label": ("Share of samples that the classifier gives their own label", 3),
    "moments": ("Fréchet distance of the first two moments of the pixels from the exact ones", 3),
    "components": ("Total variation between the components' shares and their weights", 4),
}
Key = tuple[str, int]  # η and S


def picture(pixels: Mapping[Key, writers.Pixels]) -> Image.Image:
    """The first samples of every cell, from the same seeds: rows are η, columns S."""
    sheets = {key: writers.grid(some, columns=SHOWN // 2, width=CELL) for key, some in pixels.items()}
    etas, steps = (list(dict.fromkeys(column)) for column in zip(*sheets, strict=True))
    width, height = (side + GAP for side in next(iter(sheets.values())).size)
    whole = Image.new("RGB", (width * len(steps), (height + LINE) * len(etas)), "white")
    for (eta, s), sheet in sheets.items():
        whole.paste(sheet, (width * steps.index(s), (height + LINE) * etas.index(eta) + LINE))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for row, eta in enumerate(etas):  # the font has no Greek
        name = eta if eta == "sigma-hat" else f"eta = {eta}"
        pen.text((0, (height + LINE) * row + LINE / 2), name, "black", font, anchor="lm")
    return figures.headed(whole, [f"S = {s}" for s in steps])


def report(out: Path) -> str:
    """A table of η against S for each of REPORTED, the paper's, and what made them."""
    about, rows = results.read(out)
    cells = {(row["eta"], row["S"]): row for row in sorted(rows, key=lambda row: row["n"]) if "error" not in row}
    floor = cells.pop((FLOOR["eta"], FLOOR["S"]), None)
    largest = {s: row for (_, s), row in sorted(cells.items(), key=lambda item: item[0][1])}
    head = ["", *(f"S = {s}" + f" ({row['nfe']} NFE)" * (row["nfe"] != s) for s, row in largest.items())]
    sizes = ", ".join(f"{row['n']:,} (S = {s})" for s, row in largest.items())
    parts = [f"Samples per cell: {sizes}. τ is {about['tau']}; S evaluations per image. ± is {T_95:.2f} standard errors, 95 %."]
    for name, (title, digits) in REPORTED.items():
        if any(name in row for row in cells.values()):

            def shown(row: Mapping[str, Any], name: str = name, digits: int = digits) -> str:
                return f"{row[name]:.{digits}f} ± {T_95 * row[f'{name} ±']:.{digits}f}"

            lines = [[_eta(eta), *(shown(cells[eta, s]) if (eta, s) in cells else "" for s in largest)] for eta in ETAS]
            of_floor = f" ({about['floor']}: {shown(floor)})" if floor else ""
            parts.append(f"{title.format(**about)}{of_floor}:\n\n{table(head, lines)}")
    paper = {
        (row["eta"], int(row["S"])): row["fid"] for row in published.table("ddim_table1") if row["dataset"] == about["paper"]
    }
    lines = [[_eta(eta), *(paper.get((eta, s), "") for s in largest)] for eta in ETAS]
    parts.append(f"The paper's, FID of {about['paper']}:\n\n{table(['', *(f'S = {s}' for s in largest)], lines)}")
    return "\n\n".join([*parts, _order(cells), provenance_sentence(about)])


def _order(cells: Mapping[Key, Mapping[str, Any]]) -> str:
    """The best and the worst η at the fewest and at the most steps, by the first number of REPORTED."""
    name = next(name for name in REPORTED if any(name in row for row in cells.values()))
    sentences = []
    for s in (min(s for _, s in cells), max(s for _, s in cells)):
        ranked = sorted((row[name], row[f"{name} ±"], eta) for (eta, at), row in cells.items() if at == s)
        (best, error, first), (worst, _, last) = ranked[0], ranked[-1]
        near = [_eta(eta) for value, other, eta in ranked[1:] if value - best < T_95 * math.hypot(error, other)]
        tied = f" (within the errors as good: {', '.join(near)})" if near else ""
        sentences.append(f"At S = {s} the best is {_eta(first)}{tied}; {_eta(last)} is {worst / best:.3g} times as far.")
    return " ".join(sentences)


def _eta(name: str) -> str:
    return "σ̂" if name == "sigma-hat" else f"η = {name}"


def _flat(numbers: Mapping[str, Measurement]) -> dict[str, float]:
    """name: value, and name ±: its standard error, six digits each."""
    pairs = ((f"{name}{mark}", value) for name, n in numbers.items() for mark, value in (("", n.value), (" ±", n.error)))
    return {name: float(f"{value:.6g}") for name, value in pairs}


def _steps(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 1 for part in parts):
        raise click.BadParameter(f"{text!r} is not a comma-separated list of whole numbers from 2 on")
    return tuple(int(part) for part in parts)


def model_of(options: Table1Options, loaded: pretrained.Pretrained, out: Path) -> Table1Model:
    """How the model of a preset is sampled and judged; InputError for what does not go together."""
    preset, chosen = options.preset, options.chosen
    if (loaded.card.kind == "mixture") != (preset == "mixture"):
        raise InputError(f"the preset {preset} is not for {options.name}, which is a {loaded.card.kind}: take another preset")
    if preset == "mixture":
        if chosen.features or options.reference:
            raise InputError("a mixture is compared with itself: leave features and reference out")
        return of_mixture(loaded, chosen.tau)
    recipe = Recipe(dtype=chosen.dtype, device=choose_device(options.device))
    samples = NetworkSamples(loaded, options.name, chosen.tau, recipe, results.with_suffix(out, "-samples"))
    return of_network(samples, chosen.features, options.reference)


@click.command(cls=Script)
@click.option("--preset", default="fashion", show_default=True, type=click.Choice(list(PRESETS)))
@click.option(
    "--weights",
    type=FileName(str),
    metavar="FILE|NAME",
    help="The network of the preset. [default: the one that comes with diffode]",
)
@click.option("--reference", type=FileName(), help="Real images, or an .npz of mu and sigma. [default: the shipped]")
@click.option("--features", type=click.Choice(list(FEATURES)), help="What images are compared in. [default: the preset's]")
@click.option("--tau", type=click.Choice(["linear", "quadratic"]), help="The rule of τ. [default: the preset's]")
@click.option("--n", type=click.IntRange(MIN_IMAGES, MOST_IMAGES), help="Samples per cell. [default: the preset's]")
@click.option("--steps", default=",".join(map(str, STEPS)), show_default=True, callback=_steps, help="S, comma-separated.")
@script_options.seed()
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
@script_options.out(None, "OUT.csv, OUT.json and OUT.png: a name without suffix. [default: results/table1_PRESET]")
@script_options.overwrite
@script_options.fast("40 samples per cell, S = 10 and 20, no floor")
@as_one("options", Table1Options)
def main(options: Table1Options) -> None:
    """Judge samples for each η and number of steps S, as Table 1 of the DDIM paper."""
    out = options.out or Path("results") / f"table1_{options.preset}"
    chosen, loaded = options.chosen, pretrained.load(options.name)
    model = model_of(options, loaded, out)
    steps = (10, 20) if options.fast else options.steps
    nfe = {s: len(lams_of_tau(chosen.tau, loaded.model.schedule, s)) for s in steps}
    cells = [{"S": s, "eta": eta, "n": chosen.samples(s)} for s in steps for eta in ETAS]
    about = {
        "model": options.name,
        "sha256": loaded.sha256,
        "tau": chosen.tau,
        "end": "sigma = 0, to which the last step adds no noise",
        "nfe rule": "evaluations an image, one a label of tau",
        "seed": options.seed,
        "paper": presets.PRESETS[options.preset if options.preset in presets.PRESETS else "cifar10"].table,
    }

    def seeds(n: int) -> list[int]:
        return list(range(options.seed, options.seed + n))

    def compute(cell: Mapping[str, Any]) -> dict[str, float]:
        if cell["eta"] == FLOOR["eta"]:
            assert model.floor is not None
            return _flat(model.floor())
        return {"nfe": nfe[cell["S"]], **_flat(model.measure(cell, seeds(cell["n"])))}

    wanted = [FLOOR, *cells] if model.floor and not options.fast else cells
    how: Any = {"command": command_line(), "overwrite": options.overwrite, "also": (".png",)}
    rows = results.fill(out, wanted, compute, about={**about, **model.about}, **how)
    first = {(row["eta"], row["S"]): model.pixels(row, seeds(min(row["n"], BLOCK)))[:SHOWN] for row in rows if "nfe" in row}
    if first:
        with atomic(results.with_suffix(out, ".png")) as part:
            picture({key: first[key] for key in sorted(first, key=lambda key: list(ETAS).index(key[0]))}).save(part, format="PNG")
    results.finish(rows, out)


if __name__ == "__main__":
    main()
