"""Gaussian mixtures: exact ε, density and samples, for tests and experiments that need the exact solution.

    p(x0) = Σ_k π_k N(μ_k, Σ_k),    Σ_k = U_k diag(s_k) U_kᵀ + v_k I,    U_k (pixels, rank) orthonormal

Diffused, it stays such a mixture. In y = x/α, with σ̄ = e^(−λ), component k has covariance Σ_k + σ̄² I; with d_k = y − μ_k,
p_k = U_kᵀ d_k and responsibilities r_k, Bayes' rule gives

    ε  = σ̄ Σ r_k [ d_k/(v + σ̄²) − U_k s/((v + σ̄²)(s + v + σ̄²)) p_k ]
    x̂0 =    Σ r_k [ μ_k + v/(v + σ̄²) d_k + U_k s σ̄²/((v + σ̄²)(s + v + σ̄²)) p_k ]

and the velocity α ε − σ x̂0, from which either follows without cancellation at both ends, is σ times the difference of the
two sums: one pass over the U_k and no pixels × pixels matrix. With q_k = (Σ_k + σ̄² I)^(−1) d_k and q = Σ r_k q_k, ε is σ̄ q, the
velocity is σ ((1 + σ̄²) q − y), and since the gradient of r_k in y is r_k (q − q_k), the velocity has the divergence

    tr ∂(α ε − σ x̂0)/∂x = σ̄ [ (1 + σ̄²) Σ r_k (tr (Σ_k + σ̄² I)^(−1) − |q_k − q|²) − pixels ]

A component carries a class label, so the mixture can be asked for one class or for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.noise import LAST_SEED

ALPHA = {
    "vp": lambda lam: torch.sigmoid(2 * lam).sqrt(),
    "ve": torch.ones_like,
    "flow": torch.sigmoid,
}  # schedule.PATHS in torch, from λ to α
ROWS = 64  # samples per matrix product; fewer suit a small mixture better
RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Components:
    """The components diffused to one λ per sample, seen from a chunk of samples: all (rows, components, ...)."""

    p: Tensor  # Uᵀ (y − μ), without forming y − μ, (rows, components, rank)
    log_weight: Tensor  # log π_k N(y; μ_k, Σ_k + σ̄² I), (rows, components)
    spread: Tensor  # v + σ̄², (rows, components)
    spread_along: Tensor  # s + v + σ̄², (rows, components, rank)
    outside: Tensor  # |y − μ|² less |p|², (rows, components)

    @property
    def r(self) -> Tensor:
        """The responsibilities, (rows, components)."""
        likely = torch.exp(self.log_weight - self.log_weight.amax(1, keepdim=True))
        return likely / likely.sum(1, keepdim=True)  # torch.softmax starts all threads for any size, which costs more


class Mixture(nn.Module):
    """A mixture as a network: `mixture(x, lam, y)` is the velocity α ε − σ x̂0 of x (batch, *image), on the path `path`.

    tensors: log_pi (k,), mean (k, pixels), basis (k, pixels, rank), along (k, rank) = s, floor (k,) = v, label (k,). They may
    be float32; the basis is orthonormalised in float64, and everything is computed in `dtype`. Every matrix product has `rows`
    rows, padded if need be, so that a sample's bits do not depend on its batch.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        image: tuple[int, ...],
        path: str = "vp",
        dtype: torch.dtype = torch.float32,
        rows: int = ROWS,
    ) -> None:
        super().__init__()
        self.image, self.path, self.rows = tuple(image), path, rows
        exact = {name: tensor.double() for name, tensor in tensors.items()}
        basis = torch.linalg.qr(exact["basis"]).Q
        self.label = nn.Buffer(tensors["label"])
        self.log_pi, self.mean, self.along, self.floor = (
            nn.Buffer(exact[name].to(dtype)) for name in ("log_pi", "mean", "along", "floor")
        )
        self.basis = nn.Buffer(rearrange(basis, "k pixels rank -> pixels (k rank)").to(dtype).contiguous())
        self.offset = nn.Buffer(torch.einsum("kpr,kp->kr", basis, exact["mean"]).to(dtype))

    def forward(self, x: Tensor, lam: Tensor, y: Tensor | None = None) -> Tensor:
        return self._by_rows(self._velocity, x, lam, y).view_as(x)

    def log_density(self, x: Tensor, lam: Tensor, y: Tensor | None = None) -> Tensor:
        """log p_λ(x), or log p_λ(x | y), natural logarithm, (batch,), for x (batch, *image) and lam (batch,)."""

        def density(x: Tensor, lam: Tensor, mask: Tensor) -> Tensor:
            alpha = ALPHA[self.path](lam)
            log_weight = self._components(x / alpha[:, None], lam, mask).log_weight
            joint = torch.logsumexp(log_weight, 1, keepdim=True) - x.shape[1] * alpha.log()[:, None]
            return joint - torch.logsumexp(mask + self.log_pi, 1, keepdim=True)

        return self._by_rows(density, x, lam, y).squeeze(1)

    def divergence(self, x: Tensor, lam: Tensor, y: Tensor | None = None) -> Tensor:
        """tr ∂(α ε − σ x̂0)/∂x, (batch,): the divergence of `forward` at the same x (batch, *image), lam and y (batch,)."""
        return self._by_rows(self._divergence, x, lam, y).squeeze(1)

    def sample(self, n: int, seed: int = 0, y: int | None = None) -> Tensor:
        """n exact samples of the data distribution or of class y, (n, *image); InputError for an unknown label."""
        n, seed = checks.whole("n", n, 1), checks.whole("seed", seed, 0, LAST_SEED)
        generator = torch.Generator().manual_seed(seed)
        pi = self.log_pi.exp().cpu() * (torch.ones(()) if y is None else self.label.cpu() == y)
        if not pi.any():
            raise InputError(f"label {y} is out of range: this mixture knows 0 to {int(self.label.max())}")
        k = torch.multinomial(pi, n, replacement=True, generator=generator).to(self.mean.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)

        along = self.along[k].sqrt() * normal(n, self.along.shape[1])
        basis = self.basis.view(len(self.basis), *self.along.shape)
        x0 = (
            self.mean[k]
            + torch.einsum("pnr,nr->np", basis[:, k], along)
            + self.floor[k, None].sqrt() * normal(n, self.mean.shape[1])
        )
        return x0.view(n, *self.image)

    def pooled(self, factor: int) -> Mixture:
        """The mixture of these images (channels, height, width) with factor × factor pixels averaged into one.

        With P the average, P Pᵀ = I/factor², so component k is N(P μ, P U diag(s) (P U)ᵀ + v/factor² I): the result is exact, and
        a cheaper model. InputError unless factor divides height and width.
        """
        if checks.whole("factor", factor) < 1 or len(self.image) != 3 or any(size % factor for size in self.image[1:]):
            raise InputError(f"images {self.image} cannot be averaged over {factor} × {factor} pixels")
        basis = rearrange(self.basis, "pixels (k rank) -> k rank pixels", k=len(self.mean)) * self.along.sqrt()[:, :, None]

        def average(images: Tensor) -> Tensor:
            return avg_pool2d(images.reshape(-1, *self.image), factor).reshape(*images.shape[:-1], -1)

        along, scale, _ = torch.linalg.svd(average(basis).mT, full_matrices=False)
        tensors = {"mean": average(self.mean), "basis": along, "along": scale**2, "floor": self.floor / factor**2}
        channels, height, width = self.image
        image = (channels, height // factor, width // factor)
        return Mixture({**tensors, "log_pi": self.log_pi, "label": self.label}, image, self.path, self.mean.dtype, self.rows)

    def _by_rows(self, function: RowFunction, x: Tensor, lam: Tensor, y: Tensor | None) -> Tensor:
        """function(x, lam, mask) over chunks of exactly `self.rows` rows; x as (rows, pixels)."""
        n = len(x)
        x, lam = x.reshape(n, -1), lam.to(x.dtype)
        allowed = (
            x.new_zeros(n, len(self.label)) if y is None else torch.where(y[:, None] == self.label, 0.0, -torch.inf).to(x.dtype)
        )
        if pad := -n % self.rows:
            x, lam, allowed = (torch.cat([value, value[-1:].expand(pad, *value.shape[1:])]) for value in (x, lam, allowed))
        chunks = zip(*(value.split(self.rows) for value in (x, lam, allowed)), strict=True)
        return torch.cat([function(*chunk) for chunk in chunks])[:n]

    def _components(self, y: Tensor, lam: Tensor, allowed: Tensor) -> Components:
        variance = torch.exp(-2 * lam)[:, None]
        (k, pixels), rank = self.mean.shape, self.along.shape[1]
        along = (y @ self.basis).view(-1, k, rank) - self.offset
        squared = y.square().sum(1, keepdim=True) - 2 * y @ self.mean.T + self.mean.square().sum(1)
        spread, spread_along = self.floor + variance, self.along + self.floor[:, None] + variance[:, :, None]
        outside = (squared - along.square().sum(2)).clamp(min=0)
        log_det = spread_along.log().sum(2) + (pixels - rank) * spread.log()
        energy = outside / spread + (along.square() / spread_along).sum(2) + log_det
        log_weight = allowed + self.log_pi - 0.5 * (energy + pixels * np.log(2 * np.pi))
        return Components(along, log_weight, spread, spread_along, outside)

    def _velocity(self, x: Tensor, lam: Tensor, allowed: Tensor) -> Tensor:
        alpha = ALPHA[self.path](lam)[:, None]
        variance = torch.exp(-2 * lam)[:, None]
        y = x / alpha
        c = self._components(y, lam, allowed)
        r = c.r
        along = r[:, :, None] * self.along * (1 + variance[:, :, None]) / (c.spread[:, :, None] * c.spread_along) * c.p
        outside = r * (1 - self.floor) / c.spread
        difference = outside.sum(1, keepdim=True) * y - (outside + r) @ self.mean - along.flatten(1) @ self.basis.T
        return alpha * variance.sqrt() * difference

    def _divergence(self, x: Tensor, lam: Tensor, allowed: Tensor) -> Tensor:
        variance = torch.exp(-2 * lam)[:, None]
        y = x / ALPHA[self.path](lam)[:, None]
        c = self._components(y, lam, allowed)
        r, pixels = c.r, y.shape[1]
        inverse, inverse_along = 1 / c.spread, 1 / c.spread_along
        lost = self.along * inverse[:, :, None] * inverse_along  # 1/(v + σ̄²) − 1/(s + v + σ̄²)
        q = (r * inverse).sum(1, keepdim=True) * y - (r * inverse) @ self.mean
        q = q - (r[:, :, None] * lost * c.p).flatten(1) @ self.basis.T
        squared = c.outside * inverse.square() + (c.p * inverse_along).square().sum(2)  # |q_k|²
        scattered = (r * squared).sum(1) - q.square().sum(1)
        excess = pixels * (1 - self.floor) * inverse - (1 + variance) * lost.sum(2)  # (1 + σ̄²) tr (Σ + σ̄² I)^(−1) − pixels
        return variance.sqrt() * ((r * excess).sum(1) - (1 + variance[:, 0]) * scattered)[:, None]


def fit(
    x0: Tensor, labels: NDArray[np.int64] | None = None, per_class: int = 3, rank: int = 24, iterations: int = 10, seed: int = 0
) -> dict[str, Tensor]:
    """Fit `per_class` components to each class by EM for mixtures of probabilistic PCA (Tipping and Bishop, 1999).

    x0: data (n, *shape), labels: (n,), without which all is one class. It starts from k-means. Returns the float32 tensors of a
    Mixture. InputError for sizes that make no mixture, and for a class with too few images.
    """
    images = check_state("x0", x0).reshape(len(x0), -1).double().cpu().numpy()
    per_class, iterations = checks.whole("per_class", per_class, 1), checks.whole("iterations", iterations, 1)
    rank = checks.whole("rank", rank, 1, images.shape[1] - 1)
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    parts = []
    for label in np.unique(labels):
        x = images[labels == label]
        if len(x) < 2 * per_class * rank:
            raise InputError(
                f"class {label} has {len(x)} images, too few for {per_class} components of rank {rank}: fit fewer or smaller ones"
            )
        _, assigned = kmeans2(x, per_class, minit="++", seed=np.random.default_rng([seed, label]))
        responsibility = np.eye(per_class)[assigned]
        for _ in range(iterations):
            part = _maximise(x, responsibility, rank, len(images), int(label))
            mixture = Mixture(part, (images.shape[1],), dtype=torch.float64)
            log_weight = log_weights(mixture, torch.from_numpy(x))
            responsibility = torch.softmax(log_weight, 1).numpy()
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _maximise(x: np.ndarray, responsibility: np.ndarray, rank: int, total: int, label: int) -> dict[str, Tensor]:
    """The M step: each component's weight, mean, leading eigenvectors, and the mean of the remaining variance as floor."""
    rows = []
    for r in responsibility.T:
        mean = r @ x / r.sum()
        d = (x - mean) * np.sqrt(r)[:, None]
        covariance = d.T @ d / r.sum()
        values, vectors = eigsh(covariance, rank, v0=np.ones(len(mean)))
        floor = (np.trace(covariance) - values.sum()) / (len(mean) - rank)
        rows.append((np.log(r.sum() / total), mean, vectors, values - floor, floor, label))
    names = ("log_pi", "mean", "basis", "along", "floor", "label")
    columns = (np.stack([np.asarray(value) for value in column]) for column in zip(*rows, strict=True))
    tensors = {name: torch.from_numpy(column) for name, column in zip(names, columns, strict=True)}
    return {name: tensor if name == "label" else tensor.float() for name, tensor in tensors.items()}


def log_weights(mixture: Mixture, x: Tensor) -> Tensor:
    """log π_k N(x; μ_k, Σ_k) of undiffused data x (rows, pixels), (rows, components)."""
    lam = x.new_full((len(x),), torch.inf)
    return mixture._components(x, lam, x.new_zeros(1, len(mixture.label))).log_weight
