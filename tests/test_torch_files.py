"""Files of torch.save as data: their tensors are those that were saved, and what would run code or fill the memory is refused."""

import argparse
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from diffode import InputError
from diffode.models import torch_files

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(2).half(), "n": torch.tensor(3), "e": torch.ones(2).bfloat16()}
PREFIXED = OrderedDict(("module." + name, torch.nn.Parameter(weight, False)) for name, weight in WEIGHTS.items())


@pytest.fixture
def file(tmp_path):
    """file(held): a file of torch.save that holds it."""

    def make(held, **options):
        torch.save(held, tmp_path / "a.pt", **options)
        return tmp_path / "a.pt"

    return make


def rewritten(path, change, packing=zipfile.ZIP_STORED):
    """The file with the pickle changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize(
    "held",
    [
        WEIGHTS,
        PREFIXED,
        {"ema": WEIGHTS, "model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=0.1), "opt": [{"step": 3}]},
        {"state_dict": {"model": PREFIXED}, "epoch": 2},
    ],
    ids=["plain", "parallel", "training", "nested"],
)
@pytest.mark.parametrize("new", [True, False])
def test_the_weights_of_a_checkpoint_whatever_is_around_them(file, held, new):
    found = torch_files.state_dict(file(held, _use_new_zipfile_serialization=new))
    assert found.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


def test_they_stay_when_the_file_is_gone_and_safetensors_are_the_same(file, tmp_path):
    path = file(WEIGHTS)
    found = torch_files.state_dict(path)
    path.write_bytes(b"")
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    other = torch_files.state_dict(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], WEIGHTS[name]) and torch.equal(other[name], WEIGHTS[name]) for name in WEIGHTS)


OLD = {"_use_new_zipfile_serialization": False}  # the format before PyTorch 1.6


class Ours:
    """A class that a file names."""


class Runs:
    """Unpickling it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


LARGE = torch.ones(10**4)
DOUBLED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of a tuple twice, of that twice, and so on
DOUBLED_KEY = b"\x80\x02}" + DOUBLED + b"Ns."


def pickled(path, data):
    """The file with these bytes."""
    path.write_bytes(data)
    return path


def sized(number):
    """A change of 6 numbers to so many."""
    return lambda pickled: pickled.replace(b"K\x06", b"J" + struct.pack("<i", number))


REFUSED = {
    "a class": (
        lambda file: file({"a": Ours()}),
        "it names .*Ours.*nothing of a file is run.*expected a state dict, as torch.save.model.state_dict",
    ),
    "code": (lambda file: file({"a": Runs()}), "it names .*mkdir"),
    "an array": (lambda file: file({"a": torch.ones(2).numpy()}), "it names 'numpy"),
    "a large buffer": (lambda file: file({"a": bytearray(10)}), "it names .*bytearray"),
    "code before 1.6": (lambda file: file({"a": Runs()}, **OLD), "it names .*mkdir"),
    "a view that repeats one number before 1.6": (
        lambda file: file({"a": torch.ones(1).expand(10**12)}, **OLD),
        "does not lie in its storage of 1 numbers",
    ),
    "compressed": (lambda file: rewritten(file(WEIGHTS), bytes, zipfile.ZIP_DEFLATED), "compressed"),
    "a tensor that repeats one number": (lambda file: file({"a": torch.ones(1).expand(10**12)}), "does not lie in its storage"),
    "one tensor many times": (lambda file: file({str(i): LARGE for i in range(9)}), "bytes hold tensors of 3.6e"),
    "tensors that overlap": (lambda file: file({str(i): LARGE[i:] for i in range(9)}), "bytes hold tensors of 3.6e"),
    "a class of tensors": (
        lambda file: file({"a": torch.ones(2, dtype=torch.complex64)}),
        "it names 'torch.ComplexFloatStorage'",
    ),
    "a plain pickle": (lambda file: pickled(file({}), pickle.dumps({"a": 1})), "no file of torch.save"),
    "16 million lists": (
        lambda file: rewritten(file({}), lambda _: b"\x80\x02](" + b"]" * 2**23 + b"e."),
        "more than 200,000 operations",
    ),
    "16 million dicts before 1.6": (lambda file: pickled(file({}, **OLD), b"\x80\x02](" + b"}" * 2**23 + b"e."), "200,000"),
    "a key of 2^60 parts": (lambda file: rewritten(file({}), lambda _: DOUBLED_KEY), "puts .* into"),
    "a name of 2^60 parts": (lambda file: rewritten(file({}), lambda _: b"\x80\x04" + DOUBLED + b"\x8c\x01a\x93."), "it names"),
    "a storage larger than its file": (lambda file: rewritten(file({"a": torch.zeros(6)}), sized(2**30)), "storage"),
    "a list of tensors": (lambda file: file([torch.ones(1)]), "holds a Tensor"),
    "numbers": (lambda file: file({"a": torch.ones(1), "b": 3}), "its 'b' is no tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_state_dict_is_refused_in_a_sentence(file, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, why = REFUSED[name]
    path = make(file)
    with pytest.raises(InputError, match=why) as error:
        torch_files.state_dict(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_another_archive_and_other_bytes_are_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "b.pt").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name in ("a.pt", "b.pt", "c.pt", "d.pt", "."):
        with pytest.raises(InputError):
            torch_files.state_dict(tmp_path / name)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_is_cut_off_anywhere_is_refused(file, new):
    path = file(WEIGHTS, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97 if new else 11):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            torch_files.state_dict(path)


def test_what_is_in_itself_is_no_endless_walk(file):
    held = [{}, {}]
    held[0]["a"] = held[1]["b"] = held
    assert isinstance(torch_files.load(file(held)), list)
