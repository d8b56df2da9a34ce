"""Table 1 of the DDIM paper: η against the number of steps S (Song, Meng and Ermon, 2021, section 5.1).

    python -m experiments.ddim_table --preset mixture
    python -m experiments.ddim_table --preset cifar10 --weights FILE.safetensors --reference IMAGES

A cell is n samples of one η and one S, on the paper's own sub-sequence τ (tau-linear or tau-quadratic, see grid.py), from N(0, I)
at τ_S to α = 1, where the last step adds no noise: S evaluations an image. "sigma-hat" is DDPM's larger variance, σ² = β of τ.
Nothing is clipped but the finished image. All cells have the same seeds. The samples of a network are kept beside the table, so
that a run that was killed goes on in mid-cell and one with a larger --n adds to them, and are judged by `quality`; those of an
exact mixture, averaged over 2 × 2 pixels where 10,000 a cell are cheap, are judged by `truth`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from diffode import checkpoint, data, images, pretrained
from diffode import grid as grids
from diffode.data import to_pixels
from diffode.errors import InputError
from diffode.files import atomic
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.schedule import Schedule
from experiments import draw, generate, jobs, quality, reference, rows
from experiments import features as known
from experiments.markdown import provenance, table
from experiments.quality import Number
from experiments.script import Script, typed
from experiments.truth import Truth
from solvers import sample

ETAS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{eta:.1f}": ("ddim", {"eta": eta}) for eta in (0.0, 0.2, 0.5, 1.0)},
    "sigma-hat": ("ddpm", {"variance": "large"}),
}
STEPS = (10, 20, 50, 100, 1000)
POOLED = 2  # pixels a side that a mixture's images are averaged over
BLOCK = 250  # samples at a time
SHOWN, CELL, GAP, LINE = (
    10,
    170,
    10,
    20,
)  # samples of each cell in the picture, its width, and pixels between cells and above rows
TOLD = {  # of the numbers of a cell, what the report shows, and its digits
    "frechet": ("Fréchet distance in the features of {features}", 3),
    "frechet unbiased": ("The same without its bias of 1/N, by the jackknife, as columns of different N are to be compared", 3),
    "own label": ("Share of samples that the classifier gives their own label", 3),
    "moments": ("Fréchet distance of the first two moments of the pixels from the exact ones", 3),
    "components": ("Total variation between the components' shares and their weights", 4),
}
Key = tuple[str, int]  # η and S


@dataclass(frozen=True)
class Preset:
    """How a table is made unless it is told otherwise. tau: the paper's for the data set (appendix D.2); n: samples a cell, each
    from an S on: ((1, 1000), (100, 500)) is 1,000, and 500 from S = 100."""

    tau: str
    n: tuple[tuple[int, int], ...]
    features: str = ""
    dtype: str = "float32"


PRESETS = {
    "fashion": Preset("linear", ((1, 2_000), (50, 1_000), (1000, 500)), "classifier", "bfloat16"),
    "mixture": Preset("linear", ((1, 10_000),)),
    "cifar10": Preset("quadratic", ((1, 50_000),), "inception"),
    "celeba": Preset("linear", ((1, 50_000),), "inception"),
}


@dataclass(frozen=True)
class Subject:
    """What is sampled, and how it is judged. measure(cell, seeds): the numbers of a cell; pixels(cell, n): its first n as images;
    about: what decides all of them."""

    measure: Callable[[Mapping[str, Any], list[int]], dict[str, Number]]
    pixels: Callable[[Mapping[str, Any], int], images.Pixels]
    about: dict[str, Any]


def labels(tau: str, schedule: Schedule, steps: int) -> list[float]:
    """The λ of τ; with as many steps as there are labels it is all of them, whatever the rule."""
    rule = "linear" if schedule.knots is not None and steps == len(schedule.knots) else tau
    return grids.tau(f"tau-{rule}", schedule, steps)[:-1].tolist()


def of_mixture(loaded: pretrained.Pretrained, tau: str) -> Subject:
    """An exact mixture, pooled."""
    assert isinstance(loaded.model.network, Mixture)
    small = loaded.model.network.pooled(POOLED)
    small.rows = BLOCK  # larger matrix products than those for single samples
    model = EpsModel(small, loaded.model.schedule, loaded.model.predicts, clock=loaded.model.clock)
    truth = Truth(small)

    def drawn(cell: Mapping[str, Any], seeds: list[int]) -> torch.Tensor:
        solver, options = ETAS[cell["eta"]]
        how = {"solver": solver, "grid": labels(tau, model.schedule, cell["S"]), "denoise": True, **options}
        blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
        return torch.cat([sample(model, shape=(len(block), *small.image), seed=block, **how).x for block in blocks])

    floor = truth.measure(small.sample(10_000, seed=2))
    return Subject(
        lambda cell, seeds: truth.measure(drawn(cell, seeds)),
        lambda cell, n: to_pixels(drawn(cell, list(range(n)))),
        {"pooled": POOLED, "floor": "10,000 exact samples", **_flat(floor, "floor ")},
    )


def of_network(
    loaded: pretrained.Pretrained, name: str, preset: Preset, reference_of: Path | None, device: str, folder: Path
) -> Subject:
    """A network, whose samples are kept in `folder`, compared with real images: those of a path, or the shipped statistics."""
    if reference_of is None and preset.features != "classifier":
        raise InputError("give --reference, the real images (a folder or an .npz) that samples are compared with")
    features = known.load(preset.features, device)
    if reference_of is None:
        real = quality.load(features)
    else:
        real = quality.published(reference_of, features) or quality.describe(data.load(reference_of), features)

    def made(cell: Mapping[str, Any], seeds: list[int]) -> data.ImageSet:
        solver, options = ETAS[cell["eta"]]
        job = jobs.make_job(
            loaded,
            name,
            solver,
            grid=labels(preset.tau, loaded.model.schedule, cell["S"]),
            denoise=True,
            options=options,
            seeds=seeds,
            labels=jobs.choose_labels(None, loaded.classes, seeds),
            batch=BLOCK,
            dtype=preset.dtype,
            device=device,
        )
        file = folder / f"eta-{cell['eta']}-S-{cell['S']}" / f"{seeds[0]}-{seeds[-1]}.npz"
        if not file.exists():
            generate.generate(job, loaded, file)
        elif not _is_of(file, job):
            raise InputError(f"{file} holds samples of another model or setting: give --out another name, or remove it")
        return data.load(file)

    def measure(cell: Mapping[str, Any], seeds: list[int]) -> dict[str, Number]:
        blocks = [made(cell, seeds[start : start + BLOCK]) for start in range(0, len(seeds), BLOCK)]
        drawn_with = None if blocks[0].labels is None else np.concatenate([block.labels for block in blocks])
        pixels = np.concatenate([block.pixels for block in blocks])
        return quality.measure(pixels, drawn_with, features=features, reference=real)

    about: dict[str, Any] = {
        "dtype": preset.dtype,
        "features": f"{features.name} {features.identity[:12]}",
        "reference": dict(real.data),
    }
    if features.name == "classifier" and data.FASHION_MNIST.is_dir():
        test = data.load(split="test")
        floor = quality.measure(test.pixels, test.labels, features=features, reference=real)
        about |= {"floor": "the 10,000 test images", **_flat(floor, "floor ")}
    return Subject(measure, lambda cell, n: made(cell, list(range(BLOCK))).pixels[:n], about)


def _is_of(file: Path, job: jobs.Job) -> bool:
    """Whether the card beside samples is that of this job."""
    try:
        card = json.loads(file.with_name(f"{file.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(card.get(name) == value for name, value in checkpoint.as_json(asdict(job)).items())


def _flat(numbers: Mapping[str, Number], prefix: str = "") -> dict[str, float]:
    """name: value, and name ±: its standard error, six digits each."""
    pairs = ((f"{prefix}{name}{mark}", value) for name, n in numbers.items() for mark, value in (("", n.value), (" ±", n.error)))
    return {name: float(f"{value:.6g}") for name, value in pairs}


def picture(pixels: Mapping[Key, images.Pixels]) -> Image.Image:
    """The first samples of every cell, from the same seeds: rows are η, columns S."""
    sheets = {key: images.grid(some, columns=SHOWN // 2, width=CELL) for key, some in pixels.items()}
    etas, steps = (list(dict.fromkeys(column)) for column in zip(*sheets, strict=True))
    width, height = (side + GAP for side in next(iter(sheets.values())).size)
    whole = Image.new("RGB", (width * len(steps), (height + LINE) * len(etas)), "white")
    for (eta, s), sheet in sheets.items():
        whole.paste(sheet, (width * steps.index(s), (height + LINE) * etas.index(eta) + LINE))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for row, eta in enumerate(etas):  # the font has no Greek
        name = eta if eta == "sigma-hat" else f"eta = {eta}"
        pen.text((0, (height + LINE) * row + LINE / 2), name, "black", font, anchor="lm")
    return draw.headed(whole, [f"S = {s}" for s in steps])


def report(out: Path) -> str:
    """A table of η against S for each number that says most, the paper's beside them, and what made them."""
    about, found = rows.read(out)
    cells = {(row["eta"], row["S"]): row for row in sorted(found, key=lambda row: row["n"]) if "error" not in row}
    steps = sorted({s for _, s in cells})
    paper = {
        (row["eta"], int(row["S"])): row["fid"] for row in reference.table("ddim_table1") if row["dataset"] == about["paper"]
    }
    sizes = ", ".join(f"{max(row['n'] for (_, at), row in cells.items() if at == s):,} (S = {s})" for s in steps)
    parts = [f"Samples a cell: {sizes}. τ is {about['tau']}, ends at α = 1; S evaluations an image; ± is 1.96 standard errors."]
    for name, (title, digits) in TOLD.items():
        if any(name in row for row in cells.values()):

            def shown(row: Mapping[str, Any], name: str = name, digits: int = digits) -> str:
                return f"{row[name]:.{digits}f} ± {1.96 * row[f'{name} ±']:.{digits}f}"

            lines = [[_eta(eta), *(shown(cells[eta, s]) if (eta, s) in cells else "" for s in steps)] for eta in ETAS]
            floor = {key.removeprefix("floor "): value for key, value in about.items() if key.startswith("floor ")}
            beside = f" ({about['floor']}: {shown(floor)})" if floor else ""
            parts.append(f"{title.format(**about)}{beside}:\n\n{table(_head(steps), lines)}")
    lines = [[_eta(eta), *(paper.get((eta, s), "") for s in steps)] for eta in ETAS]
    parts.append(f"The paper's, FID of {about['paper']}:\n\n{table(_head(steps), lines)}")
    return "\n\n".join([*parts, _order(cells), provenance(about)])


