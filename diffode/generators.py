"""Noise of torch.Generators, as pipelines of diffusers draw it: in order, each generator advanced by what was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffode.errors import InputError


class GeneratorNoise:
    """noise(draw, like): torch.randn(like.shape, generator=g) for one generator; for a list, row i is that of generators[i].

    The first draw that is asked for, whatever its index, is the first that a generator makes, and the generator is left where the
    last ended, so that its next use goes on from there. An earlier draw, as a repeated run asks for it, starts from where the
    generators were at first: a draw is the same tensor each time. It is drawn in float32 on the generator's device, and moved
    to the dtype and device of `like`. The convention is that of diffusers.utils.torch_utils.randn_tensor.
    InputError for another number of generators than `like` has rows.
    """

    def __init__(self, generators: torch.Generator | Sequence[torch.Generator]) -> None:
        self.alone = isinstance(generators, torch.Generator)
        self.generators = [generators] if isinstance(generators, torch.Generator) else list(generators)
        self._states = [generator.get_state() for generator in self.generators]
        self._first: int | None = None
        self._drawn = -1
        self._buffer = torch.empty(0)

    def __call__(self, draw: int, like: Tensor) -> Tensor:
        if not self.alone and len(like) != len(self.generators):
            raise InputError(f"{len(self.generators)} generators for a batch of {len(like)}")
        if self._first is None or draw < self._first:
            self._first = draw
            self._rewind()
        elif draw < self._drawn or self._buffer.shape != like.shape:
            self._rewind()
        while self._drawn < draw:
            self._buffer = self._next(like)
            self._drawn += 1
        return self._buffer.to(like, copy=True)

    def _rewind(self) -> None:
        """To before the first draw."""
        assert self._first is not None
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)
        self._drawn = self._first - 1

    def _next(self, like: Tensor) -> Tensor:
        """The next draw of all rows."""
        if self.alone:
            (generator,) = self.generators
            return torch.randn(like.shape, generator=generator, device=generator.device)
        rows = [torch.randn(like.shape[1:], generator=generator, device=generator.device) for generator in self.generators]
        return torch.stack([row.to(like.device) for row in rows]) if rows else torch.empty(like.shape)
