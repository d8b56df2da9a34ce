"""The branches of a pipeline's guidance: rows of one call of its network, or calls of their own, with a condition each."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from diffode.errors import InputError
from diffode.pipelines.calls import Called, leading
from diffode.pipelines.recording import Step
from diffode.pipelines.replay import Replay, conditions_of, find_form
from diffode.pipelines.trees import same, tensors_of


def replayed(
    steps: Sequence[Step], changed: Mapping[str, Collection[str]]
) -> tuple[Replay, list[dict[str, Any]], list[list[Tensor]], bool]:
    """The network, the condition of each branch, the outputs of the branches at each step, and whether they are of one call.

    changed: the arguments of each network that change from step to step. InputError where the calls are no function of x and t
    with these conditions, or not of one network.
    """
    turns = [_turns(step.calls) for step in steps]
    if len({call.name for call in steps[0].calls}) > 1 + any(helper is not None for helper, _ in turns[0]) or not turns[0]:
        names = ", ".join(dict.fromkeys(call.name for call in steps[0].calls)) or "none"
        raise InputError(f"a model is of one network that is called with the state, and the pipeline calls {names}")
    replay: Replay | None = None
    conditions: list[dict[str, Any]] = []
    outputs: list[list[Tensor]] = [[] for _ in steps]
    for calls in zip(*turns, strict=True):  # the same call of each step
        helpers, mains = [helper for helper, _ in calls if helper], [main for _, main in calls]
        links = _links(*calls[0])
        form, copies = find_form(steps, mains, changed[mains[0].name], links)
        helped = find_form(steps, helpers, changed[helpers[0].name])[0] if helpers else None
        if replay is None:
            helper = (helpers[0].name, helpers[0].module, helped) if helped else None
            replay = Replay(mains[0].module, form, helper=helper, links=links)
        elif not same(vars(replay.form), vars(form)):
            raise InputError(
                f"the pipeline calls its {mains[0].name} in several ways at each step, as guidance that skips layers does: leave "
                "that out"
            )
        branches = conditions_of(form, mains[0], steps[0].x, copies, links)
        if helped:
            of_helper = conditions_of(helped, helpers[0], steps[0].x, copies, {})
            branches = [{**branch, helpers[0].name: its} for branch, its in zip(branches, of_helper, strict=True)]
        conditions += branches
        for step, main, found in zip(steps, mains, outputs, strict=True):
            found += leading(main.output, (copies * len(step.x), *step.x.shape[1:])).split(len(step.x))
    assert replay is not None
    return replay, conditions, outputs, len(turns[0]) == 1


def _turns(calls: Sequence[Called]) -> list[tuple[Called | None, Called]]:
    """(helper, denoiser) of each call of the denoiser, which is the last that is called; the helper is called just before."""
    before = [None, *calls]
    return [
        (helper if helper and helper.name != call.name else None, call)
        for helper, call in zip(before, calls, strict=False)
        if call.name == calls[-1].name
    ]


def _links(helper: Called | None, main: Called) -> dict[str, int]:
    """Which arguments of a call are outputs of what helps it, by their number."""
    outputs = helper.output if helper and isinstance(helper.output, tuple | list) else ()

    def is_output(value: Any, output: Any) -> bool:
        ones, others = tensors_of(value), tensors_of(output)
        return bool(ones) and len(ones) == len(others) and all(map(operator.is_, ones, others))

    return {name: i for i, output in enumerate(outputs) for name, value in main.given.items() if is_output(value, output)}
