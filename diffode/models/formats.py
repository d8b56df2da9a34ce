"""Files of other projects that are read by the name of their format: `--model edm:FILE`.

A reader gives tensors under our names and a card, whose kind pretrained.NETWORKS makes. Files are data: see each reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from diffode.models import dit, edm, guided, score_sde
from diffode.models.card import Card

FORMATS: dict[str, Callable[[Path], tuple[dict[str, Tensor], Card]]] = {
    "edm": edm.read,
    "edm2": edm.read,
    "score-sde": score_sde.read,
    "guided": guided.read,
    "openai-edm": guided.read_edm,
    "dit": dit.read_dit,
    "sit": dit.read_sit,
}
