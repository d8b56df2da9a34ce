"""A card is the same after JSON, in the flat form that files have; what is wrong with one is said of its file and field."""

import json

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, schedules
from diffode.files import ASSETS
from diffode.models import checkpoint
from diffode.models.card import Card

SHIPPED = sorted(path for path in ASSETS.glob("*/*.json") if json.loads(path.read_text(encoding="utf-8"))["kind"] != "statistics")
MODEL = EpsModel(lambda x, t: x, schedules.edm(0.01, np.float64(50)), "data", classes=2, shape=(3, 8, 8))


def test_there_are_three_shipped_models():
    assert [path.stem for path in SHIPPED] == ["classifier", "fashion", "mixture"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_cards_are_read_and_written_as_they_are(path):
    """To the same values, keys in the same order."""
    text = json.loads(path.read_text(encoding="utf-8"))
    card = Card.from_json(text, path)
    assert json.dumps(card.to_json()) == json.dumps(text)
    _, header = checkpoint.read(path.with_suffix(".safetensors"))
    assert json.dumps(header) == json.dumps(text)


def test_the_card_of_a_model_makes_that_model():
    card = Card.of(MODEL, "unet", config={"width": (16, 32)}, data={"name": "x"}, images_seen=np.int64(7))
    read = Card.from_json(json.loads(json.dumps(card.to_json())), "a.json")
    assert read == card
    assert (read.classes, read.config, read.provenance) == (
        ("0", "1"),
        {"width": [16, 32]},
        {"data": {"name": "x"}, "images_seen": 7},
    )
    model = read.model(MODEL.network)
    x = torch.ones(1, 3, 8, 8)
    assert (model.schedule.name, model.predicts, model.clock, model.classes, model.shape) == ("edm", "data", "t", 2, (3, 8, 8))
    assert (model.schedule.lam_min, model.schedule.lam_max) == (MODEL.schedule.lam_min, MODEL.schedule.lam_max)
    assert torch.equal(model(x, 1.0), MODEL(x, 1.0))


def test_a_card_says_how_a_network_takes_labels():
    model = MODEL.replace(label="class_labels", null_label=2, one_hot=True, learned_variance=True)
    value = json.loads(json.dumps(Card.of(model, "unet").to_json()))
    assert value == Card.of(MODEL, "unet").to_json() | {
        "label": "class_labels",
        "null_label": 2,
        "one_hot": True,
        "learned_variance": True,
    }
    read = Card.from_json(value, "a.json")
    assert (read.provenance, read.to_json()) == ({}, value)
    made = read.model(model.network)
    assert (made.labels, made.learned_variance) == (model.labels, True)


def test_a_model_without_a_shape_has_no_card():
    with pytest.raises(InputError, match="shape="):
        Card.of(EpsModel(lambda x, t: x, schedules.edm()), "unet")


def test_a_classifier_is_no_diffusion_model():
    with pytest.raises(InputError, match="no noise schedule"):
        Card("classifier", (1, 28, 28)).make_schedule()


@pytest.mark.parametrize("field", ["kind", "image", "classes", "schedule", "predicts", "clock"])
def test_a_field_that_is_missing_is_named(field):
    value = Card.of(MODEL, "unet").to_json()
    del value[field]
    with pytest.raises(InputError, match=f"^a.json: its card lacks '{field}', "):
        Card.from_json(value, "a.json")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("kind", 3),
        ("config", [1]),
        ("image", None),
        ("image", []),
        ("image", [1, 0, 2]),
        ("image", [1.0, 2]),
        ("image", [True]),
        ("classes", None),
        ("classes", [0, 1]),
        ("schedule", "edm"),
        ("schedule", {"name": "edm"}),
        ("schedule", {"name": 1, "options": {}}),
        ("schedule", {"name": "edm", "options": []}),
        ("predicts", ["noise"]),
        ("clock", None),
        ("label", "a b"),
        ("null_label", -1),
        ("null_label", True),
        ("one_hot", 1),
        ("learned_variance", None),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_value(field, wrong):
    with pytest.raises(InputError, match=f"^a.json: '{field}' of its card is .*, where .* is expected$"):
        Card.from_json({**Card.of(MODEL, "unet").to_json(), field: wrong}, "a.json")
