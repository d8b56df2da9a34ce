"""The options of `compare`, in the groups of its help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from experiments.common.options import COUNT, SEED, FileName, Numbers, as_one, path, together
from experiments.sampling import options, source_options

if TYPE_CHECKING:  # --help does not wait for torch
    from experiments.comparison.problem import Settings
    from experiments.sampling.recipe import Recipe
    from experiments.sampling.source import Source


class Tolerance(click.ParamType):
    """A number from 1e-13 to 1, or auto."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.FloatRange(1e-13, 1, max_open=True).convert(value, param, ctx)


def settings(source: Source, n: int, seed: int, label: str | None, recipe: Recipe, denoise: bool, batch: int) -> Settings:
    """The Settings of the options."""
    from experiments.comparison.problem import Settings

    return Settings(source, n, seed, label, recipe, denoise, batch)


comparison_options = together(
    cloup.option_group(
        "What is compared",
        source_options.model,
        cloup.option(
            "--solvers",
            default="ddim,dpm2,dpm3,dpmpp2m,dpmpp3m,unipc2,unipc3,deis-rho,ipndm,heun",
            show_default=True,
            help="Names that `solvers` lists, with options as unipc3(start=single); or all.",
        ),
        cloup.option(
            "--nfe", type=Numbers(), default="5,6,8,10,12,15,20,30,50", show_default=True, help="Evaluations per image."
        ),
        cloup.option(
            "--grids",
            default="logsnr,time,quadratic,karras",
            show_default=True,
            help="Names of grids, and optimal, which is found for the model and each solver and NFE.",
        ),
        cloup.option(
            "--rtol",
            default="0.1,0.03,0.01,0.003,0.001,0.0001",
            show_default=True,
            help="Tolerances that adaptive solvers are run at; they have no NFE to set.",
        ),
        options.denoise,
    ),
    source_options.pipeline_group,
    cloup.option_group(
        "What it is measured on",
        cloup.option("--n", type=COUNT, default=32, show_default=True, help="How many samples."),
        cloup.option(
            "--seed",
            type=SEED,
            default=0,
            show_default=True,
            help="Seed of the first sample; sample i has seed + i.",
        ),
        options.label,
        cloup.option(
            "--tolerance",
            type=Tolerance(),
            help="Of the reference solution; auto: as loose as the contenders allow. [default: 1e-8; auto for a pipeline]",
        ),
        cloup.option(
            "--features",
            type=click.Choice(["auto", "classifier", "inception", "none"]),
            default="auto",
            show_default=True,
            help="Also compare images in these features; auto: the classifier if the images have its size; none: do not.",
        ),
        cloup.option(
            "--similarity",
            type=click.Choice(["auto", "ssim", "lpips", "both", "none"]),
            default="auto",
            show_default=True,
            help="Also compare images pair by pair; auto: by SSIM where a model of latents decodes them; lpips is an extra.",
        ),
        cloup.option(
            "--data",
            type=FileName(str),
            metavar="PATH|fashion-train",
            help="Also measure the Fréchet distance from these images, given as to `evaluate --reference`.",
        ),
    ),
    options.recipe_group(cloup.option("--batch", type=COUNT, default=32, show_default=True, help="Samples at a time.")),
    cloup.option_group(
        "Where it goes",
        path("--out", help="The folder of rows, pictures and report. [default: results/compare- and the model's name]"),
        cloup.option("--overwrite", is_flag=True, help="Discard existing rows."),
    ),
    as_one("settings", settings),
)
