"""A training run in a folder: state.safetensors (to resume), ema.safetensors and .json (to sample from), log.csv, samples.png."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffode.errors import InputError
from diffode.files import atomic, folder_for, locked, write_json
from diffode.images import datasets, writers
from diffode.images.datasets import ImageSet, to_pixels
from diffode.models import checkpoint
from diffode.networks.unet import UNetConfig
from experiments.common import interrupts
from experiments.common.terminal import say
from experiments.sampling.recipe import choose_device
from experiments.training.trainer import TrainConfig, Trainer
from experiments.training.trainer import train as advance
from solvers import sample

SAMPLES, COLUMNS = 40, 10


@dataclass(frozen=True)
class TrainOptions:
    """What `cli.py train` asks for: where the run is and how long it lasts, the data, the network, and what decides its weights.

    images: to be seen in all; every: images between two savings. multipliers, attention: comma-separated, as in UNetConfig.
    """

    out: Path
    resume: bool
    images: int
    every: int
    data_dir: str | None
    device: str
    width: int
    multipliers: str
    blocks: int
    attention: str
    patch: int
    schedule: str
    predicts: str
    gamma: str
    batch: int
    lr: float
    drop_label: float
    seed: int
    bf16: bool

    def config(self, data: ImageSet) -> TrainConfig:
        """The configuration for these images; InputError for settings that cannot be."""
        unet = UNetConfig(
            data.shape,
            len(data.label_names),
            width=self.width,
            multipliers=_numbers(self.multipliers),
            blocks=self.blocks,
            attention=_numbers(self.attention),
            patch=self.patch,
        )
        names = ("schedule", "predicts", "gamma", "batch", "lr", "drop_label", "seed", "bf16")
        return TrainConfig(unet, **{name: getattr(self, name) for name in names})


def train(options: TrainOptions, command: str) -> None:
    """Train until `images` are seen, saving after every `every` images; Ctrl-C saves and stops. command: for the card."""
    data, images, out = datasets.load(options.data_dir), options.images, options.out
    trainer = Trainer(options.config(data), data, choose_device(options.device))
    state = out / "state.safetensors"
    if state.exists() and not options.resume:
        raise InputError(f"{out} holds a run: resume it, or choose another folder (out)")
    if options.resume:
        trainer.load(state)
    with (
        folder_for(out / "state"),
        locked(out / ".lock", f"training in {out}"),
        _interrupts() as interrupted,
        tqdm(total=images, initial=trainer.images, unit="img", disable=None) as bar,
    ):

        def on_step(loss: float) -> None:
            bar.set_postfix_str(f"L_simple {loss:.4f}", refresh=False)
            bar.update(trainer.images - bar.n)

        def on_save() -> None:
            save(trainer, out, command)

        advance(trainer, images, options.every, interrupted, on_step, on_save)
    end = "interrupted; --resume goes on" if interrupted() else "done"
    loss = f", L_simple {trainer.log[-1]['l_simple']:.4f}" if trainer.log else ""
    say(f"{trainer.images} images seen{loss}, {end}: {out}")


def save(trainer: Trainer, out: Path, command: str) -> None:
    """Write the run's files, each atomically, and the state last, so that it never is ahead of the others."""
    card = trainer.card(l_simple=trainer.log[-1]["l_simple"], command=command, date=date.today().isoformat())
    checkpoint.save(out / "ema.safetensors", trainer.ema.state_dict(), card)
    write_json(out / "ema.json", card.to_json())
    with atomic(out / "log.csv") as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(trainer.log[-1]))
        writer.writeheader()
        writer.writerows(trainer.log)
    classes = trainer.config.unet.classes
    model = trainer.model.labelled([seed % classes for seed in range(SAMPLES)]) if classes else trainer.model
    result = sample(model, solver="dpmpp2m", nfe=20, shape=(SAMPLES, *trainer.config.unet.image))
    with atomic(out / "samples.png") as part:
        writers.save_grid(part, to_pixels(result.x), range(SAMPLES), None, columns=COLUMNS)
    trainer.save(out / "state.safetensors")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise InputError(f"{text!r} is not a comma-separated list of whole numbers") from None


@contextmanager
def _interrupts() -> Iterator[Any]:
    """A function that says whether a signal to end came; the step under way is finished and saved first."""
    came: list[int] = []
    with interrupts.handled(lambda number, frame: came.append(number)):
        yield lambda: bool(came)
