"""Whatever is done to a file that is read: it is read, or there is one sentence, in seconds and in little memory.

Each format has a valid file, which is changed at random: JSON in its values and names, other files in their bytes. A few examples
of each are run with the tests, always the same; `pytest -m slow tests/test_fuzz.py` runs many more, others each time.
"""

import argparse
import copy
import gzip
import io
import json
import resource
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffode import InputError, grid, schedules
from diffode.files import as_json
from diffode.images import datasets
from diffode.models import checkpoint, classifiers, pretrained, torch_files
from diffode.models.diffusers_models import WEIGHTS
from diffode.networks.classifier import Classifier
from diffode.networks.unet import UNet, UNetConfig
from experiments.comparison.report import render
from experiments.metrics import references
from experiments.metrics.features import Features
from experiments.metrics.sample_card import read_card
from experiments.training.trainer import TrainConfig, Trainer
from solvers import Plan, find
from tests import edm_files, fabricated

SECONDS, MEBIBYTES = 10, 1024
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
TINY = UNetConfig((1, 8, 8), 2, width=16, multipliers=(1,), attention=())
CARD = {"kind": "unet", "config": as_json(TINY.__dict__), "image": [1, 8, 8], "classes": ["a", "b"]}
CARD |= {
    "schedule": {"name": "vp_linear", "options": {"beta_max": 19.0}},
    "predicts": "noise",
    "clock": "lam",
    "more": {"x": [1]},
}
FEATURES = Features("classifier", 3, "0" * 64, ("a", "b"), lambda pixels: None, (1, 8, 8), ("a", "b"))


