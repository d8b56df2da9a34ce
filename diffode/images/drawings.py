"""Samples as pictures, whatever they are: what a reader can see of x (n, *shape).

    (1 or 3, h, w)               images, clipped to [−1, 1]
    (), (1,)                     numbers: a histogram of all samples
    (2,)                         points: a scatter plot of all samples
    (k, 2), (k, 3), k > 3        a cloud of points for each sample; those in space are seen from above a corner
    (k,), (1 to 8, length)       lines, one for each channel
    (c, h, w), (c > 8, length)   a map: three channels as red, green and blue, two as their mean
    (frames, c, h, w)            four frames of a video; or (c, frames, h, w), for c = 1 or 3

Histograms, points and lines are drawn over those of a reference, which are grey, and within its range. Maps are scaled to [−1, 1]
by the quantile 0.995 of |reference|.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from diffode.images.datasets import to_pixels

WIDTH = 140  # of a drawing, in pixels
MOST_LINES, MOST_FRAMES = 8, 4
LARGEST_MAP = 256  # pixels per side
FINE = 3  # times larger is a drawing made, then reduced, so that lines are smooth
GREY, FRAME = (196, 196, 196), (226, 226, 226)
COLOURS = (31, 96, 180), (214, 92, 32), (44, 140, 80), (160, 60, 160), (190, 150, 20), (20, 150, 170), (90, 90, 90)
BINS = 24  # of a histogram
FLAT, MARGIN = 0.6, 1.12  # height of what is no points, to its width; size of a window, to that of what it shows
CORNER = np.array([[0.87, -0.35], [-0.87, -0.35], [0.0, 0.87]])  # (x, y, z) to the plane, seen from above (1, 1, z)
Points = NDArray[np.float64]


def are_images(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are images, (1 or 3, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def are_drawn_together(shape: Sequence[int]) -> bool:
    """Whether one picture shows all samples: numbers and points."""
    return tuple(shape) in ((), (1,), (2,))


def are_drawn(shape: Sequence[int]) -> bool:
    """Whether they are drawn over a reference, as histograms, points or lines, and have no pixels of their own."""
    return len(shape) < 2 or (len(shape) == 2 and (shape[0] <= MOST_LINES or _are_clouds(shape)))


def size_of(shape: Sequence[int], width: int = WIDTH) -> tuple[int, int]:
    """(height, width) of a picture of samples of this shape, in pixels."""
    if are_drawn(shape):
        return (width if _are_points(shape) else round(FLAT * width)), width
    height, wide = _maps(torch.zeros(()).expand(1, *shape)).shape[2:]
    return min(height, LARGEST_MAP), min(wide, LARGEST_MAP)


def what_is_seen(shape: Sequence[int]) -> str:
    """What a map shows of samples of this shape, in words."""
    if len(shape) < 3:
        return "all channels, as rows of a map"
    frames = "some frames, of each " if len(shape) > 3 else ""
    channels = _frames(torch.zeros(()).expand(1, *shape)).shape[2] if frames else shape[0]
    colours = {1: "its one channel", 2: "the mean of both channels", 3: "its three channels"}
    return frames + colours.get(channels, "the first three channels, as red, green and blue")


def tiles(x: Tensor, reference: Tensor | None = None, width: int = WIDTH) -> NDArray[np.uint8]:
    """Pictures of x (n, *shape), uint8 (pictures, height, width, 1 or 3): one for each sample, or one of all.

    reference: (n, *shape), what they are drawn over and scaled by; without it they are scaled by themselves. width: of what is
    drawn; images and maps have their own.
    """
    shape = tuple(x.shape[1:])
    if are_images(shape):
        return to_pixels(x)
    if not are_drawn(shape):
        maps = _maps(x.float() / _scale(x if reference is None else reference))
        return to_pixels(adaptive_avg_pool2d(maps, size_of(shape)))
    behind = None if reference is None else reference.double().cpu().numpy()
    curves = _curves(x.double().cpu().numpy(), behind)
    under = curves[:, :0] if behind is None else _curves(behind, behind)
    low, span = _range(curves if behind is None else under, equal=_are_points(shape))
    height, _ = size_of(shape, width)
    under, curves = ((each - low) / span for each in (under, curves))
    dots = _are_points(shape)
    return np.stack([_draw(one, other, height, width, dots) for one, other in zip(under, curves, strict=True)])


def _are_clouds(shape: Sequence[int]) -> bool:
    """Whether each sample is a set of points in the plane or in space."""
    return len(shape) == 2 and shape[1] in (2, 3) and shape[0] > 3


def _are_points(shape: Sequence[int]) -> bool:
    return tuple(shape) == (2,) or _are_clouds(shape)


def _curves(x: Points, reference: Points | None) -> Points:
    """What is drawn of x (n, *shape): (pictures, curves, points, 2), in units of the data."""
    n, *shape = x.shape
    if tuple(shape) in ((), (1,)):  # a histogram, in the bins of the reference
        edges = np.histogram_bin_edges(x if reference is None else reference, BINS)
        counts, _ = np.histogram(x.clip(edges[0], edges[-1]), edges)
        return np.stack([edges.repeat(2), [0, *counts.repeat(2), 0]], -1)[None, None]
    if tuple(shape) == (2,):
        return x[None, None]
    if _are_clouds(shape):
        return (x @ CORNER if shape[1] == 3 else x)[:, None]
    values = x.reshape(n, -1, shape[-1])
    return np.stack([np.broadcast_to(np.arange(shape[-1]), values.shape), values], -1)


def _range(curves: Points, equal: bool) -> tuple[Points, Points]:
    """The least corner and the size of the window that shows these; equal: in both directions."""
    low, high = curves.min((0, 1, 2)), curves.max((0, 1, 2))
    size = np.where(high > low, high - low, 1.0)
    size = np.full(2, size.max()) if equal else size
    return (low + high - MARGIN * size) / 2, MARGIN * size


def _draw(under: Points, curves: Points, height: int, width: int, dots: bool) -> NDArray[np.uint8]:
    """A picture of curves (curves, points, 2) in [0, 1]², over those of a reference, (height, width, 3)."""
    size = FINE * np.array([width, height])
    image = Image.new("RGB", tuple(size.tolist()), "white")
    pen = ImageDraw.Draw(image)
    coloured = [*((curve, GREY) for curve in under), *zip(curves, itertools.cycle(COLOURS), strict=False)]
    for curve, colour in coloured:
        x, y = np.clip(curve, -0.002, 1.002).T
        points = np.stack([x, 1 - y], -1) * (size - 1)
        radius = FINE * (1.6 if len(points) <= 100 else 1.0)
        if dots or len(points) == 1:
            for left, top in points.tolist():
                pen.ellipse((left - radius, top - radius, left + radius, top + radius), colour)
        else:
            pen.line([tuple(point) for point in points.tolist()], colour, FINE, joint="curve")
    pen.rectangle((0, 0, *(size - 1).tolist()), outline=FRAME, width=FINE)
    return np.asarray(image.reduce(FINE))


def _scale(reference: Tensor) -> float:
    """By what maps are divided: 1 for videos in grey or colour, which are images."""
    shape = tuple(reference.shape[1:])
    if len(shape) > 3 and _frames(reference).shape[2] in (1, 3):
        return 1.0
    return max(float(np.quantile(reference.abs().float().cpu().numpy(), 0.995)), 1e-12)


def _frames(x: Tensor) -> Tensor:
    """Videos (n, ..., c, h, w) as (n, frames, c, h, w); those with their channels first, (n, c, frames, h, w), too."""
    x = x.flatten(1, -4)
    return x.transpose(1, 2) if x.shape[1] in (1, 3) and x.shape[2] not in (1, 3) else x


def _maps(x: Tensor) -> Tensor:
    """x (n, *shape) as images, (n, 1 or 3, height, width)."""
    if x.ndim > 4:
        x = _frames(x)
        chosen = np.linspace(0, x.shape[1] - 1, min(x.shape[1], MOST_FRAMES)).round().astype(int).tolist()
        rows = 2 if len(chosen) == 4 else 1
        x = rearrange(x[:, chosen], "n (r k) c h w -> n c (r h) (k w)", r=rows)
    elif x.ndim == 3:
        x = x[:, None]
    return x[:, :3] if x.shape[1] >= 3 else x.mean(1, keepdim=True)
