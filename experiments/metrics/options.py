"""The options of `evaluate`, in the groups of its help."""

from __future__ import annotations

import click
import cloup

from experiments.common.options import COUNT, FileName, path, together
from experiments.sampling import options

evaluation_options = together(
    cloup.option_group(
        "What is measured",
        cloup.option(
            "--reference",
            type=FileName(str),
            default="fashion-train",
            show_default=True,
            metavar="PATH|fashion-train",
            help="What they are compared with: an .npz of images or of mu and sigma, a folder, or the 60,000 training images.",
        ),
        cloup.option("--features", type=click.Choice(["classifier", "inception"]), default="classifier", show_default=True),
        cloup.option("--n", type=COUNT, help="Only the first N images. [default: all]"),
        options.device,
    ),
    cloup.option_group(
        "Where it goes",
        path("--json", metavar="FILE.json", help="Write the numbers, and all that they are relative to."),
        options.overwrite,
    ),
)
