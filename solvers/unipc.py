"""UniPC (Zhao et al., 2023): a multistep predictor, and a corrector that needs no further evaluation.

The evaluation at the end of a step, made for the next step anyway, corrects this one: the weights are those of the polynomial
through it and the history. unipc-p predicts with p evaluations and corrects with p + 1, and is of order p + 1. B(h) of the paper
cancels from every weight except with two evaluations, where the published code replaces the exact first moment by 1/2
(B = e^h − 1, "bh2") or by h/(2 (e^h − 1)) (B = h, "bh1").

UniC on any other multistep predictor is its name with "+unic", as dpmpp3m+unic; dpmpp2m+unic is unipc2.
"""

from __future__ import annotations

from collections.abc import Callable

from diffode.checks import choice
from diffode.schedule import Array, Schedule
from solvers.multistep import exponential, multistep
from solvers.plan import Plan
from solvers.singlestep import SIGN

DOC = """UniPC-{p}: a predictor that uses {last}, and a corrector that also uses the one at the end of the step.

    predictor:  u   = (σ_t/σ_s) x_s − α_t (e^(−h) − 1) Σ_j w_j m_j                m_j: {last},    h = λ_t − λ_s
    corrector:  x_t = (σ_t/σ_s) x_s − α_t (e^(−h) − 1) (v m_t + Σ_j v_j m_j)      m_t = x̂0(u, λ_t)

The weights integrate the polynomial in λ through their evaluations exactly, but for the case of just two (variant). m_t serves
the next step too, so there is one evaluation per step; the last step is not corrected.
{order}.

Arguments:
    variant: the weight of the slope where just two evaluations are combined (exact with more): "bh2" (default), 1/2, or "bh1",
        (h/2)/(1 − e^(−h)) (noise form: (h/2)/(e^h − 1)), named after the paper's B(h).
    prediction: "data" (default), as above, or "noise": the same on ε, with (α_t/α_s) x_s − σ_t (e^h − 1) before the sums.
    start: "ramp" (default): first steps of order 1, 2, ...; "single": first steps are single steps of the full order.
    lower_final: whether the last steps are of order ..., 2, 1. Default False.

Reference:
    UniPC (Zhao et al., 2023).{note}
"""


def _unipc(p: int, order: str, note: str = "") -> Callable[..., Plan]:
    """The solver whose predictor uses p evaluations, with a docstring of its own."""
    name = f"unipc{p}"

    def build(
        grid: Array,
        schedule: Schedule,
        *,
        variant: str = "bh2",
        prediction: str = "data",
        start: str = "ramp",
        lower_final: bool = False,
    ) -> Plan:
        choice(f"the prediction of {name}", prediction, SIGN)
        rule = exponential(prediction, choice(f"the variant of {name}", variant, ("bh1", "bh2")))
        return multistep(name, grid, schedule, prediction, p, rule, corrector=p + 1, start=start, lower_final=lower_final)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = DOC.format(p=p, last="the last x̂0" if p == 1 else f"the last {p} x̂0", order=order, note=note)
    return build


unipc1 = _unipc(1, "Order 2")
unipc2 = _unipc(2, "Order 3", " It is dpmpp2m with UniC.")
unipc3 = _unipc(3, 'Order 4 with start="single", and 3 with the default ramp')
unipc4 = _unipc(4, 'Order 5 with start="single", and 3 with the default ramp')
