"""Classifiers by file: the shipped one, whose features samples are compared in, or one that train_classifier wrote."""

from __future__ import annotations

from pathlib import Path

from diffode.errors import InputError
from diffode.files import ASSETS
from diffode.models import checkpoint
from diffode.models.card import Card
from diffode.networks.classifier import Classifier
from diffode.reading import reading, sha256_of

REFERENCE = ASSETS / "reference"  # the shipped classifier, and the statistics of Fashion-MNIST in its features


def load(path: str | Path = REFERENCE / "classifier.safetensors") -> tuple[Classifier, Card, str]:
    """The classifier of a file, by default the shipped one, in eval mode, with its card and its file's SHA-256.

    InputError for a file that is missing, corrupt, or does not hold what its card says.
    """
    tensors, header = checkpoint.read(path, "classifier")
    card = Card.from_json(header, path)
    with reading(path, "classifier", "weights of the network that its card describes"):
        network = checkpoint.filled(lambda config: Classifier(**config), card.network_config(), tensors)
        if card.classes and len(card.classes) != network.head.out_features:
            raise InputError(f"its card names {len(card.classes)} classes of {network.head.out_features}")
        return network.eval().requires_grad_(False), card, sha256_of(path)
