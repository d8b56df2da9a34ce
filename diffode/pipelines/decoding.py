"""From latents to images by a pipeline's own last lines: it is run again, and its scheduler hands it the latents that are given.

What the pipeline computes before, embeddings and predictions, is not computed again: its modules answer as they did when it was
recorded. So a decoding costs what the pipeline's autoencoder costs, and knows nothing of how latents are scaled or packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffode import checks
from diffode.pipelines.running import run, untouched


class Stepped(tuple[Tensor, Tensor]):
    """What a scheduler's step returns, as a tuple or as an object."""

    @property
    def prev_sample(self) -> Tensor:
        return self[0]


@dataclass(frozen=True, eq=False, repr=False)
class Decode:
    """decode(x): images (batch, 3, h, w) in [−1, 1], or (batch, frames, 3, h, w), of latents x (batch, *shape).

    outputs: what each module of the pipeline returned, in turn. rows: how many latents a run of `call` has. InputError for
    latents of another shape, and where the pipeline fails.
    """

    pipe: Any
    call: Mapping[str, Any]
    outputs: Mapping[nn.Module, Sequence[Any]]
    rows: int
    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        if checks.instance("x", x, Tensor, "latents (batch, *shape)").shape[1:] != self.shape or not len(x):
            raise checks.wrong("x", f"latents (batch, {', '.join(map(str, self.shape))})", tuple(x.shape))
        return torch.cat([self._decoded(part) for part in x.detach().split(self.rows)]).to(x.device)

    def __repr__(self) -> str:
        return f"Decode(of {type(self.pipe).__name__}, shape {self.shape})"

    def _decoded(self, x: Tensor) -> Tensor:
        """Of no more latents than a run has; the rest of the run are copies."""
        filled = x[[min(i, len(x) - 1) for i in range(self.rows)]]

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Stepped:
            ready = filled.repeat(len(sample) // self.rows, *[1] * (x.ndim - 1)).to(sample)
            return Stepped((ready, ready))

        with untouched(self.pipe) as scheduler:
            scheduler.step = step
            for module, answers in self.outputs.items():
                module.forward = partial(_answer, iter(answers), answers[-1])
            images = run(self.pipe, self.call, output_type="np", return_dict=False)[0]
        found = 2 * torch.as_tensor(images)[: len(x)] - 1
        return found.movedim(-1, -3)


def _answer(answers: Iterator[Any], last: Any, *args: Any, **kwargs: Any) -> Any:
    """What a module answered before, in turn, and its last answer from then on."""
    return next(answers, last)
