"""Published weights of the DDPM authors' U-Net, which come without a card: a preset is their card."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffode import schedules
from diffode.errors import InputError
from diffode.models import checkpoint, torch_files
from diffode.models.card import Card
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from diffode.schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """What the file of the weights does not say; table: their column in Table 1 of the DDIM paper, if they have one."""

    config: DDPMUNetConfig
    table: str | None = None
    schedule: Schedule = field(default_factory=schedules.ddpm_linear)

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.config.image

    def card(self, name: str, file: str) -> Card:
        """The card of the weights in `file`; name: that of the preset."""
        return Card(
            "ddpm-unet",
            self.image,
            schedule=self.schedule.name,
            schedule_options=dict(self.schedule.options),
            predicts="noise",
            clock="t",
            config=asdict(self.config),
            provenance={"preset": name, "file": file},
        )


LSUN = DDPMUNetConfig(resolution=256, ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
PRESETS = {  # configs/*.yml of github.com/ermongroup/ddim
    "cifar10": Preset(DDPMUNetConfig(), "CIFAR-10"),
    "celeba": Preset(DDPMUNetConfig(resolution=64, ch_mult=(1, 2, 2, 2, 4)), "CelebA"),
    "bedroom": Preset(LSUN),
    "church": Preset(LSUN),
}


def read(name: str, path: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights of a file and the card of the preset.

    InputError for what torch_files.state_dict refuses, and for the first weight that does not fit the preset's network.
    """
    tensors = torch_files.state_dict(path)
    with torch.device("meta"):
        network = DDPMUNet(PRESETS[name].config)
    if why := checkpoint.misfit(tensors, network):
        raise InputError(f"{path} is not the network of the preset {name}: {why}; known presets are {', '.join(PRESETS)}")
    return tensors, PRESETS[name].card(name, path.name)
