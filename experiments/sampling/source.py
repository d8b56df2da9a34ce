"""A Source: where a model comes from, as every command takes it.

It is a name that `pretrained.load` takes, or a pipeline of diffusers, FOLDER or hub:NAME, with what that is called with. With
several prompts the sample of seed s is of prompt s modulo their number. Samples of a pipeline are its latents; `decode` of the
model makes images of them, and a `decoder` gives one to a model of latents that has none.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from diffode import checks
from diffode.errors import InputError
from diffode.models import pretrained
from diffode.models.card import Card
from diffode.models.identity import parts
from diffode.models.pretrained import Pretrained
from diffode.reading import read_bytes, reading

MOST_PROMPTS, LONGEST_PROMPT = 1000, 4000  # prompts, and characters of one
SIDES = 8, 16384  # of an image, in pixels


@dataclass(frozen=True)
class Call:
    """What a pipeline is called with. prompts: () for one that takes none. guidance_scale, height, width, negative_prompt: None
    for the pipeline's own. InputError for anything else.
    """

    prompts: Sequence[str] = ()
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        prompts = tuple(self.prompts)
        object.__setattr__(self, "prompts", prompts)
        if len(prompts) > MOST_PROMPTS:
            raise InputError(f"{len(prompts):,} prompts are more than the {MOST_PROMPTS:,} that one command takes: give fewer")
        for name, text in [*(("prompt", prompt) for prompt in prompts), ("negative_prompt", self.negative_prompt)]:
            if text is not None and not (0 < len(checks.text(name, text)) <= LONGEST_PROMPT and text.isprintable()):
                raise checks.wrong(name, f"a line of at most {LONGEST_PROMPT:,} characters", text)
        if self.guidance_scale is not None:
            checks.number("guidance", self.guidance_scale)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                checks.whole(name, side, *SIDES)

    def arguments(self, pipeline: Any) -> dict[str, Any]:
        """The arguments of a pipeline; InputError for one that it does not take, and for want of a prompt."""
        prompts, name = list(self.prompts), type(pipeline).__name__
        given = {
            "prompt": prompts or None,
            "negative_prompt": None if self.negative_prompt is None else [self.negative_prompt] * len(prompts),
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        given = {key: value for key, value in given.items() if value is not None}
        taken = inspect.signature(type(pipeline).__call__).parameters
        for key in given:
            if key not in taken:
                option = {"guidance_scale": "guidance"}.get(key, key)
                raise InputError(f"a {name} takes no {key}: leave `{option}` out")
        if "prompt" in taken and not prompts:
            raise InputError(f"a {name} takes a prompt: give `prompt`")
        return given


@dataclass(frozen=True)
class Source:
    """model: a name of `pretrained.load`, or with `pipeline`, what that is called with, its FOLDER or hub:NAME. decoder: of
    latents to images, FOLDER or hub:NAME of an autoencoder; without it the model's own."""

    model: str
    pipeline: Call | None = None
    decoder: str | None = None

    @classmethod
    def of(cls, source: Source | str) -> Self | Source:
        """A name as a Source."""
        return cls(source) if isinstance(source, str) else source

    def as_json(self) -> dict[str, Any]:
        """Its fields; only `model`, where there are no others, as older files have it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of as_json."""
        call = values.get("pipeline")
        return cls(**{**values, "pipeline": call and Call(**call)})

    def load(self, dtype: torch.dtype = torch.float32) -> Pretrained:
        """The model, its card and its SHA-256, of a pipeline that of its files and its call, and with that of a decoder's numbers
        if there is one; InputError for what cannot be loaded."""
        loaded = pretrained.load(self.model, dtype) if self.pipeline is None else self._captured(self.pipeline, dtype)
        if self.decoder is None:
            return loaded
        from diffode.models import edm2_latents

        decoder = edm2_latents.decoder(loaded.card, self.decoder)
        identity = hashlib.sha256(loaded.sha256.encode())
        for part in parts([decoder, decoder.scale, decoder.shift]):
            identity.update(part)
        return replace(loaded, model=loaded.model.replace(decode=decoder), sha256=identity.hexdigest())

    def _captured(self, call: Call, dtype: torch.dtype) -> Pretrained:
        """The model that the pipeline runs when it is called so."""
        from diffode.pipelines import captured, places

        pipeline, sha256 = places.load(self.model, dtype)
        model = captured.captured(pipeline, **call.arguments(pipeline))
        identity = hashlib.sha256(f"{sha256} {json.dumps(asdict(call))}".encode()).hexdigest()
        return Pretrained(model, Card.of(model, "pipeline", name=self.model, files=sha256), identity)


def read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not blank; InputError for a file without any."""
    with reading(file, "file of prompts", "text in UTF-8, a prompt per line"):
        lines = read_bytes(file, MOST_PROMPTS * LONGEST_PROMPT).decode().splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise InputError("it has no prompts")
    return prompts