@dataclass(frozen=True)
class Format:
    """make(folder): writes a valid file, and those beside it, and returns its path. examples: of the run with the tests."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    examples: int = 40


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def plan(folder):
    find("sde-dpmpp2m").plan(grid.make("logsnr", schedules.vp_linear(), 3), schedules.vp_linear()).save(folder / "p.json")
    return folder / "p.json"


def sample_card(folder):
    (folder / "s").mkdir()
    text = dict.fromkeys(("model", "sha256", "solver", "dtype", "command", "grid_name"), "mixture")
    numbers = {"guidance": 1.0, "nfe": 3, "network_calls": 3.0, "clip": False, "denoise": True, "threshold": None}
    card = {**text, **numbers, "options": {"eta": 0.0}, "grid": [-5.0, 0.0, 4.6], "seeds": [3, 1, 2], "labels": [0, 1, 1]}
    return written(folder / "s.json", card)


def rows(folder):
    fabricated.comparison(folder, fabricated.mixed(), pictures=False)
    return folder / "rows.json"


def tensors_file(tensors, card, name="a.safetensors"):
    def make(folder):
        checkpoint.save(folder / name, tensors, card)
        return folder / name

    return make


def npz(**arrays):
    def make(folder):
        np.savez_compressed(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return make


def idx(suffix):
    def make(folder):
        zipped = gzip.compress if suffix else bytes
        written(folder / f"train-labels-idx1-ubyte{suffix}", zipped(b"\0\0\x08\x01\0\0\0\x14" + bytes(20)))
        head = b"\0\0\x08\x03\0\0\0\x14\0\0\0\x08\0\0\0\x08"
        return written(folder / f"train-images-idx3-ubyte{suffix}", zipped(head + PIXELS.tobytes()))

    return make


def torch_file(**options):
    def make(folder):
        weights = {"module.a": torch.zeros(2, 3), "b": torch.ones(4).half(), "n": torch.tensor(3)}
        torch.save({"ema": weights, "args": argparse.Namespace(lr=0.1), "step": 3}, folder / "a.pt", **options)
        return folder / "a.pt"

    return make


def edm_file(config):
    def make(folder):
        return edm_files.write(folder / "a.pkl", config)

    return make


def image(suffix, mode, **options):
    def make(folder):
        Image.fromarray(PIXELS[0, ..., 0]).convert(mode).save(folder / f"a{suffix}", exif=Image.Exif(), **options)
        return folder / f"a{suffix}"

    return make


def diffusers_folder(name):
    def make(folder):
        from diffusers import UNet2DModel

        sizes = {"sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        UNet2DModel(**sizes, **blocks).save_pretrained(folder)
        betas = {"beta_schedule": "scaled_linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 100}
        written(folder / "scheduler_config.json", {**betas, "prediction_type": "v_prediction", "trained_betas": None})
        return folder / name

    return make


def statistics():
    arrays = {"mean": torch.zeros(3), "covariance": torch.eye(3), "sample": torch.zeros(5, 3), "shares": torch.ones(2) / 2}
    data = {"name": "real", "images": 20, "sha256": "0" * 64}
    return tensors_file(arrays, {"kind": "statistics", "features": "classifier", "identity": "0" * 64, "data": data})


def trainer():
    return Trainer(TrainConfig(TINY, batch=2), datasets.ImageSet("few", PIXELS, np.arange(20) % 2, ("a", "b")))


def classifier(folder):
    card = {"kind": "classifier", "config": {"classes": 2}, "image": [1, 8, 8], "classes": ["a", "b"]}
    return tensors_file(Classifier(1, 2).state_dict(), card)(folder)


def mixture(folder):
    k, pixels, rank = 2, 4, 2
    tensors = {"log_pi": torch.zeros(k), "mean": torch.zeros(k, pixels), "basis": torch.eye(pixels)[:, :rank].repeat(k, 1, 1)}
    tensors |= {"along": torch.ones(k, rank), "floor": torch.ones(k), "label": torch.arange(k)}
    return tensors_file(tensors, CARD | {"kind": "mixture", "image": [1, 2, 2], "predicts": "velocity"})(folder)


def training_state(folder):
    run = trainer()
    run.advance()
    run.log.append({"images": 2, "l_simple": 1.0})
    run.save(folder / "state.safetensors")
    return folder / "state.safetensors"


def of_folder(path):
    return datasets.load(path.parent)


FORMATS = {
    "plan": Format(plan, Plan.load, 60),
    "grid": Format(lambda folder: written(folder / "g.json", {"lam": [-5, 0.5, 4], "found_for": {}}), grid.load, 40),
    "sample card": Format(sample_card, lambda path: read_card(str(path.with_suffix("")), 3).lines(3), 60),
    "rows": Format(rows, lambda path: render([path.parent]), 15),
    "model": Format(tensors_file(UNet(TINY).state_dict(), CARD), pretrained.load, 30),
    "mixture": Format(mixture, pretrained.load, 30),
    "classifier": Format(classifier, classifiers.load, 20),
    "statistics": Format(statistics(), lambda path: references.load(FEATURES, path), 50),
    "published statistics": Format(
        npz(mu=np.zeros(3), sigma=np.eye(3)), lambda path: references.published(path, FEATURES) or datasets.load(path), 40
    ),
    "training state": Format(training_state, lambda path: trainer().load(path), 8),
    "npz": Format(npz(arr_0=PIXELS, arr_1=np.arange(20) % 2, classes=np.array(["a", "b"])), datasets.load, 60),
    "idx": Format(idx(""), of_folder, 30),
    "idx.gz": Format(idx(".gz"), of_folder, 30),
    "png": Format(image(".png", "RGB"), of_folder, 50),
    "png of a palette": Format(image(".png", "P", transparency=0), of_folder, 30),
    "jpg": Format(image(".jpg", "RGB"), of_folder, 30),
    "jpg in CMYK": Format(image(".jpg", "CMYK"), of_folder, 30),
    "webp": Format(image(".webp", "RGBA"), of_folder, 30),
    "torch": Format(torch_file(), torch_files.state_dict, 40),
    "torch before 1.6": Format(torch_file(_use_new_zipfile_serialization=False), torch_files.state_dict, 30),
    "edm": Format(edm_file(edm_files.SMALLEST), lambda path: pretrained.load(f"edm:{path}"), 40),
    "edm2": Format(edm_file(edm_files.SMALLEST2), lambda path: pretrained.load(f"edm2:{path}"), 30),
    "bmp": Format(image(".bmp", "L"), of_folder, 30),
}
if find_spec("diffusers") is not None:
    for file in ("config.json", "scheduler_config.json", WEIGHTS):
        FORMATS[f"diffusers {file}"] = Format(diffusers_folder(file), lambda path: pretrained.load(path.parent), 5)


HOSTILE = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2**31, 2**63, 10**9, 3 * 10**8, 10**400]),
    st.sampled_from([1e308, -1e-320, float("inf"), float("nan"), "inf", "nan", "1", "", "a", "x" * 5000]),
    st.sampled_from(["\0", "\x1b[2J", "\ud800", "\u202e", "../../etc/passwd", "evil:model", "hub:a/b", "__class__", "%s" * 9]),
    st.sampled_from([[], {}, [[]], [None] * 3, {"a": 1}, ["a", "b"]]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 300), max_size=5),
)


def places(value, path=()):
    """Every place in a tree of lists and objects."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed_json(data, value):
    """A tree with a few of its values replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(value))))
        if not path:
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        how = data.draw(st.sampled_from(["replace"] * 4 + ["remove", "rename", "add"]))
        if how == "replace":
            holder[path[-1]] = data.draw(HOSTILE)
        elif how == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[data.draw(st.text(max_size=4))] = holder.pop(path[-1]) if how == "rename" else data.draw(HOSTILE)
        else:
            holder.insert(path[-1], data.draw(HOSTILE))
    text = json.dumps(value)
    if data.draw(st.integers(0, 9)):
        return text
    return text.replace(data.draw(st.sampled_from("{[]},:0")), data.draw(st.sampled_from(["[" * 9999, "{", "9" * 5000, ""])), 1)


def changed_bytes(data, content):
    """A file with some bytes replaced, removed, repeated or cut off; more often near its ends, where headers are."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        n = len(content)
        at = data.draw(st.one_of(st.integers(0, n), st.integers(0, min(n, 64)), st.integers(max(0, n - 128), n)))
        how = data.draw(st.sampled_from(["byte"] * 5 + ["four"] * 2 + ["insert", "remove", "cut", "repeat"]))
        if how == "byte" and at < n:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "four":
            content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f" + b"\xff" * 3, b"\0\0\0\x80"]))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=16))
        elif how == "remove":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif how == "cut":
            del content[at:]
        elif how == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(1, 40))]
    return bytes(content)


