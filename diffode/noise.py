"""Noise by seed: the same, to the bit, for an image whatever its batch, the device, or the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffode.checks import whole, wrong
from diffode.errors import InputError

MOST_SEEDS = 10_000_000  # of one batch
LAST_SEED = 2**32 - 1  # torch's CPU generator distinguishes no others
Noise = Callable[[int, Tensor], Tensor]  # (draw, like) -> N(0, I) of the shape, dtype and device of `like`


class SeededNoise:
    """noise(draw, like): row i is the draw-th torch.randn of a CPU generator with seed seeds[i]; draw 0 is x_T.

    like: a state (batch, *shape), whose dtype and device the noise gets; it is drawn in float32 on the CPU whatever these are, so
    a seed means the same noise everywhere. An earlier draw restarts the generators; the same draw gives the same tensor again.
    InputError for a seed that is no whole number from 0 to 2^32 − 1, and for another number of seeds than `like` has rows.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = _checked(seeds)
        self._drawn = -1
        self._generators: list[torch.Generator] = []
        self._buffer = torch.empty(0)

    def __call__(self, draw: int, like: Tensor) -> Tensor:
        if len(like) != len(self.seeds):
            raise InputError(f"{len(self.seeds)} seeds for a batch of {len(like)}")
        if draw < self._drawn or self._drawn < 0 or self._buffer.shape != like.shape:
            self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
            self._buffer = torch.empty(like.shape, dtype=torch.float32)
            self._drawn = -1
        for _ in range(draw - self._drawn):
            for row, generator in zip(self._buffer, self._generators, strict=True):
                torch.randn(row.shape, generator=generator, out=row)
        self._drawn = draw
        return self._buffer.to(like, copy=True)


def seeds_of(seed: int | Sequence[int], n: int) -> list[int]:
    """n seeds: seed, seed + 1, ...; or those of a sequence, InputError unless it has n, all from 0 to 2^32 − 1."""
    whole("the batch", n, 0, MOST_SEEDS)
    if not isinstance(seed, Iterable) or getattr(seed, "ndim", 1) == 0:
        first = whole("a seed", seed, 0, LAST_SEED)
        return _checked(range(first, first + n))
    seeds = _checked(seed)
    if len(seeds) != n:
        raise InputError(f"{len(seeds)} seeds were given for {n} images")
    return seeds


def _checked(seeds: Any) -> list[int]:
    """The seeds, each a whole number that torch's generators take."""
    if isinstance(seeds, str) or not hasattr(seeds, "__len__"):
        raise wrong("seed", "a whole number, or a list of them", seeds)
    return [whole("a seed", seed, 0, LAST_SEED) for seed in seeds]
