"""A Recipe: how a model is run, whatever runs it.

Sampling, comparisons and experiments share it. In JSON its five fields stand among those of the job or settings that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from diffode import checks
from diffode.errors import InputError, shown
from diffode.guidance import interval, rescaled
from diffode.model import EpsModel
from experiments.sampling.source import Source

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
LATER = {"guidance_interval": None, "guidance_rescale": 0.0}  # in JSON only where they are not this, since older files lack them


@dataclass(frozen=True)
class Recipe:
    """Guidance, what is done to x̂0, precision and device of a model.

    guidance: weight of classifier-free guidance; 1 is without.
    clip: clip x̂0 to [−1, 1] at every evaluation.
    threshold: quantile of dynamic thresholding of x̂0, or None.
    dtype: float32 and float64 are of state and network; in bfloat16 and float16 the network is autocast, the state float32.
    device: cpu, cuda, cuda:1 or mps; see choose_device.
    guidance_interval: the two λ between which there is guidance, or None for everywhere (guidance.interval).
    guidance_rescale: φ of guidance.rescaled; 0 is without.

    InputError for a precision that is not known, or that the device does not have, and for a way to guide without guidance.
    """

    guidance: float = 1.0
    clip: bool = False
    threshold: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    guidance_interval: Sequence[float] | None = None
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance_interval is not None:
            ends = checks.numbers("guidance_interval", self.guidance_interval, 2, least=2).tolist()
            if not (np.isfinite(ends).all() and ends[0] < ends[1]):
                raise checks.wrong("guidance_interval", "two finite λ, the lower first", self.guidance_interval)
            object.__setattr__(self, "guidance_interval", ends)
        checks.number("guidance_rescale", self.guidance_rescale, 0, 1)
        if self.guidance == 1 and (self.guidance_interval or self.guidance_rescale):
            given = "guidance_interval" if self.guidance_interval else "guidance_rescale"
            raise InputError(f"`{given}` says how to guide, and where `guidance` is 1 nothing is guided: give a weight, as 2")
        checks.choice("dtype", self.dtype, DTYPES)
        checks.text("device", self.device)
        if self.dtype == "float64" and self.device.startswith("mps"):
            raise InputError('mps has no float64: use dtype="float32", or device="cpu"')

    @property
    def state_dtype(self) -> torch.dtype:
        """Of x, and of the network's weights."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def check(self, model: EpsModel, labels: Sequence[int] | None) -> None:
        """InputError for guidance of a model that is guided itself, and without labels to guide to."""
        if self.guidance != 1 and model.guidance is not None:
            raise InputError(f"the model has {model.guidance} of its own: leave `guidance` out, or give a model without")
        if self.guidance != 1 and labels is None:
            raise InputError(f"guidance of {self.guidance:g} needs labels to guide to: give a label, or a model that has them")

    def apply(self, model: EpsModel) -> EpsModel:
        """The model, moved to the device, with guidance, autocast and what acts on x̂0."""
        model = model.to(self.device)
        if self.guidance != 1:
            ends, phi = self.guidance_interval, self.guidance_rescale
            weight = interval(self.guidance, *ends) if ends else self.guidance
            model = model.guided(weight, rules=[rescaled(phi)] if phi else [])
        model = model.autocasted(DTYPES[self.dtype]) if self.dtype in ("bfloat16", "float16") else model
        model = model.clipped() if self.clip else model
        return model.thresholded(self.threshold) if self.threshold is not None else model


PARTS = {"source": Source, "recipe": Recipe}  # fields of a dataclass whose own fields stand in its JSON


def flat(holder: Any) -> dict[str, Any]:
    """The fields of a dataclass as its JSON has them: those of its `source` and its `recipe` in their places, but for LATER."""
    pairs = {**asdict(holder), "source": holder.source.as_json()}
    pairs["recipe"] = {name: value for name, value in pairs["recipe"].items() if name not in LATER or value != LATER[name]}
    return {name: value for key, one in pairs.items() for name, value in (one.items() if key in PARTS else [(key, one)])}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`: the fields of a dataclass that has a Recipe, and a Source, if `values` have a model."""
    parts = {
        part: {field.name: values[field.name] for field in fields(kind) if field.name in values} for part, kind in PARTS.items()
    }
    rest = {name: value for name, value in values.items() if not any(name in part for part in parts.values())}
    source = {"source": Source.from_json(parts["source"])} if parts["source"] else {}
    return {**source, **rest, "recipe": Recipe(**parts["recipe"])}


def choose_device(name: str) -> str:
    """cpu, cuda or mps; "auto" is the best of them that is there. InputError for one that is not."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    try:
        device = torch.device(name)
        known = available.get(device.type, False) and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count())
    except (RuntimeError, TypeError):
        known = False
    if not known:
        here = ", ".join(device for device, there in available.items() if there)
        raise InputError(f"device {shown(name)} is not available here: there is {here}")
    return name
