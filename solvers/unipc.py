"""UniPC (Zhao et al., 2023): a multistep predictor, and a corrector that needs no further evaluation.

The evaluation at the end of a step, made for the next step anyway, corrects this one: the weights are those of the polynomial
through it and the history. unipc-p predicts with p nodes and corrects with p + 1, and is of order p + 1. B(h) of the paper
cancels from every weight but those with two nodes, where the published code replaces the exact first moment by 1/2
(B = e^h − 1, "bh2") or by h/(2 (e^h − 1)) (B = h, "bh1").

UniC on any other multistep predictor is its name with "+unic", as dpmpp3m+unic; dpmpp2m+unic is unipc2.
"""

from __future__ import annotations

from functools import partial

from diffode.errors import InputError
from diffode.schedule import Array, Schedule
from solvers.multistep import exponential, multistep
from solvers.plan import Plan
from solvers.singlestep import SIGN, check_variant


def _unipc(
    order: int,
    grid: Array,
    schedule: Schedule,
    *,
    variant: str = "bh2",
    prediction: str = "data",
    start: str = "ramp",
    lower_final: bool = False,
) -> Plan:
    """UniPC of the given order of its predictor, in data or noise form. One evaluation a step."""
    name = f"unipc{order}"
    if prediction not in SIGN:
        raise InputError(f"the prediction of {name} is {' or '.join(SIGN)}, not {prediction!r}")
    rule = exponential(prediction, check_variant(name, variant, ("bh1", "bh2")))
    return multistep(name, grid, schedule, prediction, order, rule, corrector=order + 1, start=start, lower_final=lower_final)


unipc1, unipc2, unipc3, unipc4 = (partial(_unipc, order) for order in (1, 2, 3, 4))
