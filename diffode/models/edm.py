"""Files of EDM and EDM2 (Karras et al., 2022, 2024): a pickle whose `ema` is a preconditioned network, as tensors and a card.

Every preconditioning is D(x; σ) = c_skip x + c_out F(c_in x; c_noise), of which F is kept, by what it predicts on which path:

    EDMPrecond     F of Eq. 7 of EDM (Precond of EDM2 is the same), on the ve path with c_noise = log(σ)/4
    VPPrecond      ε on the vp path of Song et al. (2021b), c_noise = 999 t
    VEPrecond      −ε on the ve path, c_noise = log(σ/2): see `ve` of networks/edm_unet.py
    iDDPMPrecond   ε and a variance, on the table of Nichol and Dhariwal (2021), c_noise its label

EDM's own sampler moves σ to the labels of the last; here the clock is fractional between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from diffode import schedules
from diffode.checks import number, unknown, whole
from diffode.errors import InputError, shown
from diffode.models import edm_adm, pickles
from diffode.models.card import Card
from diffode.models.edm2_latents import of_encoder
from diffode.models.pickle_machine import Part
from diffode.networks.edm2_unet import EDM2UNetConfig, normalised
from diffode.networks.edm_unet import EDMUNetConfig
from diffode.networks.sizes import MOST
from diffode.reading import reading
from diffode.schedule import Schedule

EXPECTED = "a .pkl of github.com/NVlabs/edm or edm2, with a network called ema"
UNUSED = {"dropout", "label_dropout", "class_name"}  # arguments of training
Network = tuple[str, dict[str, Any], dict[str, Tensor]]  # the kind of a card, its config, and the tensors under our names


@dataclass(frozen=True)
class Preconditioning:
    """What a preconditioning says of F: see the module docstring; changed: fields of its EpsModel that are not the default."""

    schedule: Schedule
    predicts: str
    clock: str
    changed: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The tensors and the card of a file; InputError for what pickles.read refuses, and for networks that are not known."""
    with reading(path, "network of EDM", EXPECTED):
        held = pickles.read(path, "network of EDM", EXPECTED)
        precond = held.get("ema") if isinstance(held, dict) else None
        if not isinstance(precond, Part):
            raise InputError(f"it is of type {type(held).__name__} and has no network called `ema`")
        if precond.name not in PRECONDITIONINGS:
            raise unknown("preconditioning", precond.name, PRECONDITIONINGS)
        network = precond.module("unet" if precond.name == "Precond" else "model")
        if network.name not in NETWORKS:
            raise unknown("network", network.name, NETWORKS)
        about = PRECONDITIONINGS[precond.name](precond.plain())
        given = network.plain()
        kind, config, tensors = NETWORKS[network.name](given, pickles.tensors_of(network), precond.name)
        side = whole("img_resolution", given.get("img_resolution"), 1)
        image = whole("channels", given.get("in_channels", given.get("img_channels")), 1), side, side
        labels = whole("label_dim", given.get("label_dim", 0), 0, MOST["classes"])
        return tensors, Card(
            *(kind, image, tuple(map(str, range(labels)))),
            schedule=about.schedule.name,
            schedule_options=dict(about.schedule.options),
            predicts=about.predicts,
            clock=about.clock,
            config=config,
            provenance={"file": path.name, "precond": precond.name, **of_encoder(held.get("encoder"))},
            changed=about.changed | ({"one_hot": True} if labels else {}),
        )


def _edm(arguments: Mapping[str, Any]) -> Preconditioning:
    sigma_data = number("sigma_data", arguments.get("sigma_data", 0.5), 1e-6, 1e6)
    low, high = arguments.get("sigma_min", 0), arguments.get("sigma_max", float("inf"))
    ends = max(0.002, number("sigma_min", low, 0)), min(80.0, number("sigma_max", high, 0, finite=False))
    predicts = "edm" if sigma_data == 0.5 else f"edm({sigma_data!r})"
    return Preconditioning(schedules.edm(*ends), predicts, "c_noise")


def _vp(arguments: Mapping[str, Any]) -> Preconditioning:
    growth, first = number("beta_d", arguments.get("beta_d", 19.9)), number("beta_min", arguments.get("beta_min", 0.1))
    labels = whole("M", arguments.get("M", 1000), 2, 10_000_000)
    schedule = schedules.vp_linear(first, first + growth, number("epsilon_t", arguments.get("epsilon_t", 1e-5), 0, 1))
    return Preconditioning(schedule, "noise", f"{labels - 1}t")


def _ve(arguments: Mapping[str, Any]) -> Preconditioning:
    ends = number("sigma_min", arguments.get("sigma_min", 0.02)), number("sigma_max", arguments.get("sigma_max", 100))
    return Preconditioning(schedules.edm(*ends), "noise", "log_sigma_bar")


def _iddpm(arguments: Mapping[str, Any]) -> Preconditioning:
    given = {name: arguments.get(name, value) for name, value in {"C_1": 0.001, "C_2": 0.008}.items()}
    if given != {"C_1": 0.001, "C_2": 0.008}:
        raise InputError(f"its table of labels is made with {shown(given)}, where C_1 = 0.001 and C_2 = 0.008 are known")
    schedule = schedules.squared_cosine(whole("M", arguments.get("M", 1000), 2, schedules.MOST_LABELS))
    return Preconditioning(schedule, "noise", "t", {"learned_variance": True})


def _song(arguments: Mapping[str, Any], tensors: dict[str, Tensor], precond: str) -> Network:
    """DDPM++ and NCSN++."""
    return "edm", asdict(EDMUNetConfig(**known(arguments, EDMUNetConfig), ve=precond == "VEPrecond")), tensors


def _dhariwal(arguments: Mapping[str, Any], tensors: dict[str, Tensor], precond: str) -> Network:
    """ADM."""
    if precond == "VEPrecond":
        raise InputError("VEPrecond of a DhariwalUNet is not known: expected is that of a SongUNet")
    config = edm_adm.Arguments(**known(arguments, edm_adm.Arguments)).config()
    return "adm", asdict(config), edm_adm.converted(config, tensors)


def _edm2(arguments: Mapping[str, Any], tensors: dict[str, Tensor], precond: str) -> Network:
    """EDM2's, whose weights are normalised once."""
    return "edm2", asdict(EDM2UNetConfig(**known(arguments, EDM2UNetConfig))), normalised(tensors)


def known(arguments: Mapping[str, Any], config: type[Any]) -> dict[str, Any]:
    """The arguments of a network of the file without those of training; InputError for one that is no field of `config`."""
    names = {one.name for one in fields(config)}
    if others := [name for name in arguments if name not in names | UNUSED]:
        raise unknown("argument of the network", others[0], names)
    return {name: value for name, value in arguments.items() if name in names}


PRECONDITIONINGS: dict[str, Callable[[Mapping[str, Any]], Preconditioning]] = {
    "EDMPrecond": _edm,
    "Precond": _edm,
    "VPPrecond": _vp,
    "VEPrecond": _ve,
    "iDDPMPrecond": _iddpm,
}
NETWORKS: dict[str, Callable[[Mapping[str, Any], dict[str, Tensor], str], Network]] = {
    "SongUNet": _song,
    "DhariwalUNet": _dhariwal,
    "UNet": _edm2,
}
