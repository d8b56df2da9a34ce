"""A training run in a folder: state.safetensors (to resume), ema.safetensors and .json (to sample from), log.csv, samples.png.

The state is written first: where it is, the other files are the run's own, and they follow from it.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import FrameType

from diffode.errors import InputError
from diffode.files import atomic, clear_dead, folder_for, locked, write_json
from diffode.images import datasets, writers
from diffode.images.datasets import ImageSet, to_pixels
from diffode.models import checkpoint
from diffode.networks.unet import UNetConfig
from experiments.common import interrupts
from experiments.common.destinations import refuse_existing, require_name
from experiments.common.progress import announce, duration, progress
from experiments.common.terminal import say
from experiments.sampling.recipe import choose_device
from experiments.training.trainer import TrainConfig, Trainer
from experiments.training.trainer import train as advance
from solvers import sample

FILES = ("ema.json", "log.csv", "samples.png", "ema.safetensors")  # in the order in which they are written, after the state
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
    """Train until `images` are seen, saving after every `every` images; Ctrl-C saves and stops. command: for the card.

    InputError for a folder with files of another run, or with some that are of none.
    """
    out, images = options.out, options.images
    require_name(out, "runs/mine")
    state = out / "state.safetensors"
    if state.exists() and not options.resume:
        raise InputError(f"{out} holds a run: resume it, or choose another folder (out)")
    refuse_existing([state, *(out / name for name in FILES)], overwrite=options.resume, remedy="")
    with folder_for(state), locked(out / ".lock", f"training in {out}"):
        clear_dead(out)
        data = datasets.load(options.data_dir)
        trainer = Trainer(options.config(data), data, choose_device(options.device))
        if options.resume:
            trainer.load(state)
            if is_behind(out, trainer):
                save_results(trainer, out, command)
        with _interrupts() as interrupted, progress(images, out.name, "images", trainer.images) as bar:
            first = trainer.step
            began = time.monotonic()

            def on_step(loss: float) -> None:
                if trainer.step == first + 1:
                    announce_steps(out.name, images - trainer.images, options.batch, time.monotonic() - began)
                bar.set_postfix_str(f"L_simple {loss:.4f}", refresh=False)
                bar.update(trainer.images - bar.n)

            def on_save() -> None:
                trainer.save(state)
                save_results(trainer, out, command)

            advance(trainer, images, options.every, interrupted, on_step, on_save)
    end = "interrupted; --resume goes on" if interrupted() else "done"
    loss = f", L_simple {trainer.log[-1]['l_simple']:.4f}" if trainer.log else ""
    say(f"{trainer.images} images seen{loss}, {end}: {out}")


def announce_steps(name: str, images: int, batch: int, seconds: float) -> None:
    """Say how long so many images will take, a step having taken so many seconds."""
    if images > 0:
        steps = math.ceil(images / batch)
        announce(f"{name}: {steps:,} more steps, about {duration(steps * seconds)} by the first, which took {duration(seconds)}")


def is_behind(out: Path, trainer: Trainer) -> bool:
    """Whether the last of the files that follow from the state is missing, or of an earlier one: a run was killed before it."""
    try:
        return checkpoint.read(out / FILES[-1], "unet")[1].get("images_seen") != trainer.images
    except InputError:
        return True


def save_results(trainer: Trainer, out: Path, command: str) -> None:
    """Write the files that follow from the state, each atomically, in the order of FILES."""
    card = trainer.card(l_simple=trainer.log[-1]["l_simple"], command=command, date=date.today().isoformat())
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
    checkpoint.save(out / "ema.safetensors", trainer.ema.state_dict(), card)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise InputError(f"{text!r} is not a comma-separated list of whole numbers") from None


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """A function that says whether a signal to end came: the step under way is finished and saved first; a second ends it."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            raise interrupts.Interrupt(number)
        came.append(number)

    with interrupts.handled(handle):
        yield lambda: bool(came)
