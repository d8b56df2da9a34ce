"""How alike two images are to the eye, pair by pair.

    ssim     the structural similarity index (Wang et al., 2004), by torchmetrics: 1 for equal images
    lpips    the learned perceptual distance (Zhang et al., 2018) on AlexNet, by the package lpips: 0 for equal images

Images are (n, 1 or 3, height, width) in [−1, 1]; a video, (n, frames, 3, height, width), counts as its frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffode.errors import InputError, in_words

AUTO, NONE, BOTH = "auto", "none", "both"


@dataclass(frozen=True)
class Similarity:
    """of_pairs: images, others -> a number for each pair, (n,). least: the fewest pixels per side that it takes."""

    name: str
    least: int
    of_pairs: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    @torch.no_grad()
    def mean(self, images: Tensor, others: Tensor, batch: int = 32) -> float:
        """The mean over pairs, of frames too."""
        pairs = [x.float().clamp(-1, 1).flatten(0, -4) for x in (images, others)]
        parts = zip(*(x.split(batch) for x in pairs), strict=True)
        return float(torch.cat([self.of_pairs(*part).flatten() for part in parts]).double().mean())


def ssim() -> Similarity:
    """InputError where torchmetrics is not installed."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise InputError(f"ssim needs torchmetrics ({in_words(error)}): pip install 'diffode[lpips]'") from error

    def of_pairs(images: Tensor, others: Tensor) -> Tensor:
        # in [0, 1], since the index is of intensities, of which none is negative
        return structural_similarity_index_measure((images + 1) / 2, (others + 1) / 2, data_range=1.0, reduction="none")

    return Similarity("ssim", 11, of_pairs)  # its window has 11 pixels


def lpips() -> Similarity:
    """InputError where lpips or torchvision is not installed, and where the weights of AlexNet cannot be fetched."""
    try:
        import lpips as package

        network = package.LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError, RuntimeError) as error:  # torchvision must fit torch
        raise InputError(
            f"lpips needs the package lpips and torchvision ({in_words(error)}): pip install 'diffode[lpips]'"
        ) from error

    def of_pairs(images: Tensor, others: Tensor) -> Tensor:
        return network(*(x.expand(-1, 3, -1, -1) for x in (images, others)))

    return Similarity("lpips", 32, of_pairs)


SIMILARITIES = {"ssim": ssim, "lpips": lpips}


def choose(name: str, shape: tuple[int, ...], decoded: bool) -> tuple[Similarity, ...]:
    """The similarities that a name stands for, for images of this shape; "auto": ssim, if they are decoded, where it can be had.

    InputError for one that is not installed, and for what is no image or too small.
    """
    if name == NONE or (name == AUTO and not decoded):
        return ()
    try:
        chosen = tuple(SIMILARITIES[each]() for each in SIMILARITIES if name in (each, BOTH) or (name, each) == (AUTO, "ssim"))
        for each in chosen:
            if len(shape) < 3 or shape[-3] not in (1, 3) or min(shape[-2:]) < each.least:
                raise InputError(
                    f"{each.name} takes images of at least {each.least}×{each.least}, not {shape}: choose no `similarity` (none)"
                )
    except InputError:
        if name == AUTO:
            return ()
        raise
    return chosen
