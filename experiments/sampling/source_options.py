"""The options that say where a model comes from, which are handed to a command as one, `source`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from experiments.common.options import FileName

if TYPE_CHECKING:  # --help does not wait for torch
    from experiments.sampling.source import Source

MODEL = "fashion"
MODEL_HELP = (
    "fashion, mixture, a checkpoint file, PRESET:FILE, FORMAT:FILE as edm:FILE, a folder of diffusers, hub:NAME, or MODULE:NAME "
    "(docs/networks.md)."
)
PIPELINE = ("prompt", "prompts", "negative_prompt", "height", "width")  # options that only a pipeline takes
GUIDED_BY = ("guidance_interval", "guidance_rescale")  # options of a model

model = cloup.option("--model", type=FileName(str), metavar="NAME|FILE", help=f"{MODEL_HELP} [default: {MODEL}]")
pipeline_group = cloup.option_group(
    "A pipeline of diffusers, in the place of a model",
    cloup.option(
        "--pipeline", type=FileName(str), metavar="FOLDER|hub:NAME", help="As save_pretrained writes it (docs/diffusers.md)."
    ),
    cloup.option("--prompt", multiple=True, help="What it is to draw. Repeatable: in turn, by seed."),
    cloup.option("--prompts", type=FileName(), metavar="FILE", help="A file of prompts, a line each, instead."),
    cloup.option("--negative-prompt", help="What guidance leads away from, for all prompts."),
    cloup.option("--height", type=click.IntRange(1), help="Of the image, in pixels. [default: the pipeline's own]"),
    cloup.option("--width", type=click.IntRange(1), help="The same."),
    cloup.option(
        "--decoder",
        type=FileName(str),
        metavar="FOLDER|hub:NAME",
        help="Of a --model of latents: an autoencoder of diffusers, with which they are shown as images.",
    ),
)


def as_source(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the options that say where the model comes from to the command as one, `source`. A pipeline guides itself: for it
    --guidance is in there, and the recipe's is 1."""

    @functools.wraps(command)
    def call(*args: Any, guidance: float | None, **parameters: Any) -> Any:
        typed = {name: parameters.pop(name) for name in ("model", "pipeline", "decoder", *PIPELINE)}
        source = source_of(guidance=guidance, **typed)
        if source.pipeline is not None and (how := [name for name in GUIDED_BY if parameters[name]]):
            raise click.UsageError(f"--{how[0].replace('_', '-')} is of a --model: a --pipeline guides itself, at every λ")
        weight = 1.0 if guidance is None or source.pipeline is not None else guidance
        return command(*args, **parameters, guidance=weight, source=source)

    return call


def source_of(
    model: str | None,
    pipeline: str | None,
    decoder: str | None,
    prompt: Sequence[str],
    prompts: Path | None,
    guidance: float | None,
    **call: Any,
) -> Source:
    """The Source of the options; click.UsageError for a model and a pipeline, and for options of a pipeline without one."""
    from experiments.sampling.source import Call, Source, read_prompts

    if model is not None and pipeline is not None:
        raise click.UsageError(f"--model {model} and --pipeline {pipeline} are both given: leave one out")
    if prompt and prompts is not None:
        raise click.UsageError("--prompt and --prompts are both given: leave one out")
    if pipeline is None:
        typed = {"prompt": prompt or None, "prompts": prompts, **call}
        if given := [name for name, value in typed.items() if value is not None]:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is of a pipeline: give --pipeline, or leave it out")
        return Source(MODEL if model is None else model, decoder=decoder)
    lines = prompt if prompts is None else read_prompts(prompts)
    return Source(pipeline, Call(tuple(lines), guidance_scale=guidance, **call), decoder)
