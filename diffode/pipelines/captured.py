"""captured: an EpsModel of a pipeline of diffusers and a prompt.

    model = captured(pipe, prompt="a red bicycle", guidance_scale=5.0)
    result = sample(model, solver="unipc3", nfe=10, n=1)
    images = model.decode(result.x)

The pipeline is run for three evaluations along its trajectory, at which is kept what its network was called with and what reached
its scheduler (recording.py). The calls are replayed as network(x, clock, **condition) (replay.py), and the guidance is solved for
(weighing.py). The model that comes of it is required to give what reached the scheduler, at these points and for another
batch; a pipeline of which it does not is refused, with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.calling import dtype_of
from diffode.clocks import lam_at
from diffode.conditions import Shared
from diffode.errors import InputError, in_words
from diffode.guidance import Guidance, rescaled
from diffode.model import EpsModel
from diffode.pipelines.branches import replayed
from diffode.pipelines.decoding import Decode
from diffode.pipelines.recording import Step, record
from diffode.pipelines.running import check_pipeline, modules_of
from diffode.pipelines.trees import same
from diffode.pipelines.weighing import weigh
from diffode.scheduler_config import TrainedAs, trained_as


def captured(pipe: Any, **call: Any) -> EpsModel:
    """An EpsModel of a pipeline of diffusers, for the prompt and all else that it is called with.

    call: the arguments of the pipeline (prompt, prompt_embeds, guidance_scale, height, ...); a list of P prompts gives
    conditions of P rows, which `taking` selects. Steps, timesteps and sigmas are not used. Schedule, prediction and clock are
    those of the pipeline's scheduler (trained_as); clipping of x̂0 and its grid are the scheduler's, and are left out. Guidance
    has the pipeline's branches and weights; `decode` is made of its last lines. The modules are the pipeline's own: `to`
    moves them. The pipeline is not changed, and its generators are not advanced.

    InputError for what is no pipeline, arguments that it cannot be run with, and a pipeline that is no function of (x, t) with
    constant conditions and guidance: the reason is in the message.
    """
    check_pipeline(pipe)
    for name, value in call.items():
        if name.startswith("callback") and callable(value):
            raise InputError(
                f"the argument {name} may change what the pipeline does at some steps, and a model is one for all: leave it out"
            )
    seen = record(pipe, call)
    network, conditions, outputs, batched = replayed(seen.steps, seen.changed)
    weights, network.sign, phi = weigh(outputs, [step.m for step in seen.steps])
    rows, shape = len(seen.steps[0].x), tuple(seen.steps[0].x.shape[1:])
    decodes = any(hasattr(module, "decode") for module in modules_of(pipe).values())
    decode = Decode(pipe, call, seen.outputs, rows, shape) if decodes else None
    model = EpsModel(network, **_trained(pipe.scheduler, seen.mu), shape=shape, decode=decode, condition=conditions[0])
    if len(conditions) > 1:
        model = _guided(model, conditions, outputs, weights, phi, batched)
    return _verified(model, seen.steps)


def _trained(scheduler: Any, mu: float | None) -> TrainedAs:
    """Schedule, prediction and clock by a scheduler, or by that which diffode's has replaced."""
    config = dict(scheduler.config)
    config["_class_name"] = config.get("replaced") or type(scheduler).__name__
    return trained_as(config, mu if config.get("use_dynamic_shifting") else None)


def _guided(
    model: EpsModel,
    conditions: Sequence[Mapping[str, Any]],
    outputs: Sequence[Sequence[Tensor]],
    weights: Sequence[float],
    phi: float,
    batched: bool,
) -> EpsModel:
    """The model with the conditions and weights of these branches; InputError for branches that differ in what is not seen."""
    base, away = int(np.argmax(weights)), int(np.argmin(weights))
    changes = [
        {name: value for name, value in branch.items() if not same(value, conditions[base][name])} for branch in conditions
    ]
    for i, j in itertools.combinations(range(len(changes)), 2):
        if same(changes[i], changes[j]) and not all(torch.allclose(point[i], point[j], 1e-3, 1e-4) for point in outputs):
            raise InputError(
                "the network of the pipeline answers the same arguments differently, as perturbed attention guidance makes it "
                "(leave that out), or embeddings with a row for each frame (AnimateDiff, of which no model can be captured)"
            )
    model = model.replace(condition=conditions[base])
    if not any(changes):
        return model
    others = [(weights[i], changes[i]) for i in range(len(changes)) if i not in (base, away)]
    rules = (rescaled(phi),) if phi else ()
    return model.replace(guidance=Guidance(((weights[base], {}), *others), changes[away], rules=rules, batched=batched))


def _verified(model: EpsModel, steps: Sequence[Step]) -> EpsModel:
    """The model, which gives what reached the scheduler; where it does only so, with positions shared that by chance have as many
    rows as the state. InputError where it does not."""
    rows, failed = len(steps[0].x), None
    likely = [
        name
        for name, value in model.condition.items()
        if isinstance(value, Tensor) and value.ndim == 2 and 1 < len(value) == rows
    ]
    for names in itertools.chain.from_iterable(itertools.combinations(likely, k) for k in range(len(likely) + 1)):
        found = model.conditioned(**{name: Shared(model.condition[name]) for name in names})
        try:
            for step in steps:
                _verify(found, step)
            return found
        except InputError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _tolerance(dtype: torch.dtype, on_cpu: bool) -> float:
    """How far a network of this dtype may differ from itself, of its largest number; on a GPU products have fewer digits."""
    return max({torch.float64: 1e-6, torch.float32: 1e-4}.get(dtype, 5e-2), 0 if on_cpu else 5e-3)


def _verify(model: EpsModel, step: Step) -> None:
    """InputError where the model does not give what reached the scheduler, for its batch, or another without batched calls."""
    rows, t = len(step.x), step.t
    lam = lam_at(model.schedule, str(model.clock), t)
    scale = float(prediction.input_scale(model.predicts, model.schedule.alpha(lam), model.schedule.sigma(lam)))
    apart = model.replace(guidance=model.guidance and replace(model.guidance, batched=False))
    for one, batch in ((model, [*range(rows)]), (apart, [rows - 1, *range(rows)])):
        wanted = step.m[batch]
        try:
            with torch.no_grad():
                found = one.taking(batch)(step.x[batch] / scale, lam, model.predicts)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"the network of the pipeline cannot be called again for a batch of {len(batch)}: {in_words(error)}"
            ) from error
        off = float((found - wanted).abs().max() / wanted.abs().max())
        if not off <= _tolerance(dtype_of(model.network) or step.x.dtype, found.is_cpu):
            raise InputError(
                f"the network, called again for a batch of {len(batch)} at t = {t:g}, differs by {off:.1g} of its size from what "
                "the pipeline made: it depends on more than x, t and its arguments, as with a cache or attention across samples"
            )
