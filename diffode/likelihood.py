"""log p(x0) by the change of variables along the probability-flow ODE, by whatever integrates the ODE.

With s² = α² + σ² (1 on the vp path) and T = α ε − σ x̂0 (there the velocity), so that ε = (σ x + α T)/s², a trajectory has

    ℓ = log p_λ(x) + d log s        dℓ/dλ = −tr ∂(dx/dλ)/∂x + d (d log s/dλ) = (α σ/s²) tr ∂T/∂x

for x of d numbers (Chen et al., 2018; Song et al., 2021b, section 4.3): nothing where the data has unit variance. It is one
more coordinate of the same equation, which any solver integrates (density.py).

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
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from diffode import checks
from diffode import grid as grids
from diffode.calling import check_state, weights_of
from diffode.conditions import cloned
from diffode.density import WithDensity
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import seeds_of

MOST_PROBES = 10_000  # coordinates of the state
LEVELS = 127.5  # of a pixel, in a unit of x
Density = Callable[[Tensor, float], Tensor]  # (x, λ) -> log p_λ(x), (batch,)


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


@torch.inference_mode(False)  # whose tensors take no gradients, of which the trace is made
def log_likelihood(
    model: EpsModel,
    x0: Tensor,
    encode: Callable[..., Integrated],
    *,
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    grid: str | Sequence[float] = "logsnr",
    end: Density | None = None,
    differentiable: bool = False,
    **how: Any,
) -> Likelihood:
    """log p(x0) for x0 (batch, *shape), as the module docstring says; in float64, with the network in its own dtype.

        log_likelihood(model, x0, solvers.encode, solver="dpm3", nfe=48, probes=4)

    encode: (model, x, grid=grid, **how) -> the state at the noisy end of the grid, for x at its clean end, as solvers.encode.
    probes: of Hutchinson's estimate, those of row i by seed + i, or seed[i], in any batch; each costs about an evaluation more.
    0 is the exact trace. end: log p at the noisy end, if not that of N(0, σ² I). differentiable: gradients of log_p flow to x0,
    which gives the score, and to the network's weights; a planned solver, or an `encode` that takes differentiable=True.

    InputError if log p is not finite, or the integrator stopped early.
    """
    model, x0 = taking_gradients(model), check_state("x0", x0).clone()
    probes = checks.whole("probes", probes, 0, MOST_PROBES)
    checks.function("encode", encode, "a function that integrates, as solvers.encode")
    checks.function("end", end or normal, "a function of (x, λ), or None")
    schedule, d = model.schedule, x0[0].numel()
    lam_t, lam_s = _ends(model, grid)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.path.at(lam_s), schedule.path.at(lam_t)
    signs = random_signs(probes, x0, seed) if probes else None
    flow = WithDensity.of(model, x0.shape[1:], signs, differentiable=checks.flag("differentiable", differentiable))
    how |= {"differentiable": True} if differentiable else {}
    result = encode(flow, flow.join(alpha_s * x0.double(), 0.0, lam_s), grid=grid, **how)
    if not result.finished:
        raise InputError("the integrator stopped before the noisy end, where the density is known: raise max_nfe")
    x, gain = flow.split(result.x, lam_t)
    at_end = normal(x, sigma_t) if end is None else end(x, lam_t)
    scales = math.log(math.hypot(alpha_t, sigma_t)) - math.log(math.hypot(alpha_s, sigma_s)) + math.log(alpha_s)
    log_p = at_end[:, None] - gain + d * scales
    return estimated(log_p, probes, x, result.nfe)


def estimated(log_p: Tensor, probes: int, x: Tensor, nfe: int) -> Likelihood:
    """The Likelihood of log p by every probe, (batch, probes), or by the exact trace, (batch, 1), for 0 probes; InputError for
    what is not finite."""
    if not torch.isfinite(log_p).all():
        raise InputError("log p is not finite: check the checkpoint and x0, or take more evaluations")
    one = log_p.detach()
    stderr = one.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(one[:, 0], math.nan if probes else 0.0)
    return Likelihood(log_p.mean(1), stderr, x, nfe)


def _ends(model: EpsModel, grid: str | Sequence[float]) -> list[float]:
    """The λ of the two ends of the grid."""
    schedule = model.schedule
    given = None if isinstance(grid, str) else checks.numbers("grid", grid, grids.MOST_STEPS + 1, least=2)
    ends = np.array([schedule.lam_min, schedule.lam_max] if given is None else given[[0, -1]])
    return (grids.snap(ends, schedule) if model.clock == "label" else ends).tolist()


def taking_gradients(model: EpsModel) -> EpsModel:
    """The model with conditions that were not made under torch.inference_mode; InputError for weights that were."""
    checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
    if any(tensor.is_inference() for module in model.modules for tensor in weights_of(module)):
        raise InputError("the network was made under torch.inference_mode and takes no gradients: make or load it outside")
    return model.replace(condition=cloned(model.condition), guidance=model.guidance and model.guidance.cloned())


def normal(x: Tensor, sigma: float) -> Tensor:
    """log N(x; 0, σ² I), (batch,), for x (batch, *shape)."""
    x = x.reshape(len(x), -1) / sigma
    return -0.5 * x.square().sum(1) - x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))


def random_signs(probes: int, like: Tensor, seed: int | Sequence[int] = 0) -> Tensor:
    """Independent signs, (probes, *like.shape), float64 on the CPU; those of row i are of seed + i, or seed[i], in any batch."""
    size = (checks.whole("probes", probes, 1), *like.shape[1:])
    signs = [torch.randint(2, size, generator=torch.Generator().manual_seed(one)) for one in seeds_of(seed, len(like))]
    return 2 * torch.stack(signs, 1).double() - 1


def dequantised(pixels: NDArray[np.uint8], seed: int | Sequence[int] = 0) -> Tensor:
    """(pixels + u − ½)/127.5 − 1, uint8 (n, h, w, c) -> float64 (n, c, h, w), u uniform on [0, 1) by seed + i, or seed[i]."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise checks.wrong("pixels", "an array of uint8 (n, h, w, c)", pixels)
    x = rearrange(torch.from_numpy(pixels), "n h w c -> n c h w").double()
    generators = [torch.Generator().manual_seed(one) for one in seeds_of(seed, len(x))]
    u = torch.stack([torch.rand(x.shape[1:], generator=generator, dtype=x.dtype) for generator in generators])
    return (x + u - 0.5) / LEVELS - 1
