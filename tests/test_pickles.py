"""Pickles are data: networks are read, and whatever would be run, or take more than the file has, is refused in a sentence."""

import os
import pickle
import re
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import fields

import numpy as np
import pytest
import torch

from diffode import InputError
from diffode.errors import shown
from diffode.models import checkpoint, edm, edm_adm, pickles, pretrained
from diffode.models.pickle_machine import MOST_OPEN
from diffode.networks.edm2_unet import EDM2UNetConfig
from diffode.networks.edm_unet import EDMUNetConfig
from tests import edm_files


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return edm_files.write(tmp_path_factory.mktemp("edm") / "network.pkl")


def read(path):
    return pickles.read(path, "network of EDM", "a .pkl")


@pytest.fixture
def read_bytes(tmp_path):
    """read_bytes(data): the value of a file of these bytes."""

    def of(data):
        path = tmp_path / "a.pkl"
        path.write_bytes(data)
        return read(path)

    return of


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("config", [edm_files.TINY, edm_files.TINY2], ids=["edm", "edm2"])
def test_a_network_is_read_bit_by_bit(config, protocol, tmp_path):
    path = edm_files.write(tmp_path / "network.pkl", config, protocol=protocol)
    held = read(path)
    inner = held["ema"].module("model" if config is edm_files.TINY else "unet")
    tensors, expected = pickles.tensors_of(inner), edm_files.network(config).state_dict()
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert held["dataset_kwargs"] == {"path": "data.zip"}


@pytest.mark.parametrize("config", [edm_files.TINY, edm_files.TINY2], ids=["edm", "edm2"])
def test_a_file_is_a_model(config, tmp_path):
    path = edm_files.write(tmp_path / "network.pkl", config, sigma_data=0.6)
    loaded = pretrained.load(f"edm:{path}")
    assert loaded.image == (3 if config is edm_files.TINY else 4, 8, 8)
    assert loaded.classes == ("0", "1", "2")
    assert (loaded.card.predicts, loaded.card.clock, loaded.model.one_hot) == ("edm(0.6)", "c_noise", True)
    assert "source code" not in str(loaded.card.to_json())
    x, model = torch.ones(2, *loaded.image), loaded.model.labelled([0, 2])
    checkpoint.save(tmp_path / "a.safetensors", loaded.model.network.state_dict(), loaded.card)
    again = pretrained.load(tmp_path / "a.safetensors").model.labelled([0, 2])
    assert torch.equal(again(x, 0.3), model(x, 0.3))
    half = model.autocasted(torch.float16)
    torch.testing.assert_close(half(x, 0.3), model(x, 0.3), rtol=0, atol=0.03)  # of ε, about 1, in 11 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_every_dtype_and_layout(dtype, read_bytes):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    for view in (tensor, tensor.permute(2, 0, 1), tensor[1], tensor[:, :0], tensor.new_zeros(())):
        found = read_bytes(pickle.dumps({"a": view}))["a"]
        assert found.dtype == dtype
        assert torch.equal(found, view)


def test_numbers_of_numpy_are_numbers(read_bytes):
    values = [np.sqrt(0.5), np.float32(0.25), np.int64(-3), np.bool_(True)]
    assert read_bytes(pickle.dumps(values)) == [float(values[0]), 0.25, -3, True]
    assert read_bytes(pickle.dumps([np.ones(3), {1, 2}, torch.float16, None]))[1:] == [[1, 2], "torch.float16", None]


def test_a_storage_of_a_gpu_is_read_onto_the_cpu(monkeypatch, read_bytes):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    data = pickle.dumps(torch.ones(3))
    assert b"cuda:0" in data
    assert read_bytes(data).device.type == "cpu"


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def tensor(offset=0, size=(2,), stride=(1,), storage=None):
    storage = torch.ones(6)._typed_storage() if storage is None else storage
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def deep_key():
    """A dict whose key is a tuple in a tuple, 100,000 times: its hash would overflow the stack."""
    return b"\x80\x04})" + b"\x85" * 100_000 + b"Ns."


DOUBLED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of a tuple twice, of that twice, and so on


def storage(data):
    return Calls(torch.storage._load_from_bytes, data)


def changed_storage(old, new):
    """A storage, of whose bytes some are others."""
    data = pickle.loads(pickle.dumps(torch.ones(6)._typed_storage().__reduce__()[1]))[0]
    assert old in data
    return pickle.dumps(storage(data.replace(old, new)))