def _order(cells: Mapping[Key, Mapping[str, Any]]) -> str:
    """What the first distance of the cells says at the fewest and at the most steps."""
    name = next(name for name in TOLD if any(name in row for row in cells.values()))
    sentences = []
    for s in (min(s for _, s in cells), max(s for _, s in cells)):
        ranked = sorted((row[name], eta) for (eta, at), row in cells.items() if at == s)
        (best, first), (worst, last) = ranked[0], ranked[-1]
        sentences.append(f"At S = {s} the best is {_eta(first)}, and {_eta(last)} is {worst / best:.3g} times as far.")
    return " ".join(sentences)


def _eta(name: str) -> str:
    return "σ̂" if name == "sigma-hat" else f"η = {name}"


def _head(steps: Sequence[int]) -> list[str]:
    return ["", *(f"S = {s}" for s in steps)]


def _numbers(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a comma-separated list of whole numbers") from None


@click.command(cls=Script)
@click.option("--preset", default="fashion", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--weights", metavar="FILE|NAME", help="The network of the preset. [default: the one that comes with diffode]")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="Real images, or an .npz of mu and sigma. [default: the shipped]"
)
@click.option("--features", type=click.Choice(list(known.FEATURES)), help="What images are compared in. [default: the preset's]")
@click.option("--tau", type=click.Choice(["linear", "quadratic"]), help="The rule of τ. [default: the preset's]")
@click.option("--n", type=click.IntRange(quality.FEWEST), help="Samples a cell. [default: the preset's]")
@click.option("--steps", default=",".join(map(str, STEPS)), show_default=True, callback=_numbers, help="S, comma-separated.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The first seed.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
@click.option("--out", type=click.Path(path_type=Path), help="OUT.csv, .json and .png. [default: results/ddim_table_PRESET]")
@click.option("--overwrite", is_flag=True, help="Begin anew where a table is of other settings.")
@click.option("--fast", is_flag=True, help="Only to see that it runs: 40 samples a cell, S = 10 and 20.")
def main(preset: str, weights: str | None, out: Path | None, **o: Any) -> None:
    """Judge samples for each η and number of steps S, as Table 1 of the DDIM paper."""
    wanted = {name: o[name] for name in ("features", "tau") if o[name] is not None}
    wanted |= {"n": ((1, 40 if o["fast"] else o["n"]),)} if o["fast"] or o["n"] else {}
    chosen = replace(PRESETS[preset], **wanted)
    out = out or Path("results") / f"ddim_table_{preset}"
    name = weights if preset in pretrained.names() and weights else preset if weights is None else f"{preset}:{weights}"
    published = pretrained.PRESETS.get(preset, pretrained.PRESETS["cifar10"])
    loaded, device = pretrained.load(name), jobs.choose_device(o["device"])
    if loaded.card["kind"] == "mixture":
        subject = of_mixture(loaded, chosen.tau)
    else:
        subject = of_network(loaded, name, chosen, o["reference"], device, out.with_name(f"{out.name}-samples"))
    steps = (10, 20) if o["fast"] else o["steps"]
    cells = [{"S": s, "eta": eta, "n": [n for least, n in chosen.n if s >= least][-1]} for s in steps for eta in ETAS]
    about = {
        "model": name,
        "sha256": loaded.sha256,
        "tau": chosen.tau,
        "seed": o["seed"],
        "paper": published.table,
        "end": "sigma = 0, to which the last step adds no noise",
        "nfe rule": "evaluations an image, one a label of tau",
    }

    def compute(cell: Mapping[str, Any]) -> dict[str, float]:
        seeds = list(range(o["seed"], o["seed"] + cell["n"]))
        return {"nfe": len(labels(chosen.tau, loaded.model.schedule, cell["S"])), **_flat(subject.measure(cell, seeds))}

    made = rows.fill(
        out, cells, compute, about={**about, **subject.about}, command=typed("experiments.ddim_table"), overwrite=o["overwrite"]
    )
    pixels = {(row["eta"], row["S"]): subject.pixels(row, SHOWN) for row in made if "error" not in row}
    if pixels:
        with atomic(out.with_suffix(".png")) as part:
            picture(dict(sorted(pixels.items(), key=lambda item: list(ETAS).index(item[0][0])))).save(part, format="PNG")
    rows.finish(made, out)


if __name__ == "__main__":
    main()
