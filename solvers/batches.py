"""A batch run in parts, one after the other, and the results as that of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffode import checks, conditions
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.weights import Weight, said, weights_at
from solvers.hooks import Hooks
from solvers.result import AdaptiveSteps, Result


def parts_of(n: int, batch: int | None, hooks: Hooks) -> list[slice]:
    """The rows of each part, at most `batch` of them; all in one without it.

    InputError for hooks that are given whole batches, if there are several parts.
    """
    size = n if batch is None else checks.whole("batch", batch, 1)
    if size < n and (hooks.on_commit or hooks.on_step):
        raise InputError(f"on_commit and on_step are given the states of all {n} samples at once: leave them or batch out")
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def of_batch(model: EpsModel, n: int) -> EpsModel:
    """The model, of which rows are taken; InputError for conditions and weights of another number of samples than n, and, as soon
    as it is bound, for a function that returns so many weights."""

    def condition(given: Mapping[str, Any]) -> Mapping[str, Any]:
        return conditions.of_batch(given, n)

    def weight(given: Weight) -> Weight:
        if not callable(given):
            weights_at(given, [], n)
            return given

        def checked(lam: float) -> Any:
            return weights_at(given, [lam], n)[0]

        checked.__name__ = said(given)
        return checked

    guidance = model.guidance and model.guidance.changed(condition, weight)
    return model.replace(condition=condition(model.condition), guidance=guidance)


def concatenated(results: list[Result]) -> Result:
    """The result of all rows: their states, the most evaluations of any, the sum of network calls, every row's own steps."""
    trajectories = zip(*(result.trajectory for result in results), strict=True)
    return Result(
        torch.cat([result.x for result in results]),
        max(result.nfe for result in results),
        sum(result.calls for result in results),
        results[0].planned,
        tuple((states[0][0], torch.cat([x for _, x in states])) for states in trajectories),
        _steps([result.adaptive for result in results if result.adaptive is not None]),
        all(result.finished for result in results),
        tuple(counter for result in results for counter in result.counters),
    )


def _steps(taken: list[AdaptiveSteps]) -> AdaptiveSteps | None:
    """The steps of all samples, in their order."""
    if not taken:
        return None
    names = "accepted", "rejected", "nfe", "calls", "grids"
    each = {name: tuple(value for steps in taken for value in getattr(steps, name)) for name in names}
    return AdaptiveSteps(**each, make_plan=taken[0].make_plan)