EVIL = {
    "os.system": lambda: pickle.dumps(Calls(os.system, "touch ran")),
    "eval": lambda: pickle.dumps(Calls(eval, "open('ran', 'w')")),
    "eval in a storage": lambda: pickle.dumps(storage(pickle.dumps(Calls(eval, "open('ran', 'w')"), 2) * 5)),
    "getattr": lambda: pickle.dumps(Calls(getattr, torch.ones(1), "numpy")),
    "an exact name in another module": lambda: b"\x80\x04cevil.torch._utils\n_rebuild_tensor_v2\n.",
    "a dotted name": lambda: b"\x80\x04\x8c\x05torch\x8c\x11storage.os.system\x93.",
    "a module that is no text": lambda: b"\x80\x04)\x8c\x06system\x93.",
    "torch.load": lambda: pickle.dumps(Calls(torch.load, "a.pkl")),
    "an allowed name, called": lambda: pickle.dumps(Calls(dict, [((), 1)])),
    "a dict of pairs": lambda: pickle.dumps(Calls(OrderedDict, [((), 1)])),
    "an object of no class": lambda: edm_files.pickled(Calls(edm_files._reconstruct_persistent_obj, {})),
    "an object made with texts": lambda: edm_files.pickled(edm_files.Object("A", {"_init_kwargs": "a"})),
    "an object of a number": lambda: edm_files.pickled(edm_files.Object(3, {})),
    "a value, called": lambda: b"\x80\x04\x8c\x01a)R.",
    "arguments that are no tuple": lambda: b"\x80\x04ccollections\nOrderedDict\n]R.",
    "INST": lambda: b"(ios\nsystem\n.",
    "OBJ": lambda: b"(cos\nsystem\no.",
    "an extension": lambda: b"\x80\x02\x82\x01.",
    "a persistent name": lambda: b"Pname\n.",
    "a large tensor": lambda: pickle.dumps(tensor(size=(10**6, 10**6), stride=(0, 0))),
    "a tensor twice its storage": lambda: pickle.dumps(tensor(size=(4, 3), stride=(1, 1))),
    "a tensor before its storage": lambda: pickle.dumps(tensor(offset=-1)),
    "a tensor beyond its storage": lambda: pickle.dumps(tensor(offset=5)),
    "a tensor backwards": lambda: pickle.dumps(tensor(stride=(-1,))),
    "a tensor of 10^18 numbers": lambda: pickle.dumps(tensor(size=(0, 10**18), stride=(1, 1))),
    "a tensor of halves": lambda: pickle.dumps(tensor(size=(0.5,))),
    "a tensor of a text": lambda: pickle.dumps(tensor(storage="a")),
    "a storage of nothing": lambda: pickle.dumps(storage(b"")),
    "a storage of a number": lambda: pickle.dumps(storage(5)),
    "a storage of more numbers": lambda: changed_storage(b"K\x06N", b"K\x07N"),
    "a storage of wider numbers": lambda: changed_storage(b"FloatStorage", b"DoubleStorage"),
    "a storage of no type": lambda: changed_storage(b"torch\nFloatStorage", b"torch\nstorage"),
    "a storage of another machine": lambda: changed_storage(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    "8 EiB of bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"a.",
    "4 GiB of text": lambda: b"\x80\x04X\xff\xff\xff\xffa.",
    "a number of 2 GiB": lambda: b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "a memo of 4 billion": lambda: b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\x7f.",
    "brackets": lambda: b"\x80\x02" + b"(" * (MOST_OPEN + 1) + b"t" * (MOST_OPEN + 1) + b".",
    "a bracket that is not open": lambda: b"\x80\x02t.",
    "a deep key": deep_key,
    "a name of 2^60 parts": lambda: b"\x80\x04" + DOUBLED + b"\x8c\x01a\x93.",
    "a type of 2^60 parts": lambda: (
        b"\x80\x04cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + DOUBLED + b"\x85RC\x08abcdefgh\x86R."
    ),
    "a storage that lies elsewhere": lambda: b"\x80\x02)Q.",
    "a list as a key": lambda: b"\x80\x02}]Ns.",
    "items of a number": lambda: b"\x80\x02K\x01(NNu.",
    "an odd number of items": lambda: b"\x80\x02}(Nu.",
    "an empty stack": lambda: b"\x80\x02.",
    "nothing to keep": lambda: b"\x80\x02q\x00.",
    "nothing to append to": lambda: b"\x80\x02(Ne.",
    "a second value": lambda: pickle.dumps(1) + pickle.dumps(2),
    "no file": lambda: b"",
    "a text": lambda: b"hello, world\n" * 9,
    "an archive": lambda: b"PK\x03\x04" + bytes(40),
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("name", EVIL)
def test_what_is_no_network_is_refused_in_a_sentence(name, read_bytes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = EVIL[name]()
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"a\.pkl is not a network of EDM") as error:
        read_bytes(data)
    assert time.perf_counter() - began < 5
    assert os.listdir() == ["a.pkl"]  # nothing ran
    sentence = str(error.value).replace(str(tmp_path), "")
    assert len(sentence) < 400
    assert sentence.isprintable()


@pytest.mark.parametrize(
    ("name", "named"), [("os.system", "system"), ("eval", "builtins.eval"), ("torch.load", "torch.serialization.load")]
)
def test_the_name_that_is_refused_is_said(name, named, read_bytes):
    with pytest.raises(InputError, match=rf"it names '.*{named}', which is no part of a network, and nothing of a file is run"):
        read_bytes(EVIL[name]())


def test_many_operations(monkeypatch, read_bytes):
    monkeypatch.setattr("diffode.models.pickle_machine.MOST_OPERATIONS", 1000)
    with pytest.raises(InputError, match="it has more than 1,000 operations"):
        read_bytes(pickle.dumps(list(range(2000))))


def test_a_file_that_ends_early(file, read_bytes):
    data = file.read_bytes()
    for length in (1, 50, 500, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match=r"a\.pkl is not a network of EDM"):
            read_bytes(data[:length])


def module(**inner):
    return edm_files.Object("A", {"_modules": inner})


def nested(count):
    held = module()
    for _ in range(count):
        held = module(a=held)
    return held


def test_modules_without_end(read_bytes, monkeypatch):
    """One that holds itself, one that holds another twice, that another twice, and so on, and one that is too deep."""
    itself = module()
    itself.meta["state"]["_modules"]["a"] = itself.meta["state"]  # a dict is no module: left out
    assert pickles.tensors_of(read_bytes(edm_files.pickled(itself))) == {}
    monkeypatch.setattr(pickles, "MOST_NAMES", 1000)
    twice = module()
    for _ in range(15):
        twice = module(a=twice, b=twice)
    for held in (twice, nested(40)):
        with pytest.raises(InputError, match="its weights and modules are more than"):
            pickles.tensors_of(read_bytes(edm_files.pickled(held)))


def of_tensors(tensors):
    return edm_files.pickled(edm_files.Object("A", {"_parameters": tensors}))


def views(size, count):
    """Views of one storage, each from another number on."""
    shared = Calls(torch.storage._load_from_bytes, *torch.ones(size)._typed_storage().__reduce__()[1])
    return {f"w{i}": tensor(i, (size - i,), (1,), shared) for i in range(count)}


@pytest.mark.parametrize(
    "tensors", [dict.fromkeys(map(str, range(100)), torch.ones(1000)), views(1000, 100)], ids=["one", "views"]
)
def test_weights_that_share_their_memory(tensors, read_bytes):
    with pytest.raises(InputError, match="share their memory"):
        pickles.tensors_of(read_bytes(of_tensors(tensors)))


def test_long_names_of_many_weights(read_bytes):
    """10 kB of a module's name, and 16 levels of it, would be in the name of every weight."""
    held = edm_files.Object("A", {"_parameters": {f"w{i}": torch.ones(1) for i in range(100)}})
    with pytest.raises(InputError, match="names of more than 500 letters"):
        pickles.tensors_of(read_bytes(edm_files.pickled(module(**{"a" * 10_000: held}))))


MEMORY = """
import re, resource, sys
from pathlib import Path
from diffode import InputError
from diffode.models import edm
taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)
for path in map(Path, sys.argv[1:]):
    try:
        edm.read(path)
    except InputError as error:
        print(path.stem, error)
"""
NUMBER = pickle.dumps(torch.ones(1)._typed_storage(), 4)[11:-1]  # without what a pickle begins and ends with
REPEATED = {  # what is made again and again, after what it is made of
    "dicts": (b"", b"}"),
    "tensors": (b"ctorch._utils\n_rebuild_tensor_v2\nr\0\1\0\0(" + NUMBER + b"K\0))tr\1\1\0\0", b"j\0\1\0\0j\1\1\0\0R"),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the memory of a process is read there")
def test_no_file_takes_much_more_memory_than_its_size(tmp_path):
    """300,000 of each, and 600 views of 4 MB, are refused by a process that can take 400 MiB."""
    for name, (first, again) in REPEATED.items():
        (tmp_path / f"{name}.pkl").write_bytes(b"\x80\x04](" + first + again * 300_000 + b"e.")
    held = {"ema": edm_files.precond(edm_files.Object("SongUNet", {"_parameters": views(10**6, 600)}))}
    (tmp_path / "views.pkl").write_bytes(edm_files.pickled(held))
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    why = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert "share their memory" in why.pop("views")
    assert set(why) == set(REPEATED)
    assert all("it has more than 200,000 operations" in each for each in why.values()), why


def endless():
    """A tuple of a tuple twice, of that twice, and so on: short in a file, and 2^60 numbers long."""
    value = (1,)
    for _ in range(60):
        value = value, value
    return value


@pytest.mark.parametrize(
    ("network", "config", "needed"),
    [
        ("SongUNet", EDMUNetConfig, {"in_channels": 3, "out_channels": 3}),
        ("DhariwalUNet", edm_adm.Arguments, {"in_channels": 3, "out_channels": 3}),
        ("UNet", EDM2UNetConfig, {"img_channels": 3, "label_dim": 0}),
    ],
)
@pytest.mark.parametrize(
    "value", [endless(), "1" * 1000, [1] * 100, 10**1000, {}], ids=["endless", "text", "list", "number", "dict"]
)
def test_no_argument_of_a_network_is_more_than_a_short_list(network, config, needed, value, tmp_path):
    name, path = "Precond" if network == "UNet" else "EDMPrecond", tmp_path / "a.pkl"
    for argument in (field.name for field in fields(config) if field.name != "ve"):
        given = edm_files.EasyDict({"img_resolution": 8, **needed, argument: value})
        path.write_bytes(edm_files.pickled({"ema": edm_files.precond(edm_files.Object(network, {"_init_kwargs": given}), name)}))
        with pytest.raises(InputError, match=f"'{argument}' of its '{network}' is no number, text or short list, but") as error:
            edm.read(path)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "argument"), [("EDMPrecond", "sigma_data"), ("VPPrecond", "M"), ("VEPrecond", "sigma_max"), ("iDDPMPrecond", "C_1")]
)
def test_no_argument_of_a_preconditioning_is_more(name, argument, tmp_path):
    with pytest.raises(InputError, match=f"'{argument}' of its '{name}' is no number, text or short list, but"):
        edm.read(edm_files.write(tmp_path / "a.pkl", name=name, **{argument: endless()}))


@pytest.mark.parametrize("value", ["ab", ["a"], None], ids=str)
@pytest.mark.parametrize("argument", [field.name for field in fields(edm_adm.Arguments) if field.name != "augment_dim"])
def test_arguments_of_adm_of_another_type_are_named(argument, value):
    given = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, argument: value}
    with pytest.raises(InputError, match=f"{argument}.*{re.escape(shown(value))}"):
        edm_adm.Arguments(**given).config()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"G_ema": 1}, "it is of type dict and has no network called `ema`"),
        ([np.float64(3)], "it is of type list and has no network called `ema`"),
        ({"ema": edm_files.precond(module(), "StyleGAN")}, "unknown preconditioning 'StyleGAN'"),
        ({"ema": edm_files.precond(module(), "Precond")}, "unknown network 'A'"),
        ({"ema": edm_files.Object("EDMPrecond", {})}, "has no module 'model'"),
        ({"ema": edm_files.Object("EDMPrecond", {"_modules": 3})}, "_modules of its 'EDMPrecond' is 3"),
        ({"ema": edm_files.precond(module(), sigma_data=-1)}, "unknown network"),
    ],
    ids=["other", "list", "precond", "network", "none", "modules", "a"],
)
def test_other_objects_are_named(held, words, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(edm_files.pickled(held))
    with pytest.raises(InputError, match=rf"a\.pkl is not a network of EDM .*{words}"):
        edm.read(path)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("EDMPrecond", {"sigma_data": value}) for value in (0, -1, "a", float("nan"), None)),
        *(("EDMPrecond", {"sigma_min": 100}), ("EDMPrecond", {"sigma_max": 0.001}), ("VEPrecond", {"sigma_max": float("inf")})),
        *(("VPPrecond", {"M": 1}), ("VPPrecond", {"M": 10**12}), ("VPPrecond", {"epsilon_t": 2}), ("VPPrecond", {"beta_d": -50})),
        *(("iDDPMPrecond", {"C_1": 0.1}), ("iDDPMPrecond", {"M": 10**9})),
    ],
    ids=str,
)
def test_a_preconditioning_that_cannot_be(name, given, tmp_path):
    path = edm_files.write(tmp_path / "a.pkl", name=name, **given)
    with pytest.raises(InputError, match=r"a\.pkl"):
        pretrained.load(f"edm:{path}")


@pytest.mark.parametrize("made", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_regular_file(made, tmp_path):
    made(tmp_path / "a.pkl")
    with pytest.raises(InputError, match=r"a\.pkl"):
        pretrained.load(f"edm:{tmp_path / 'a.pkl'}")


def test_a_user_s_module_may_be_called_like_a_format(tmp_path, monkeypatch):
    (tmp_path / "edm2.py").write_text(
        "import torch\nfrom diffode import EpsModel, schedules\n"
        "model = EpsModel(lambda x, t: torch.zeros_like(x), schedules.edm(), shape=(2,))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert pretrained.load("edm2:model").image == (2,)
