"""A picture of the report on a pipeline of diffusers: python -m docs.draw_compare_pipeline writes docs/compare_pipeline.png.

The pipeline is the tests' tiny Stable Diffusion, whose weights are random: its images mean nothing, and its numbers are those of
the run that draws them. Takes diffusers, selenium and Chromium.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from experiments.comparison.browser import save_screenshot
from experiments.comparison.cells import make_cells
from experiments.comparison.compare import compare_solvers
from experiments.comparison.problem import Settings
from experiments.sampling.source import Call, Source
from tests import pipelines

OUT = Path(__file__).resolve().parent / "compare_pipeline.png"
PROMPTS = ("a red bicycle", "a blue boat on the sea")
SOLVERS, GRIDS, NFE = ("ddim", "dpmpp2m", "unipc3", "heun"), ("logsnr", "time"), (5, 8, 10, 20)
SMOOTH = 1e-2  # of the clock's weights, which as they are drawn make a network that no solver follows


def main() -> None:
    """Compare on the pipeline, in a folder of its own, and photograph the page."""
    pipeline = pipelines.build("sd")
    with torch.no_grad():
        pipeline.unet.time_embedding.linear_1.weight.mul_(SMOOTH)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pipeline.save_pretrained("tiny-stable-diffusion")
        settings = Settings(Source("tiny-stable-diffusion", Call(PROMPTS, guidance_scale=5.0)), n=8)
        compare_solvers(settings, make_cells(SOLVERS, GRIDS, NFE), Path("compared"))
        save_screenshot(Path("compared/report.html"), OUT)


if __name__ == "__main__":
    main()
