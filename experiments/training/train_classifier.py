"""Train the classifier that judges samples: python -m experiments.training.train_classifier

Cross-entropy with smoothed labels on images that are mirrored and shifted at random; SGD with Nesterov's momentum, whose rate
rises linearly over three tenths of the steps and falls linearly to zero over the rest (Smith and Topin, 2018). What an epoch sees
is a pure function of the seed and its number, so a run that was killed resumes after its last whole epoch, to the same bits.

Beside the weights, classifier.safetensors, the statistics of the training images in its features are written
(metrics/references.py), since neither is of use without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.files import clear_dead, folder_for, locked, write_json
from diffode.images import datasets
from diffode.images.datasets import ImageSet, to_tensor
from diffode.models import checkpoint
from diffode.models.card import Card
from diffode.models.classifiers import REFERENCE
from diffode.networks.classifier import Classifier
from experiments.common import script_options
from experiments.common.commands import Script, command_line
from experiments.common.destinations import refuse_existing, require_name
from experiments.common.options import SEED, FileName, OutputName
from experiments.common.progress import progress
from experiments.common.terminal import say
from experiments.metrics import features, references
from experiments.sampling.recipe import choose_device
from experiments.training import state

FILES = ("classifier.safetensors", "classifier.json", "fashion-train.safetensors", "fashion-train.json")
STATE = "classifier-training"  # the kind of the file that is resumed from
RISE = 0.3  # of the steps, in which the learning rate rises


@dataclass(frozen=True)
class Config:
    """What decides the weights, but for the images. shift: the most pixels by which an image is moved in each direction."""

    epochs: int = 12
    batch: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    shift: int = 2
    seed: int = 0
    bf16: bool = True


def batches(images: Tensor, labels: Tensor, config: Config, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole batches of an epoch: the images in the order of that epoch, half of them mirrored, each batch shifted as one."""
    rng = np.random.default_rng([config.seed, epoch])
    order, half = torch.from_numpy(rng.permutation(len(images))), torch.from_numpy(rng.random(len(images)) < 0.5)
    mirrored = half.to(images.device)
    for chosen in order.split(config.batch)[: len(images) // config.batch]:
        x = torch.where(mirrored[chosen, None, None, None], images[chosen].flip(3), images[chosen])
        shift = rng.integers(-config.shift, config.shift + 1, 2).tolist()
        yield x.roll(shift, (2, 3)), labels[chosen]


def fit(images: ImageSet, config: Config, file: Path, device: str, on_step: Callable[[int, int, float], None]) -> Classifier:
    """Train on labelled images, resuming from the state in `file` if it exists and writing it after every epoch.

    on_step(epoch, step, loss) is called after every step. InputError if the state is of another configuration or other images.
    """
    assert images.labels is not None
    if len(images.pixels) < config.batch:
        raise InputError(f"{images.name} has {len(images.pixels)} images, fewer than a batch of {config.batch}: train on more")
    x, y = to_tensor(images.pixels).to(device), torch.from_numpy(images.labels).to(device)
    with torch.random.fork_rng(devices=[]):  # torch's initialisers know no generator but the global one
        torch.manual_seed(config.seed)
        network = Classifier(images.shape[0], len(images.label_names)).to(device)
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)  # faster on a CPU
    optimizer = torch.optim.SGD(
        network.parameters(), config.lr, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
    )
    first = _resume(file, network, optimizer, config, images) if file.exists() else 0
    each = len(x) // config.batch
    total = config.epochs * each
    network.train()
    for epoch in range(first, config.epochs):
        for i, (image, label) in enumerate(batches(x, y, config, epoch)):
            step = epoch * each + i
            optimizer.param_groups[0]["lr"] = config.lr * min((step + 1) / (RISE * total), (total - step) / ((1 - RISE) * total))
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                logits = network(image.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, label, label_smoothing=config.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            on_step(epoch, i, float(loss.detach()))
        momentum = {name: optimizer.state[tensor]["momentum_buffer"] for name, tensor in network.named_parameters()}
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in momentum.items()}
        state.save(file, STATE, tensors, {**_identity(config, images), "epochs": epoch + 1})
    return network.eval()


def _identity(config: Config, images: ImageSet) -> dict[str, Any]:
    return {"config": asdict(config), "data": images.identity}


