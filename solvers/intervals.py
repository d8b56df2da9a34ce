"""Of which part of a Brownian path each draw of a plan is the increment (diffode/brownian.py).

A plan assumes that its draws are independent, so the intervals of one path must not overlap:

    a step towards the data: from the λ of its anchor to its own, as the SDE says; a corrector that repeats the step has its draw
    churn, which leads to more noise: the step that follows it, from λ_s to the λ that is committed next. What it crosses itself
        overlaps with what the next churn crosses, the more so the more steps there are
    a jump back, which repeats a step: what it crosses
    one that overlaps with one before it: the same, but of another path of the seed, independent of the first; so the turns of a
        step that is repeated, and stages of a step that have draws of their own

The paths are numbered in the order of the plan, so a turn, or a stage, is of the same path with n and with 2n steps.
"""

from __future__ import annotations

from diffode.brownian import Interval
from diffode.checks import instance
from solvers.plan import Plan

MOST_PATHS = 64


def intervals(plan: Plan) -> dict[int, Interval]:
    """Draw -> its interval; draws that would need more than 64 paths have none, and are independent.

    InputError for what is no plan.
    """
    instance("plan", plan, Plan, "a Plan, as the function of a solver makes it")
    found: dict[int, Interval] = {}
    reached: list[float] = []  # by the intervals of each path
    for draw, (lam_s, lam_t) in _ends(plan).items():
        path = next((path for path, lam in enumerate(reached) if lam <= lam_s), len(reached))
        if path < MOST_PATHS:
            reached[path : path + 1] = [lam_t]
            found[draw] = Interval(lam_s, lam_t, path)
    return found


def _ends(plan: Plan) -> dict[int, tuple[float, float]]:
    """Draw -> (λ_s, λ_t) of the last stage that uses it."""
    following, lam = [], plan.stages[-1].lam  # the λ that is committed after each stage
    for stage in reversed(plan.stages):
        following.append(lam)
        lam = stage.lam if stage.commit else lam
    found, anchor = {}, plan.stages[0].lam
    for stage, ahead in zip(plan.stages, reversed(following), strict=True):
        if stage.draw is not None:
            is_churn = stage.lam < anchor < ahead
            found[stage.draw] = (anchor, ahead) if is_churn else (min(anchor, stage.lam), max(anchor, stage.lam))
        anchor = stage.lam if stage.commit else anchor
    return found
