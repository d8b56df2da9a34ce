"""What a person looks at of samples: images that `decode` of their model makes of latents, or the samples themselves.

Images are (n, 3, h, w) in [−1, 1], those of a video (n, frames, 3, h, w). Latents are compared and kept as they are; pictures are
of images, and a video's is of four of its frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffode.calling import weights_of
from diffode.errors import InputError, in_words
from diffode.model import EpsModel
from diffode.models.pretrained import Pretrained
from experiments.common.commands import is_out_of_memory


@torch.no_grad()
def decoded(model: EpsModel, x: Tensor, batch: int) -> Tensor:
    """The images of x (n, *shape), `batch` of them at a time, in float32 on the CPU; x itself of a model without `decode`.

    InputError for a `decode` that fails, or whose images are no such tensor.
    """
    if model.decode is None:
        return x
    device = next((weight.device for weight in weights_of(model.decode)), torch.device("cpu"))
    parts = []
    for part in x.float().to(device).split(batch):
        try:
            images = model.decode(part).float().cpu()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"`decode` of the model fails for {tuple(part.shape)}: {in_words(error)}") from error
        if images.ndim not in (4, 5) or len(images) != len(part) or images.shape[-3] not in (1, 3):
            raise InputError(
                f"`decode` of the model makes {tuple(images.shape)} of {tuple(part.shape)}, where (batch, 3, height, width) is "
                "expected, or (batch, frames, 3, height, width)"
            )
        parts.append(images)
    return torch.cat(parts)


def image_of(loaded: Pretrained) -> tuple[int, ...]:
    """The shape of what a person looks at of one sample, by the image of zeros."""
    if loaded.model.decode is None:
        return loaded.image
    return tuple(decoded(loaded.model, torch.zeros(1, *loaded.image), 1).shape[1:])
