"""Training: L_γ of the DDIM paper (Song et al., 2021a, Eq. 5), the EMA of the weights, and exact resume.

    L_γ = E γ_t ‖ε_θ(α_t x0 + σ_t ε, t) − ε‖²,    t uniform on the clock, ε ~ N(0, I)

`gamma="simple"` is γ = 1, the L_simple of DDPM (Ho et al., 2020, Eq. 14). Where the network predicts something else than ε, its
error reaches ε̂ with the factor b of `prediction.convert` (for velocity on vp, b = α), so γ = 1 hardly trains it where α is small;
`gamma="native"` is γ = 1/b², the plain squared error of what the network predicts. For EDM's F that is the loss of Karras et al.
(2022), whose distribution of noise levels stream.py has.

A step is a pure function of the weights, the seed and its number (stream.py), so a run that was killed resumes from its
checkpoint and ends with the same bits. The learning rate and the EMA need no horizon (lr ~ 1/√images, Karras et al., 2024;
half-life 5 % of the images seen, Karras et al., 2022), so a finished run can be resumed with more images, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.errors import InputError, shown
from diffode.files import as_json
from diffode.images.datasets import ImageSet
from diffode.model import EpsModel
from diffode.models.card import Card
from diffode.networks.unet import UNet, UNetConfig
from diffode.schedule import Schedule
from diffode.schedules import SCHEDULES
from experiments.training import state
from experiments.training.stream import Batch, Stream

GAMMAS = ("simple", "native")


@dataclass(frozen=True)
class TrainConfig:
    """What decides the weights, but for the data and the number of images. lr falls as 1/√images after `lr_images`."""

    unet: UNetConfig
    schedule: str = "ddpm_linear"
    predicts: str = "velocity"
    gamma: str = "simple"
    batch: int = 128
    lr: float = 1e-3
    lr_images: int = 300_000
    warmup: int = 20_000
    drop_label: float = 0.1
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        prediction.check(self.predicts)
        if self.gamma not in GAMMAS:
            raise InputError(f"unknown gamma {self.gamma!r}: expected one of {', '.join(GAMMAS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if SCHEDULES[self.schedule]().path.name == "ve" and prediction.find(self.predicts).scale is None:
            raise InputError(
                f"the U-Net is fed x itself, which on {self.schedule} grows to "
                f'{SCHEDULES[self.schedule]().t_noisy:g}: train with predicts="edm", which scales it, or on another schedule'
            )
        if self.batch < 1 or not 0 < self.lr < 1 or not 0 <= self.drop_label <= 1:
            raise InputError(
                f"expected batch ≥ 1, 0 < lr < 1 and 0 ≤ drop_label ≤ 1, not {self.batch}, {self.lr:g} and {self.drop_label:g}"
            )


def losses(network: torch.nn.Module, batch: Batch, schedule: Schedule, predicts: str) -> tuple[Tensor, Tensor]:
    """(‖ε_θ − ε‖², ‖m_θ − m‖²) per sample, means over its pixels, each (batch,); m is what the network predicts."""
    alpha, sigma = schedule.alpha(batch.lam), schedule.sigma(batch.lam)
    pairs = [prediction.find(predicts).pair(a, s) for a, s in zip(alpha, sigma, strict=True)]
    b = [prediction.convert(predicts, "noise", a, s)[1] for a, s in zip(alpha, sigma, strict=True)]
    device = batch.x0.device

    def column(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32).to(device)[:, None, None, None]

    x = column(alpha) * batch.x0 + column(sigma) * batch.eps
    x = column(prediction.input_scale(predicts, alpha, sigma)) * x
    target = column([p0 for p0, _ in pairs]) * batch.x0 + column([p1 for _, p1 in pairs]) * batch.eps
    native = (network(x, column(batch.lam).flatten(), batch.y).float() - target).square().mean((1, 2, 3))
    return column(b).flatten().square() * native, native


class Trainer:
    """The state of a run: weights, EMA, optimiser, images seen, and the log; `advance` takes one step."""

    def __init__(self, config: TrainConfig, data: ImageSet, device: str = "cpu") -> None:
        if data.shape != config.unet.image:
            raise InputError(
                f"{data.name} has images {data.shape} where the network is made for {config.unet.image} (channels, height, width)"
            )
        if data.labels is not None and data.labels.max() >= config.unet.classes:
            raise InputError(
                f"{data.name} has label {data.labels.max()} where the network is made for {config.unet.classes} classes"
            )
        self.config, self.data, self.device = config, data, device
        self.schedule = SCHEDULES[config.schedule]()
        self.stream = Stream(data, self.schedule, config.batch, config.seed, config.drop_label, no_label=config.unet.classes)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers know no generator but the global one
            torch.manual_seed(config.seed)
            self.network = UNet(config.unet).to(device)
        self.ema = UNet(config.unet).to(device).requires_grad_(False)
        self.ema.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.step = 0
        self.log: list[dict[str, float]] = []

    @property
    def images(self) -> int:
        """Training images seen."""
        return self.step * self.config.batch

    def advance(self) -> float:
        """One step of AdamW on the next batch, then of the EMA; the batch's L_simple."""
        config = self.config
        batch = self.stream(self.step).to(self.device)
        seen = self.images + config.batch
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, seen / config.warmup) / max(1.0, seen / config.lr_images) ** 0.5
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=config.bf16):
            simple, native = losses(self.network, batch, self.schedule, config.predicts)
        loss = (simple if config.gamma == "simple" else native).mean()
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} at step {self.step}: resume from the last checkpoint with a smaller lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = 0.5 ** (config.batch / (0.05 * self.images))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - decay)
        return float(simple.detach().mean())

    @torch.no_grad()
    def validate(self, data: ImageSet) -> dict[str, float]:
        """L_simple and the native loss of the EMA weights on `data`, in float32, with a fixed noise and t for each image."""
        config = self.config
        size = min(250, len(data.pixels))
        stream = Stream(data, self.schedule, size, seed=2**31, drop_label=0.0, no_label=config.unet.classes)
        batches = [stream(i).to(self.device) for i in range(len(data.pixels) // size)]
        pairs = [losses(self.ema, batch, self.schedule, config.predicts) for batch in batches]
        return {
            name: float(torch.cat(values).mean())
            for name, values in zip(("l_simple", "l_native"), zip(*pairs, strict=True), strict=True)
        }

    @property
    def model(self) -> EpsModel:
        """The EMA weights as an EpsModel."""
        unet, predicts = self.config.unet, self.config.predicts
        return EpsModel(self.ema, self.schedule, predicts, clock="lam", classes=unet.classes, shape=unet.image)

    def card(self, **provenance: Any) -> Card:
        """The card of the EMA weights; provenance: what is to be said beside the training's settings, data and images seen."""
        config = asdict(self.config)
        unet = config.pop("unet")
        training = {name: value for name, value in config.items() if name not in ("schedule", "predicts")}
        known = {"training": training, "data": self.data.identity, "images_seen": self.images}
        return Card.of(self.model, "unet", self.data.label_names, unet, **known, **provenance)

    def save(self, path: Path) -> None:
        """Write all that is needed to resume, atomically."""
        optimizer = self.optimizer.state_dict()["state"]
        tensors = self._weights() | {f"optimizer.{i}.{name}": each for i in optimizer for name, each in optimizer[i].items()}
        where = {"config": asdict(self.config), "data": self.data.identity, "step": self.step, "log": self.log}
        state.save(path, "training", tensors, where)

    def load(self, path: Path) -> None:
        """Resume from `path`; InputError if it belongs to another configuration or data set, or is damaged."""
        tensors, where = state.read(path, "training", {"config": dict, "data": dict, "step": int, "log": list})
        if not where["log"] or not all(isinstance(row, dict) and row.keys() == {"images", "l_simple"} for row in where["log"]):
            raise state.damaged(path, f"its log is {shown(where['log'])}")
        mine = as_json(asdict(self.config))
        differing = sorted(key for key in mine if mine[key] != where["config"].get(key)) + ["data"] * (
            where["data"] != self.data.identity
        )
        if differing:
            raise InputError(
                f"{path} was trained with other settings ({', '.join(differing)}): resume with the same ones, or train in "
                "another folder (out)"
            )
        moments = {
            f"optimizer.{i}.{name}": tensor
            for i, parameter in enumerate(self.network.parameters())
            for name, tensor in (("step", torch.tensor(0.0)), ("exp_avg", parameter), ("exp_avg_sq", parameter))
        }
        state.require_like(path, tensors, self._weights() | moments)
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        self.network.load_state_dict(groups["network"])
        self.ema.load_state_dict(groups["ema"])
        optimizer = self.optimizer.state_dict()
        for name, tensor in groups["optimizer"].items():
            i, _, key = name.partition(".")
            optimizer["state"].setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict(optimizer)
        self.step, self.log = where["step"], where["log"]

    def _weights(self) -> dict[str, Tensor]:
        """The tensors of the network and of the EMA, as a file names them."""
        networks = {"network": self.network, "ema": self.ema}
        return {f"{group}.{name}": tensor for group in networks for name, tensor in networks[group].state_dict().items()}


def train(
    trainer: Trainer,
    images: int,
    every: int,
    stop: Callable[[], bool],
    on_step: Callable[[float], None],
    on_save: Callable[[], None],
) -> None:
    """Train until `images` are seen or `stop()`; `on_save` after every `every` images and at the end, never in mid-step.

    The log gets a row at each saving: images seen and the mean L_simple since the last.
    """
    since: list[float] = []
    saved = trainer.images // every
    while trainer.images < images and not stop():
        since.append(trainer.advance())
        on_step(since[-1])
        if trainer.images // every > saved:
            saved = trainer.images // every
            trainer.log.append({"images": trainer.images, "l_simple": float(np.mean(since))})
            since = []
            on_save()
    if since:
        trainer.log.append({"images": trainer.images, "l_simple": float(np.mean(since))})
        on_save()