def changed(data, path, content):
    """A changed file. Of a safetensors file, its card or its bytes; of an .npz, what is in the archive or its bytes."""
    if path.suffix == ".json" and data.draw(st.integers(0, 4)):
        return changed_json(data, json.loads(content)).encode("utf-8", "surrogatepass")
    if path.suffix == ".safetensors" and data.draw(st.integers(0, 3)):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        if "diffode" in header.get("__metadata__", {}) and data.draw(st.integers(0, 3)):
            header["__metadata__"]["diffode"] = changed_json(data, json.loads(header["__metadata__"]["diffode"]))
            text = json.dumps(header)
        else:
            text = changed_json(data, header)
        raw = text.encode("utf-8", "surrogatepass")
        return len(raw).to_bytes(8, "little") + raw + content[8 + size :]
    if path.suffix == ".npz" and data.draw(st.booleans()):
        with np.load(io.BytesIO(content)) as arrays:
            members = {name: changed_npy(data, arrays[name]) for name in arrays}
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
            for name, member in members.items():
                archive.writestr(f"{name}.npy", member)
        return stream.getvalue()
    return changed_bytes(data, content)


HEADERS = ["|O", "<M8[s]", "<f8", "|V9999999", "<U9", "<c16", "|u1,|u1", (), (-1,), (2**62, 4)]


def changed_npy(data, array):
    """An array as a .npy, of which its header says something else, or whose bytes are changed."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    if not data.draw(st.integers(0, 2)):
        return stream.getvalue()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    name = data.draw(st.sampled_from(list(said)))
    said[name] = data.draw(st.one_of(HOSTILE, st.sampled_from(HEADERS)))
    if data.draw(st.booleans()):
        text = repr(said).encode("utf-8", "surrogatepass")[:60000] + b"\n"
        return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + array.tobytes()
    return changed_bytes(data, stream.getvalue())


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """valid(name): a valid file of a format, and its content, made once."""
    made = {}

    def of(name):
        if name not in made:
            with torch.random.fork_rng():
                path = FORMATS[name].make(tmp_path_factory.mktemp("fuzz"))
            made[name] = path, path.read_bytes()
        return made[name]

    return of


def is_read_or_refused(name, path, content):
    path.write_bytes(content)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        FORMATS[name].read(path)
    except InputError as error:
        sentence = str(error).replace(str(path.parent), "")
        assert len(sentence) < 400, sentence
        assert sentence.isprintable(), sentence
    assert time.perf_counter() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 2**10


def fuzz(name, valid, **how):
    path, content = valid(name)

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **how)
    @given(st.data())
    def check(data):
        is_read_or_refused(name, path, changed(data, path, content))

    try:
        check()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FORMATS)
def test_the_valid_file_is_read(name, valid):
    FORMATS[name].read(valid(name)[0])


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_read_or_refused(name, valid):
    fuzz(name, valid, max_examples=FORMATS[name].examples, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_changed_files_are_read_or_refused(name, valid):
    fuzz(name, valid, max_examples=15 * FORMATS[name].examples)
