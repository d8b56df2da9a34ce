"""Fit the shipped mixture:

    python -m experiments.training.fit_mixture --out diffode/assets/weights/mixture.safetensors --overwrite

Three components of rank 24 for each class of Fashion-MNIST, by EM (diffode.mixture.fit); about a minute on two cores.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import click

from diffode import mixture
from diffode.errors import InputError
from diffode.files import write_json
from diffode.images import datasets
from diffode.models import checkpoint
from diffode.models.card import Card
from experiments.common.commands import Script, command_line
from experiments.common.destinations import refuse_existing
from experiments.common.options import SEED, FileName, OutputName
from experiments.common.terminal import say


@click.command(cls=Script, resumable=False)
@click.option("--data-dir", type=FileName(str), help="Images. [default: Fashion-MNIST from Debian's package]")
@click.option("--out", default="mixture.safetensors", show_default=True, type=OutputName())
@click.option("--per-class", default=3, show_default=True, type=click.IntRange(1), help="Components of each class.")
@click.option("--rank", default=24, show_default=True, type=click.IntRange(1), help="Of the covariance of a component.")
@click.option("--iterations", default=10, show_default=True, type=click.IntRange(1), help="Of EM.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(data_dir: str | None, out: Path, per_class: int, rank: int, iterations: int, seed: int, overwrite: bool) -> None:
    """Fit a mixture of low-rank Gaussians to images and write it as a checkpoint, and its card beside it as .json."""
    if out.suffix != ".safetensors":
        raise InputError(f"a checkpoint is a .safetensors file, not {str(out)!r}: give `out` a name that ends so")
    refuse_existing([out, out.with_suffix(".json")], overwrite=overwrite)
    images = datasets.load(data_dir)
    how = {"per_class": per_class, "rank": rank, "iterations": iterations, "seed": seed}
    tensors = mixture.fit(datasets.to_tensor(images.pixels), images.labels, **how)
    provenance = {
        "data": images.identity,
        "command": command_line(),
        "date": date.today().isoformat(),
    }
    card = Card(
        "mixture", images.shape, images.label_names, "ddpm_linear", predicts="velocity", clock="lam", provenance=provenance
    )
    checkpoint.save(out, tensors, card)
    write_json(out.with_suffix(".json"), card.to_json())
    say(f"{len(tensors['label'])} components of rank {rank} from {len(images.pixels)} images of {images.name}: {out}")


if __name__ == "__main__":
    main()
