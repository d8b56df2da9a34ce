"""A checkpoint is one safetensors file that says what it is; what is none is refused, and nothing is unpickled."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from diffode import InputError
from diffode.models import checkpoint, pretrained

SHIPPED = sorted(pretrained.WEIGHTS.glob("*.safetensors"))
LIMITS = {"fashion": 8e6, "mixture": 4e6}
CARD = {
    "kind": "mixture",
    "image": [1, 2, 3],
    "classes": ["σ", "b"],
    "schedule": {"name": "ddpm_linear", "options": {}},
    "predicts": "velocity",
    "clock": "lam",
}


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def toy_file(tmp_path, toy_tensors):
    """toy_file(tensors changed, **card changed): a mixture's checkpoint."""

    def make(changed=None, **card):
        tensors = {name: tensor for name, tensor in {**toy_tensors, **(changed or {})}.items() if tensor is not None}
        checkpoint.save(tmp_path / "toy.safetensors", tensors, {**CARD, **card})
        return tmp_path / "toy.safetensors"

    return make


def test_round_trip_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float32": torch.randn(5, 3, generator=generator),
        "float64": torch.tensor([-0.0, 5e-324, torch.inf, torch.nan], dtype=torch.float64),
        "bfloat16": torch.randn(4, generator=generator).bfloat16(),
        "int64": torch.tensor([2**62 + 1, -1]),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    card = {**CARD, "float": 0.1, "none": None, "nested": {"λ": [1, 2.5, "x"]}}
    checkpoint.save(tmp_path / "a.safetensors", tensors, card)
    read, read_card = checkpoint.read(tmp_path / "a.safetensors", "mixture")
    assert read_card == card
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(*(value.detach().flatten().view(torch.uint8) for value in (read[name], tensor)))  # NaN, too
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_loads_is_small_and_agrees_with_its_twin(path):
    loaded = pretrained.load(path.stem)
    assert loaded.image == (1, 28, 28)
    assert len(loaded.classes) == 10
    x = torch.zeros(2, *loaded.image)
    assert torch.isfinite(loaded.model.labelled([0, 9])(x, 0.0)).all()
    assert path.stat().st_size < LIMITS[path.stem]
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == loaded.card.to_json()


def test_every_limit_is_of_something_shipped():
    assert pretrained.names() == sorted(LIMITS)


def test_a_file_is_loaded_like_a_name(toy_file):
    loaded = pretrained.load(toy_file())
    assert (loaded.image, loaded.classes) == ((1, 2, 3), ("σ", "b"))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, bytes(range(256)) * 40, b'{"a": 1}', b"\x02\0\0\0\0\0\0\0{}"])
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        pretrained.load(path)


def test_a_missing_file_and_an_unknown_name_list_what_is_known(tmp_path):
    for name in (tmp_path / "a.safetensors", tmp_path, "fasion", ""):
        with pytest.raises(InputError, match="fashion, mixture"):
            pretrained.load(name)


@pytest.mark.parametrize("part", [0.2, 0.9, 0.9999])
def test_a_truncated_file(tmp_path, part):
    raw = SHIPPED[1].read_bytes()
    (tmp_path / "a.safetensors").write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(InputError, match="corrupt"):
        pretrained.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_pickles_are_refused_and_not_opened(tmp_path, write):
    path = tmp_path / "a.pt"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    else:
        torch.save({"weights": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(InputError, match=r"is no checkpoint of diffode.*guided:FILE"):
        pretrained.load(path)
    assert not (tmp_path / "sprung").exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"diffode": "{"}, {"diffode": "[1]"}, {"diffode": "{}"}])
def test_a_foreign_safetensors_file(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        pretrained.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "training"},
        {"kind": ["mixture"]},
        {"image": None},
        {"image": [1, 5, 5]},
        {"image": [6]},
        {"classes": None},
        {"classes": [0, 1]},
        {"schedule": "ddpm_linear"},
        {"schedule": {"name": "nonesuch", "options": {}}},
        {"schedule": {"name": "ddpm_linear", "options": {"nonesuch": 1}}},
        {"predicts": "nonesuch"},
        {"clock": "nonesuch"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_a_card_that_does_not_fit(toy_file, changes):
    path = toy_file(**changes)
    with pytest.raises(InputError, match=r"toy\.safetensors"):
        pretrained.load(path)


@pytest.mark.parametrize("absent", CARD)
def test_a_card_without_what_is_needed(tmp_path, toy_tensors, absent):
    checkpoint.save(tmp_path / "a.safetensors", toy_tensors, {name: CARD[name] for name in CARD if name != absent})
    with pytest.raises(InputError, match=r"a\.safetensors"):
        pretrained.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["log_pi", "mean", "basis", "along", "floor", "label"])
@pytest.mark.parametrize("becomes", ["absent", "flat"])
def test_tensors_that_are_not_what_the_card_says(toy_file, name, becomes):
    with pytest.raises(InputError, match=r"toy\.safetensors"):
        pretrained.load(toy_file({name: None if becomes == "absent" else torch.zeros(5)}))


def test_a_network_whose_tensors_are_missing(tmp_path):
    tensors, card = checkpoint.read(pretrained.WEIGHTS / "fashion.safetensors", "unet")
    path = tmp_path / "a.safetensors"
    for wrong in (dict(list(tensors.items())[1:]), {**tensors, "more": torch.zeros(1)}, {}):
        checkpoint.save(path, wrong, card)
        with pytest.raises(InputError, match=r"a\.safetensors"):
            pretrained.load(path)
    for changes in ({"image": [1, 30, 30]}, {"config": {**card["config"], "width": 32}}, {"config": {"nonesuch": 1}}):
        checkpoint.save(path, tensors, {**card, **changes})
        with pytest.raises(InputError, match=r"a\.safetensors"):
            pretrained.load(path)


def test_a_network_knows_no_more_labels_than_its_table_holds(tmp_path):
    tensors, card = checkpoint.read(pretrained.WEIGHTS / "fashion.safetensors", "unet")
    checkpoint.save(tmp_path / "a.safetensors", tensors, {**card, "classes": [*card["classes"], "one", "more"]})
    with pytest.raises(InputError, match=r"a\.safetensors"):
        pretrained.load(tmp_path / "a.safetensors")


def test_a_mixture_is_diffused_on_the_path_of_its_schedule(toy_file, toy):
    """The card names the schedule; a mixture on the flow path has another velocity than on the vp path."""
    loaded = pretrained.load(toy_file(schedule={"name": "flow", "options": {}}, predicts="tangent"), torch.float64)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(1, 1, 2, 3)
    torch.testing.assert_close(loaded.model(x, 0.3), toy("flow")(x, 0.3), rtol=0, atol=1e-12)


def test_another_kind_is_refused(toy_file):
    with pytest.raises(InputError, match="'mixture', where a 'training'"):
        checkpoint.read(toy_file(), "training")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.ones(3)}, CARD)
    old = path.read_bytes()

    def full(tensors, part, metadata):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"w": torch.zeros(3)}, CARD)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    """safetensors has an exception of its own for it; the command line says in a sentence what OSError says."""

    def full(*args):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises((OSError, InputError), match="No space left"):
        checkpoint.save(tmp_path / "a.safetensors", {"w": torch.zeros(3)}, CARD)
    assert os.listdir(tmp_path) == []
