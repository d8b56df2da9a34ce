"""Running a pipeline of diffusers and leaving it as it was, whatever happens meanwhile.

Its attributes and modules are put back, its scheduler is a copy meanwhile, generators are copied, and no number of the global
one is used.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diffode import checks
from diffode.errors import InputError, in_words

FEWEST, MOST = 12, 100  # steps of a run, of which a few are computed


class Enough(Exception):  # noqa: N818 - no error
    """Raised in a run of a pipeline, it ends it."""


def check_pipeline(pipe: Any) -> None:
    """InputError for what is no pipeline of diffusers with a scheduler and with weights."""
    parts = getattr(pipe, "components", None)
    if not callable(pipe) or not isinstance(parts, Mapping) or not hasattr(parts.get("scheduler"), "step"):
        raise checks.wrong(
            "pipe", "a pipeline of diffusers with a scheduler, as DiffusionPipeline.from_pretrained makes one", pipe
        )
    for name, module in modules_of(pipe).items():
        if not hasattr(module, "_hf_hook") and any(weight.is_meta for weight in module.parameters()):
            raise InputError(f"the pipeline's {name} is on meta, where tensors hold no numbers: load its weights onto a device")
        if getattr(module, "is_cache_enabled", False):
            raise InputError(f"the pipeline's {name} has a cache of earlier steps: call its disable_cache() before")


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules, each once."""
    found = {part: name for name, part in reversed(pipe.components.items()) if isinstance(part, nn.Module)}
    return {name: part for part, name in reversed(found.items())}


def run(pipe: Any, call: Mapping[str, Any], **more: Any) -> Any:
    """What the pipeline returns for the arguments `call`, with timesteps of its own spacing, FEWEST to MOST of them; None where
    it is ended.

    more: takes the place of what the pipeline has of it. InputError for arguments that it has not, and where it fails.
    """
    known = inspect.signature(pipe.__call__).parameters
    others = [name for name in call if name not in known]
    if others and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise checks.unknown(f"argument of {type(pipe).__name__}", others[0], known)
    given = {name: value for name, value in call.items() if name not in ("timesteps", "sigmas")}
    more |= {"num_inference_steps": _steps(call, known), "generator": _copied(call.get("generator"))}
    try:
        return pipe(**given | {name: value for name, value in more.items() if name in known})
    except Enough:
        return None
    except InputError:
        raise
    except Exception as error:  # whatever it raises
        raise InputError(f"the pipeline cannot be run with these arguments: {in_words(error)}") from error


def _steps(call: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> int:
    """How many steps a pipeline is asked for, more where it leaves out the first, as with the strength of an image."""
    defaults = {name: parameter.default for name, parameter in known.items()}
    steps, strength = (call.get(name, defaults.get(name)) for name in ("num_inference_steps", "strength"))
    if call.get("num_inference_steps") is not None:
        checks.whole("num_inference_steps", steps, least=1)
    steps = min(max(steps, FEWEST), MOST) if isinstance(steps, int) else FEWEST
    return math.ceil(steps / strength) if isinstance(strength, float) and 0.01 < strength < 1 else steps


def _copied(generator: Any) -> Any:
    """Generators in the same state, so that the caller's are not advanced; one of seed 0 for none."""
    if isinstance(generator, list | tuple):
        return [_copied(one) for one in generator]
    if generator is None:
        return torch.Generator().manual_seed(0)
    return torch.Generator(generator.device).set_state(generator.get_state())


@contextmanager
def untouched(pipe: Any) -> Iterator[Any]:
    """The copy of its scheduler that a pipeline has meanwhile, without a progress bar; then all is as it was, `forward` of its
    modules, too."""
    before, scheduler = dict(vars(pipe)), copy.deepcopy(pipe.scheduler)
    forwards = {module: vars(module).get("forward") for module in modules_of(pipe).values()}
    attending: list[Any] = [module for module in modules_of(pipe).values() if hasattr(module, "attn_processors")]
    processors = [dict(module.attn_processors) for module in attending]
    bar = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    try:
        vars(pipe).update(scheduler=scheduler, _progress_bar_config=bar)
        with torch.random.fork_rng(devices=[]):
            yield scheduler
    finally:
        for module, forward in forwards.items():
            vars(module).pop("forward", None)
            if forward is not None:  # as accelerate sets it
                module.forward = forward
        vars(pipe).clear()
        vars(pipe).update(before)
        for module, own in zip(attending, processors, strict=True):
            if module.attn_processors != own:  # as perturbed attention leaves them where it is interrupted
                module.set_attn_processor(own)
        if hasattr(pipe, "maybe_free_model_hooks"):  # as at the end of its own run
            pipe.maybe_free_model_hooks()
