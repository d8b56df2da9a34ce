"""log p(x0) by the change of variables along the probability-flow ODE, by whatever integrates the ODE.

With s² = α² + σ² (1 on the vp path) and T = α ε − σ x̂0 (there the velocity), so that ε = (σ x + α T)/s², a trajectory has

    ℓ = log p_λ(x) + d log s        dℓ/dλ = −tr ∂(dx/dλ)/∂x + d (d log s/dλ) = (α σ/s²) tr ∂T/∂x

for x of d numbers (Chen et al., 2018; Song et al., 2021b, section 4.3): nothing where the data has unit variance. This is one
more coordinate of the same equation: a = α ℓ with ε_a = −(α/s)² tr ∂T/∂x obeys d(a/α)/dλ = −e^(−λ) ε_a, so its x̂0 is
(a − σ ε_a)/α and its T is −α tr ∂T/∂x − σ ℓ. The log-density is another pixel, and what integrates ε-models, a plan in either
prediction, an adaptive pair or a black box, integrates it as it is, with its own order.

The trace is exact in closed form (Mixture.divergence) or by d vector-Jacobian products; or it is Hutchinson's estimate vᵀ ∂T/∂x v
with random signs v (Grathwohl et al., 2019), the same along a trajectory, and a coordinate for each v. No trajectory depends on
them and ℓ is linear in the trace, so log p is estimated without bias, and the probes tell its standard error.

Which density: the model ends at λ_max, so p is the density of x/α there, that of the data with noise of variance e^(−2 λ_max):
log p(x0) = log p_λmax(α x0) + d log α, with nothing added to x0. At λ_min it is that of what `sample` begins with, N(0, σ² I),
unless another is given: so p is the density of samples, which at λ_min differs a little from that of diffused data.

Pixels are whole numbers, whose density would be infinite, so uniform noise u as wide as a level is added (Theis et al., 2016). By
Jensen's inequality E log p(pixels + u) ≤ log ∫ p(pixels + u) du: in expectation the bits/dim are an upper bound of −log2 P/d for
the rounded model. A unit of x has 127.5 levels (data.to_tensor), so they are −log2 p(x)/d + log2 127.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from diffode import grid as grids
from diffode import prediction
from diffode.calling import Call
from diffode.conditions import on_device
from diffode.errors import InputError
from diffode.evaluation import Counter, Evaluate, columns
from diffode.model import EpsModel
from diffode.noise import seeds_of
from diffode.schedule import Array

LEVELS = 127.5  # of a pixel, in a unit of x
Density = Callable[[Tensor, float], Tensor]  # (x, λ) -> log p_λ(x), (batch,)
Traced = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (x, i) -> T and the trace of its Jacobian at the i-th λ


class Integrated(Protocol):
    """What an integrator hands back, as solvers.Result: the last state, its evaluations, and whether it came to the end."""

    @property
    def x(self) -> Tensor: ...
    @property
    def nfe(self) -> int: ...
    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True)
class Likelihood:
    """log_p: log p(x0) in nats, (batch,). stderr: its standard error over the probes, (batch,), 0 for the exact trace and NaN for
    one probe. x: the state at λ_min, (batch, *shape). nfe: evaluations of T and its trace."""

    log_p: Tensor
    stderr: Tensor
    x: Tensor
    nfe: int

    @property
    def bits_per_dim(self) -> Tensor:
        """−log2 p/d + log2 127.5, (batch,), for x0 that are `dequantised` pixels."""
        return math.log2(LEVELS) - self.log_p / (self.x[0].numel() * math.log(2))

    @property
    def bits_stderr(self) -> Tensor:
        """The standard error of bits_per_dim over the probes, (batch,)."""
        return self.stderr / (self.x[0].numel() * math.log(2))


def log_likelihood(
    model: EpsModel,
    x0: Tensor,
    encode: Callable[..., Integrated],
    *,
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    grid: str | Sequence[float] = "logsnr",
    end: Density | None = None,
    **how: Any,
) -> Likelihood:
    """log p(x0) for x0 (batch, *shape), as the module docstring says; in float64, with the network in its own dtype.

        log_likelihood(model, x0, solvers.encode, solver="dpm3", nfe=48, probes=4)

    encode: (model, x, grid=grid, **how) -> the state at the noisy end of the grid, for x at its clean end, as solvers.encode.
    probes: of Hutchinson's estimate, those of row i by seed + i, or seed[i], in any batch; each costs about an evaluation more.
    0 is the exact trace. end: log p at the noisy end, if not that of N(0, σ² I).

    InputError if log p is not finite, or the integrator stopped early.
    """
    schedule, d = model.schedule, x0[0].numel()
    ends = np.array([schedule.lam_min, schedule.lam_max] if isinstance(grid, str) else [grid[0], grid[-1]], np.float64)
    lam_t, lam_s = (grids.snap(ends, schedule) if model.clock == "label" else ends).tolist()
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.path.at(lam_s), schedule.path.at(lam_t)
    flow = WithDensity.of(model, x0.shape[1:], random_signs(probes, x0, seed) if probes else None)
    result = encode(flow, flow.join(alpha_s * x0.double(), 0.0, lam_s), grid=grid, **how)
    if not result.finished:
        raise InputError("the integrator stopped before the noisy end, where the density is known: raise max_nfe")
    x, gain = flow.split(result.x, lam_t)
    at_end = normal(x, sigma_t) if end is None else end(x, lam_t)
    scales = math.log(math.hypot(alpha_t, sigma_t)) - math.log(math.hypot(alpha_s, sigma_s)) + math.log(alpha_s)
    log_p = at_end[:, None] - gain + d * scales
    if not torch.isfinite(log_p).all():
        raise InputError("log p is not finite: check the checkpoint and x0, or take more evaluations")
    stderr = log_p.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(at_end, math.nan if probes else 0.0)
    return Likelihood(log_p.mean(1), stderr, x, result.nfe)


@dataclass(frozen=True, eq=False, repr=False)
class WithDensity(EpsModel):
    """A model as the ε-model of the states (x, α ℓ), flattened: (batch, d + coordinates), one coordinate per probe, or one.

    of_x: the shape of x. probes: (probes, batch, *of_x), or None for the exact trace. All else is the model's own; watches see T.
    """

    _: KW_ONLY
    of_x: tuple[int, ...] = ()
    probes: Tensor | None = None

    @classmethod
    def of(cls, model: EpsModel, shape: Sequence[int], probes: Tensor | None = None) -> WithDensity:
        """That of a model of samples of this shape."""
        own = {field.name: getattr(model, field.name) for field in fields(EpsModel)}
        return cls(**{**own, "shape": None}, of_x=tuple(shape), probes=probes)

    @property
    def d(self) -> int:
        """The numbers of x."""
        return math.prod(self.of_x)

    def join(self, x: Tensor, ell: float | Tensor, lam: float) -> Tensor:
        """The state of x (batch, *shape) and ℓ, a number or (batch, coordinates), at λ."""
        a = torch.as_tensor(ell, dtype=x.dtype, device=x.device) * float(self.schedule.alpha(lam))
        return torch.cat([x.flatten(1), a.expand(len(x), 1 if self.probes is None else len(self.probes))], 1)

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
        return _DensityEvaluator(self, self._traced(tangent, lams, self.x_of(like)), coefficients, tangent.counter)

    def x_of(self, u: Tensor) -> Tensor:
        """x of a state."""
        return u[:, : self.d].reshape(-1, *self.of_x)

    def _traced(self, tangent: Evaluate, lams: Sequence[float] | Array, like: Tensor) -> Traced:
        """(x, i) -> T, and tr ∂T/∂x or its estimates, (batch, coordinates)."""
        plain = not self.hooks and self.guidance is None and self.predicts in ("velocity", "tangent")
        closed = getattr(self.network, "divergence", None)
        if self.probes is None and plain and closed is not None:
            call = Call.of(self.network, self.schedule, self.clock, lams, like, self.autocast)
            condition = on_device(self.condition, like)
            return lambda x, i: (tangent(x, i), call.evaluated(closed, x, i, condition).to(x.dtype)[:, None])
        units = torch.eye(self.d, dtype=like.dtype, device=like.device).view(self.d, 1, *self.of_x)
        vectors = units.expand(self.d, *like.shape) if self.probes is None else self.probes.to(like)

        def by_products(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                t = tangent(x, i)
                forms = torch.stack(
                    [(v * torch.autograd.grad(t, x, v, retain_graph=True)[0]).flatten(1).sum(1) for v in vectors], 1
                )
            return t.detach(), forms.sum(1, keepdim=True) if self.probes is None else forms

        return by_products


@dataclass
class _DensityEvaluator:
    """The prediction for a state (x, α ℓ), from T and its trace; coefficients: α, σ and (a, b) of T for each evaluation."""

    model: WithDensity
    traced: Traced
    coefficients: Sequence[tuple[Tensor, ...]]
    counter: Counter
    passes_through: bool = False

    def __call__(self, x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor:
        alpha, sigma, a, b = self.coefficients[i]
        t, trace = self.traced(self.model.x_of(x), i)
        m = torch.cat([t.flatten(1), -alpha * trace - sigma / alpha * x[:, self.model.d :]], 1)
        return torch.add(a * x, b * m, out=out)


def normal(x: Tensor, sigma: float) -> Tensor:
    """log N(x; 0, σ² I), (batch,), for x (batch, *shape)."""
    x = x.flatten(1) / sigma
    return -0.5 * x.square().sum(1) - x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))


def random_signs(probes: int, like: Tensor, seed: int | Sequence[int] = 0) -> Tensor:
    """Independent signs, (probes, *like.shape), float64 on the CPU; those of row i are of seed + i, or seed[i], in any batch."""
    if probes < 1:
        raise InputError(f"Hutchinson's estimate takes at least 1 probe, not {probes}; 0 asks log_likelihood for the exact trace")
    size = (probes, *like.shape[1:])
    signs = [torch.randint(2, size, generator=torch.Generator().manual_seed(one)) for one in seeds_of(seed, len(like))]
    return 2 * torch.stack(signs, 1).double() - 1


def dequantised(pixels: NDArray[np.uint8], seed: int | Sequence[int] = 0) -> Tensor:
    """(pixels + u − ½)/127.5 − 1, uint8 (n, h, w, c) -> float64 (n, c, h, w), u uniform on [0, 1) by seed + i, or seed[i]."""
    x = rearrange(torch.from_numpy(pixels), "n h w c -> n c h w").double()
    generators = [torch.Generator().manual_seed(one) for one in seeds_of(seed, len(x))]
    u = torch.stack([torch.rand(x.shape[1:], generator=generator, dtype=x.dtype) for generator in generators])
    return (x + u - 0.5) / LEVELS - 1
