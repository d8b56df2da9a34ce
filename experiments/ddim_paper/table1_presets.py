"""How Table 1 (experiments/ddim_paper/table1.py) is made for each data set, and what its command line may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffode.errors import InputError
from diffode.models import pretrained


@dataclass(frozen=True)
class Preset:
    """How a table is made by default. tau: the paper's for the data set (appendix D.2). n: pairs of an S and the samples per cell
    from that S on: ((1, 1000), (100, 500)) is 1,000, and 500 from S = 100."""

    tau: str
    n: tuple[tuple[int, int], ...]
    features: str = ""
    dtype: str = "float32"

    def samples(self, steps: int) -> int:
        """Samples of a cell."""
        return [n for least, n in self.n if steps >= least][-1]


PRESETS = {
    "fashion": Preset("linear", ((1, 2_000), (50, 1_000), (1000, 500)), "classifier", "bfloat16"),
    "mixture": Preset("linear", ((1, 10_000),)),
    "cifar10": Preset("quadratic", ((1, 50_000),), "inception"),
    "celeba": Preset("linear", ((1, 50_000),), "inception"),
}


@dataclass(frozen=True)
class Table1Options:
    """What the command line says; None where it leaves the choice to the preset."""

    preset: str
    weights: str | None
    reference: Path | None
    features: str | None
    tau: str | None
    n: int | None
    steps: tuple[int, ...]
    seed: int
    device: str
    out: Path | None
    overwrite: bool
    fast: bool

    @property
    def name(self) -> str:
        """The model, as `cli.py sample` takes it; InputError for a preset whose network has to be named."""
        shipped = self.preset in pretrained.names()
        if self.weights is None and not shipped:
            raise InputError(f"the network of the preset {self.preset} does not come with diffode: give its file as weights")
        return self.preset if self.weights is None else self.weights if shipped else f"{self.preset}:{self.weights}"

    @property
    def chosen(self) -> Preset:
        """The preset, changed as the options say."""
        preset, n = PRESETS[self.preset], 40 if self.fast else self.n
        features = preset.features if self.features is None else self.features
        return replace(preset, features=features, tau=self.tau or preset.tau, n=preset.n if n is None else ((1, n),))
