"""What a card describes is made only if a machine can run it, and if the weights of its file are those of the description."""

import json
import time

import pytest
import torch

from diffode.errors import InputError
from diffode.models import checkpoint, pretrained
from diffode.networks.ddpm_unet import DDPMUNetConfig
from diffode.networks.unet import UNet, UNetConfig

TINY = {"image": (1, 8, 8), "classes": 2, "width": 16, "multipliers": (1,), "attention": ()}
SCHEDULE = {"name": "ddpm_linear", "options": {"steps": 10}}
CARD = {"kind": "unet", "config": TINY, "image": [1, 8, 8], "classes": ["a", "b"], "schedule": SCHEDULE}
CARD |= {"predicts": "noise", "clock": "lam"}


@pytest.mark.parametrize(
    "change",
    [
        *({"blocks": 10**7}, {"blocks": 1.0}, {"blocks": "1"}, {"blocks": True}, {"classes": 10**9}, {"width": 2**40}),
        *({"width": None}, {"image": [1, 10**6, 10**6]}, {"image": [1, 8]}, {"image": 3}, {"multipliers": [1] * 999}),
        *(
            {"multipliers": [10**9]},
            {"multipliers": "12"},
            {"multipliers": []},
            {"patch": 0},
            {"patch": 10**9},
            {"attention": [0.5]},
        ),
        *({"attention": ["a"]}, {"surprise": 1}, {"image": [1, 2048, 2048]}, {"image": [10**12, 8, 8]}, {"width": 32}),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_network_that_cannot_be_is_refused_at_once(tmp_path, change):
    refused(tmp_path, CARD | {"config": TINY | change})


@pytest.mark.parametrize(
    "change",
    [
        *({"image": [1, 10**5, 10**5]}, {"image": [1] * 99}, {"image": [2**40]}, {"classes": 3}, {"kind": "evil\x1b" * 999}),
        *({"schedule": SCHEDULE | {"options": {"steps": 3 * 10**8}}}, {"schedule": SCHEDULE | {"options": {"steps": "10"}}}),
        *({"schedule": SCHEDULE | {"options": {"steps": float("nan")}}}, {"schedule": SCHEDULE | {"name": "os.system"}}),
        *({"schedule": {"name": "edm", "options": {"__class__": 1}}}, {"predicts": "__class__"}, {"clock": "x" * 9999}),
        *({"classes": ["a"] * 100_000}, {"classes": "a"}, {"image": "188"}, {"config": None}, {"schedule": None}),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_card_that_cannot_be_is_refused_at_once(tmp_path, change):
    refused(tmp_path, CARD | change)


def refused(tmp_path, card):
    file = tmp_path / "a.safetensors"
    checkpoint.save(file, UNet(UNetConfig(**TINY)).state_dict(), card)
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        pretrained.load(file)
    assert time.perf_counter() - began < 5
    assert len(str(error.value)) < 400 + len(str(tmp_path))
    assert str(error.value).isprintable()
    assert file.name in str(error.value)


def test_a_right_card_is_taken(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", UNet(UNetConfig(**TINY)).state_dict(), CARD)
    assert pretrained.load(tmp_path / "a.safetensors").classes == ("a", "b")


@pytest.mark.parametrize("change", [{"num_res_blocks": 10**7}, {"ch": 2**40}, {"ch_mult": [1] * 99}, {"resolution": 10**6}])
def test_the_network_of_the_ddpm_authors_is_bounded_alike(change):
    with pytest.raises(InputError):
        DDPMUNetConfig(**change)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"kind": 1}', "null", '{"kind": "unet", "kind": "unet"}', '{"kind": "\\ud800"}']
)
def test_a_header_that_is_no_card(tmp_path, text):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"diffode": text})
    with pytest.raises(InputError, match=r"a\.safetensors"):
        pretrained.load(tmp_path / "a.safetensors")


def test_a_header_of_gigabytes(tmp_path):
    header = json.dumps({"__metadata__": {"a": "x" * 2**25}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="its header would have 33,554,"):
        checkpoint.read_tensors(tmp_path / "a.safetensors")
