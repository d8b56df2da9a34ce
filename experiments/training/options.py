"""The options of `train`, in the groups of its help."""

from __future__ import annotations

import click
import cloup

from experiments.common.options import COUNT, SEED, FileName, OutputName, together
from experiments.sampling.options import device

training_options = together(
    cloup.option_group(
        "The run",
        cloup.option("--out", type=OutputName(), default="runs/train", show_default=True, help="The run's folder."),
        cloup.option("--resume", is_flag=True, help="Go on from the folder's last checkpoint."),
        cloup.option(
            "--images",
            type=click.IntRange(1),
            default=1_000_000,
            show_default=True,
            help="Stop after so many training images; may be raised on --resume.",
        ),
        cloup.option(
            "--every",
            type=click.IntRange(1),
            default=50_000,
            show_default=True,
            help="Images between checkpoints and sample grids.",
        ),
        device,
        cloup.option("--bf16", is_flag=True, help="Autocast the network to bfloat16; twice as fast where the CPU or GPU has it."),
    ),
    cloup.option_group(
        "What is learned",
        cloup.option(
            "--data",
            "--data-dir",
            "data_dir",
            type=FileName(str),
            metavar="PATH|emoji",
            help="idx files, a folder of images, an .npz, or emoji. [default: Fashion-MNIST from Debian's package]",
        ),
        cloup.option("--schedule", default="ddpm_linear", show_default=True),
        cloup.option("--predicts", default="velocity", show_default=True, help="noise, data, velocity, flow or edm."),
        cloup.option(
            "--gamma",
            type=click.Choice(["simple", "native"]),
            default="simple",
            show_default=True,
            help="γ of L_γ: 1 (L_simple), or such that the plain error of the prediction counts.",
        ),
        cloup.option("--drop-label", default=0.1, show_default=True, help="How often the label is dropped, for guidance."),
    ),
    cloup.option_group(
        "The network",
        cloup.option("--width", default=48, show_default=True, help="Channels of the U-Net's first level."),
        cloup.option("--multipliers", default="1,2", show_default=True, help="Widths of its levels, in units of --width."),
        cloup.option("--blocks", default=1, show_default=True, help="Residual blocks per level."),
        cloup.option("--attention", default="7", show_default=True, help="Resolutions with self-attention."),
        cloup.option("--patch", default=2, show_default=True, help="Space-to-depth factor at the input."),
    ),
    cloup.option_group(
        "How it is trained",
        cloup.option("--batch", type=COUNT, default=128, show_default=True),
        cloup.option("--lr", default=1e-3, show_default=True, help="Learning rate of AdamW."),
        cloup.option("--seed", type=SEED, default=0, show_default=True),
    ),
)