def _resume(file: Path, network: Classifier, optimizer: torch.optim.Optimizer, config: Config, images: ImageSet) -> int:
    """Load network and optimiser from a file; returns how many epochs they have seen."""
    tensors, where = state.read(file, STATE, {"config": dict, "data": dict, "epochs": int})
    if any(where[name] != value for name, value in _identity(config, images).items()) or where["epochs"] > config.epochs:
        raise InputError(f"{file} is of a run with other settings or images: remove it, or choose another folder (out)")
    momentum = {f"momentum.{name}": tensor for name, tensor in network.named_parameters()}
    state.require_like(file, tensors, momentum | {f"network.{name}": tensor for name, tensor in network.state_dict().items()})
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    for name, tensor in network.named_parameters():  # in the layout of the tensor, so that the sums are the same
        optimizer.state[tensor]["momentum_buffer"] = torch.empty_like(tensor).copy_(tensors[f"momentum.{name}"]).detach()
    return where["epochs"]


@torch.no_grad()
def accuracy(network: Classifier, images: ImageSet, device: str) -> tuple[float, dict[str, float]]:
    """The share of images to which the network gives their label, of all and of each class."""
    assert images.labels is not None
    predicted = torch.cat([network(part.to(device)).argmax(1).cpu() for part in to_tensor(images.pixels).split(500)]).numpy()
    right = predicted == images.labels
    return float(right.mean()), {
        name: float(right[images.labels == label].mean()) for label, name in enumerate(images.label_names)
    }


def two_sets(data_dir: str | None, fast: bool) -> tuple[ImageSet, ImageSet]:
    """Images to train on and to test on, labelled; for a fast run parts of the packaged ones."""
    if fast:
        few = datasets.packaged()
        assert few.labels is not None
        parts = {"first 600": slice(600), "last 400": slice(600, None)}
        train, test = (ImageSet(f"{few.name}, {part}", few.pixels[at], few.labels[at], few.classes) for part, at in parts.items())
        return train, test
    train, test = datasets.load(data_dir), datasets.load(data_dir, "test")
    if train.labels is None or test.labels is None:
        raise InputError(f"{train.name} has no labels: a classifier is trained on idx files of images and labels")
    return train, test


@click.command(cls=Script)
@click.option("--out", type=OutputName(), help="A folder. [default: diffode/assets/reference; --fast: results/classifier]")
@click.option("--data-dir", type=FileName(str), help="A folder of idx files. [default: Fashion-MNIST from Debian's package]")
@click.option("--epochs", default=Config.epochs, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=Config.seed, show_default=True, type=SEED)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps")
@script_options.fast("one epoch on 600 images")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(out: Path | None, data_dir: str | None, epochs: int, seed: int, device: str, fast: bool, overwrite: bool) -> None:
    """Train the classifier, and write the statistics of its training images. Interrupted, the same command resumes."""
    out = out or (Path("results/classifier") if fast else REFERENCE)
    file = out / ".state.safetensors"
    require_name(out, "runs/classifier")
    refuse_existing((out / name for name in FILES), overwrite=overwrite or file.exists())
    device, command = choose_device(device), command_line()
    config = Config(epochs=1, batch=50, seed=seed) if fast else Config(epochs=epochs, seed=seed)
    train, test = two_sets(data_dir, fast)
    with folder_for(file), locked(out / ".lock", f"training in {out}"), progress(config.epochs, out.name, "epochs") as bar:
        clear_dead(out)

        def on_step(epoch: int, step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(round(epoch + (step + 1) / (len(train.pixels) // config.batch), 2) - bar.n)

        network = fit(train, config, file, device, on_step)
        right, by_class = accuracy(network, test, device)
        provenance = {
            "training": asdict(config),
            "data": train.identity,
            "test_data": test.identity,
            "command": command,
            "date": date.today().isoformat(),
            "test_accuracy": right,
            "test_accuracy_by_class": by_class,
        }
        shape = {"channels": train.shape[0], "classes": len(train.label_names)}
        card = Card("classifier", train.shape, train.label_names, config=shape, provenance=provenance)
        checkpoint.save(out / FILES[0], network.state_dict(), card)
        write_json(out / FILES[1], card.to_json())
        statistics = references.describe(train, features.classifier(device, out / FILES[0]))
        references.save(out / FILES[2], statistics, command=command)
        file.unlink()
    say(f"{100 * right:.2f} % of {len(test.pixels)} images of {test.name} are given their label: {out}")


if __name__ == "__main__":
    main()
