"""A model with its log-density, as the ε-model of a state that is one pixel larger, or as many as there are probes.

With s² = α² + σ² and T = α ε − σ x̂0, a trajectory has ℓ = log p_λ(x) + d log s with dℓ/dλ = (α σ/s²) tr ∂T/∂x (likelihood.py). So
a = α ℓ with ε_a = −(α/s)² tr ∂T/∂x obeys d(a/α)/dλ = −e^(−λ) ε_a, the equation of x; its x̂0 is (a − σ ε_a)/α and its T is
−α tr ∂T/∂x − σ ℓ. The log-density is another pixel, and what integrates ε-models, a plan in either prediction, an adaptive pair
or a black box, integrates it as it is, with its own order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.evaluation import Counter, Evaluate, columns
from diffode.model import EpsModel
from diffode.schedule import Array

Traced = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (x, i) -> T and the trace of its Jacobian at the i-th λ


@dataclass(frozen=True, eq=False, repr=False)
class WithDensity(EpsModel):
    """A model as the ε-model of the states (x, α ℓ), flattened: (batch, d + coordinates), one coordinate per probe, or one.

    of_x: the shape of x. probes: (probes, batch, *of_x), or None for the exact trace. differentiable: gradients flow through x
    and the trace, to the state and to the network. All else is the model's own; watches see T.
    """

    _: KW_ONLY
    of_x: tuple[int, ...] = ()
    probes: Tensor | None = None
    differentiable: bool = False

    @classmethod
    def of(
        cls, model: EpsModel, shape: Sequence[int], probes: Tensor | None = None, *, differentiable: bool = False
    ) -> WithDensity:
        """That of a model of samples of this shape."""
        own = {field.name: getattr(model, field.name) for field in fields(EpsModel)}
        return cls(**{**own, "shape": None}, of_x=tuple(shape), probes=probes, differentiable=differentiable)

    @property
    def d(self) -> int:
        """The numbers of x."""
        return math.prod(self.of_x)

    def join(self, x: Tensor, ell: float | Tensor, lam: float) -> Tensor:
        """The state of x (batch, *shape) and ℓ, a number or (batch, coordinates), at λ."""
        a = torch.as_tensor(ell, dtype=x.dtype, device=x.device) * float(self.schedule.alpha(lam))
        return torch.cat([x.reshape(len(x), -1), a.expand(len(x), 1 if self.probes is None else len(self.probes))], 1)

    def split(self, u: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """(x, ℓ) of a state at λ."""
        return self.x_of(u), u[:, self.d :] / float(self.schedule.alpha(lam))

    def taking(self, rows: Sequence[int]) -> WithDensity:
        probes = None if self.probes is None else self.probes[:, list(rows)]
        return super().taking(rows).replace(probes=probes)

    def bind(
        self,
        lams: Sequence[float] | Array,
        like: Tensor,
        predicts: str = "noise",
        rows: Sequence[int] | None = None,
        counter: Counter | None = None,
    ) -> Evaluate:
        if rows is not None:
            return self.taking(rows).bind(lams, like, predicts, counter=counter)
        tangent = super().bind(lams, self.x_of(like), "tangent", counter=counter)
        coefficients = []
        for lam in np.asarray(lams, np.float64).reshape(len(lams), -1).tolist():  # one λ for all, or one per sample
            ends = [self.schedule.path.at(each) for each in lam]
            table = [(*end, *prediction.convert("tangent", predicts, *end)) for end in ends]
            coefficients.append(columns(np.array(table).T, like))
        return _DensityEvaluator(
            self, self._traced(tangent, lams, self.x_of(like)), coefficients, tangent.counter, tangent.has_memory
        )

    def x_of(self, u: Tensor) -> Tensor:
        """x of a state."""
        return u[:, : self.d].reshape(-1, *self.of_x)

    def _traced(self, tangent: Evaluate, lams: Sequence[float] | Array, like: Tensor) -> Traced:
        """(x, i) -> T, and tr ∂T/∂x or its estimates, (batch, coordinates)."""
        plain = not self.hooks and self.guidance is None and self.predicts in ("velocity", "tangent")
        closed = getattr(self.network, "divergence", None)
        if self.probes is None and plain and closed is not None:
            call, condition = replace(self.call_at(lams, like), network=closed), self.handed(self.condition, like)
            return lambda x, i: (tangent(x, i), call.evaluated(x, i, condition).to(x.dtype)[:, None])
        units = torch.eye(self.d, dtype=like.dtype, device=like.device).view(self.d, 1, *self.of_x)
        vectors = units.expand(self.d, *like.shape) if self.probes is None else self.probes.to(like)

        keep = self.differentiable

        def by_products(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x if keep and x.requires_grad else x.detach().requires_grad_()
                t = tangent(x, i)
                products = (torch.autograd.grad(t, x, v, retain_graph=True, create_graph=keep)[0] for v in vectors)
                forms = torch.stack(
                    [(v * product).reshape(len(x), -1).sum(1) for v, product in zip(vectors, products, strict=True)], 1
                )
            return t if keep else t.detach(), forms.sum(1, keepdim=True) if self.probes is None else forms

        return by_products


@dataclass
class _DensityEvaluator:
    """The prediction for a state (x, α ℓ), from T and its trace; coefficients: α, σ and (a, b) of T for each evaluation."""

    model: WithDensity
    traced: Traced
    coefficients: Sequence[tuple[Tensor, ...]]
    counter: Counter
    has_memory: bool
    passes_through: bool = False

    def __call__(self, x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor:
        alpha, sigma, a, b = self.coefficients[i]
        t, trace = self.traced(self.model.x_of(x), i)
        m = torch.cat([t.reshape(len(t), -1), -alpha * trace - sigma / alpha * x[:, self.model.d :]], 1)
        return torch.add(a * x, b * m, out=out)
