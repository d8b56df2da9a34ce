"""The command line: what it prints and writes, and bad input answered with exit code 2, one sentence, and no file."""

import csv
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
from diffode import checkpoint, data, pretrained
from solvers import SOLVERS

ROOT = Path(cli.__file__).parent
CLI = [sys.executable, str(ROOT / "cli.py")]
TINY = ["--width", "16", "--multipliers", "1,2", "--attention", "", "--batch", "16", "--device", "cpu", "--data-dir", "few.npz"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def sample(*args):
    return run("sample", "--model", "mixture", "--n", 3, "--nfe", 2, *args)


def refused(result, *words):
    """Exit code 2 and a sentence on stderr with these words in it."""
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stdout == ""
    *usage, sentence = (line for line in result.stderr.splitlines() if line)
    assert sentence.startswith("Error: ")
    assert all(line.startswith(("Usage: ", "Try ")) for line in usage)  # click's own two lines before what it refuses itself
    for word in words:
        assert word in sentence


def toy_checkpoint(tensors, **card):
    """A checkpoint of the toy mixture, toy.safetensors."""
    standard = {"kind": "mixture", "image": [1, 2, 3], "classes": [], "predicts": "velocity", "clock": "lam"}
    checkpoint.save("toy.safetensors", tensors, {**standard, "schedule": {"name": "ddpm_linear", "options": {}}, **card})


def test_help_is_quick():
    """Under 0.5 s, the best of three."""

    def seconds():
        began = time.perf_counter()
        subprocess.run([*CLI, "--help"], check=True, capture_output=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("args", [["--help"], ["sample", "--help"], ["plan", "-h"], ["solvers", "-h"], ["train", "-h"]], ids=str)
def test_help_does_not_wait_for_torch(args):
    code = f"import sys, cli; cli.main({args}, standalone_mode=False); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage:" in result.stdout


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert re.search(r"\d+\.\d+", result.stdout)


@pytest.mark.parametrize(
    ("solver", "nfe", "out"),
    [("ddim", 5, "a.png"), ("dpm2", 4, "a.npz"), ("dpm3", 6, "pictures"), ("rk4", 8, "new/folder/λ é.png")],
)
def test_sample_writes_what_it_says(here, solver, nfe, out):
    result = run("sample", "--model", "mixture", "--solver", solver, "--nfe", nfe, "--n", 3, "--batch", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"{solver}: 3 images, {nfe} NFE an image, \d+\.\d s, {out}\n", result.stdout)
    path = here / out
    assert sorted(os.listdir(path.parent)) == sorted([path.name, f"{path.name}.json"])
    card = json.loads((here / f"{out}.json").read_text(encoding="utf-8"))
    assert (card["nfe"], card["seeds"], card["solver"]) == (nfe, [0, 1, 2], solver)
    if path.suffix == ".png":
        assert min(Image.open(path).size) >= 56
    elif path.suffix == ".npz":
        assert np.load(path)["arr_0"].shape == (3, 28, 28, 1)
    else:
        assert sorted(os.listdir(path)) == ["000000.png", "000001.png", "000002.png"]


def test_sample_says_what_guidance_costs():
    assert "2 NFE (4 network calls) an image" in sample("--guidance", "2").stdout


def test_sample_counts_an_adaptive_solver():
    result = run("sample", "--model", "mixture", "--solver", "dopri5", "--rtol", "1e-2", "--atol", "1e-2", "--n", 2)
    nfe = int(re.search(r"(\d+) NFE", result.stdout).group(1))
    assert nfe > 6
    (card,) = Path("samples").glob("mixture-dopri5-rtol-0.01-*.png.json")
    assert json.loads(card.read_text())["nfe"] == nfe


@pytest.mark.parametrize("rtol", ["-1", "0", "inf", "nan"])
def test_a_tolerance_that_is_none(rtol):
    refused(run("sample", "--model", "mixture", "--solver", "dopri5", "--rtol", rtol), "rtol", "positive", rtol)


def test_sample_has_a_default_name_and_labels_in_turn():
    """What was typed is in the name, so commands that differ do not meet."""
    for more in ((), ("--eta", 1), ("--label", "bag", "--guidance", 2), ("--grid", "quadratic"), ("--denoise",)):
        assert sample(*more).exit_code == 0
    names = {path.name for path in Path("samples").glob("*.png")}
    assert {"mixture-ddim-nfe-2-n-3.png", "mixture-ddim-nfe-2-eta-1.0-n-3.png"} <= names
    assert len(names) == 5
    assert json.loads(Path("samples/mixture-ddim-nfe-2-n-3.png.json").read_text())["labels"] == [0, 1, 2]


def test_the_recorded_command_can_be_typed_again(monkeypatch):
    args = ["sample", "--model", "mixture", "--n", "2", "--nfe", "2", "--out", "it's a λ.npz"]
    monkeypatch.setattr(sys, "argv", ["cli.py", *args])
    assert run(*args).exit_code == 0
    assert shlex.split(json.loads(Path("it's a λ.npz.json").read_text())["command"]) == ["python", "cli.py", *args]


@pytest.mark.parametrize(("given", "seeds"), [("7", [7]), ("1,5,2", [1, 5, 2]), ("3-5,0", [3, 4, 5, 0])])
def test_seeds(given, seeds):
    assert run("sample", "--model", "mixture", "--nfe", 2, "--seeds", given, "--out", "a.png").exit_code == 0
    assert json.loads(Path("a.png.json").read_text())["seeds"] == seeds


@pytest.mark.parametrize(("given", "label"), [("bag", 8), ("8", 8), ("BAG", 8), ("ankle-boot,3", 9)])
def test_labels_by_number_and_name(given, label):
    assert sample("--label", given, "--out", "a.npz").exit_code == 0
    assert np.load("a.npz")["arr_1"][0] == label


@pytest.mark.parametrize("grid", ["logsnr", "time", "quadratic", "karras", "-5,0,4.6"])
def test_grids(grid):
    result = run("sample", "--model", "mixture", "--n", 1, "--steps", 2, "--grid", grid, "--out", "a.png")
    assert result.exit_code == 0, result.output
    lams = json.loads(Path("a.png.json").read_text())["grid"]
    assert len(lams) == 3
    assert grid[0] != "-" or lams == [-5, 0, 4.6]


BAD = {
    "unknown solver": (["--solver", "dmpp2m"], ["dmpp2m", "did you mean dpmpp2m", *SOLVERS]),
    "nfe 0": (["--nfe", "0"], ["0", "nearest", "1"]),
    "nfe negative": (["--nfe", "-3"], ["-3", "nearest", "1"]),
    "nfe odd": (["--solver", "dpm2", "--nfe", "7"], ["dpm2", "7", "6 or 8"]),
    "nfe of dpm3": (["--solver", "dpm3", "--nfe", "10"], ["dpm3", "10", "9 or 12"]),
    "nfe not a number": (["--nfe", "ten"], ["--nfe", "ten"]),
    "adaptive with nfe": (["--solver", "dopri5"], ["dopri5", "adaptive", "--rtol"]),
    "nfe and steps": (["--steps", "2"], ["nfe", "steps"]),
    "steps 0": (["--steps", "0"], ["--steps", "x>=1"]),
    "unknown grid": (["--grid", "cosine"], ["cosine", "logsnr", "karras"]),
    "grid out of order": (["--grid=-5,2,0"], ["increasing", "-5"]),
    "grid twice the same": (["--grid=-5,0,0"], ["increasing", "-5"]),
    "grid with nan": (["--grid=-5,nan,4"], ["increasing", "nan"]),
    "grid outside": (["--grid=-9,0,4"], ["-9", "-5.05884 to 4.60512"]),
    "grid at minus infinity": (["--grid=-inf,0,4"], ["inf"]),
    "grid of one": (["--grid=-5"], ["two or more"]),
    "grid of words": (["--grid=-5,x"], ["--grid", "-5,x"]),
    "grid empty": (["--grid="], ["--grid", "-5,-2,0,2,4.6"]),
    "option of another solver": (["--solver", "dpm2", "--eta", "0.5"], ["dpm2", "eta", "r1"]),
    "eta": (["--eta", "2"], ["η", "between 0 and 1", "2"]),
    "eta nan": (["--eta", "nan"], ["η", "nan"]),
    "r1": (["--solver", "dpm2", "--r1", "0"], ["r1", "dpm2", "0"]),
    "variance": (["--solver", "ddpm", "--variance", "huge"], ["huge", "small", "large"]),
    "denoise with torchdiffeq": (["--solver", "midpoint", "--denoise"], ["midpoint", "finite", "--no-denoise"]),
    "label out of range": (["--label", "10"], ["'10'", "0 T-shirt", "9 ankle-boot"]),
    "label negative": (["--label", "-1"], ["'-1'", "9 ankle-boot"]),
    "label unknown": (["--label", "bag,cat"], ["'cat'", "8 bag"]),
    "label empty": (["--label", ""], ["label", "8 bag"]),
    "guidance nan": (["--guidance", "nan"], ["guidance", "nan", "finite"]),
    "guidance beyond float32": (["--guidance", "1e308"], ["guidance", "1e+308"]),
    "guidance to nothing": (["--label", "none", "--guidance", "3"], ["guidance", "3", "label"]),
    "threshold": (["--threshold", "1.5"], ["quantile", "1.5"]),
    "suffix": (["--out", "x.jpg"], [".jpg", ".png", ".npz", "folder"]),
    "out is the folder": (["--out", "."], ["--out"]),
    "out is the root": (["--out", "/"], ["--out"]),
    "out is nothing": (["--out", ""], ["--out"]),
    "seeds malformed": (["--seeds", "1;2"], ["--seeds", "1;2", "0-49999"]),
    "seeds negative": (["--seeds", "-3"], ["--seeds", "-3"]),
    "seeds reversed": (["--seeds", "9-3"], ["--seeds", "9-3"]),
    "seeds reversed among others": (["--seeds", "1,9-3"], ["--seeds", "9-3"]),
    "seeds without an end": (["--seeds", "5-"], ["--seeds", "5-"]),
    "seeds twice": (["--seeds", "1,0-2"], ["--seeds", "1,0-2", "different"]),
    "seeds too large": (["--n", "1", "--seeds", str(2**63)], ["seed", "2^63"]),
    "n and seeds": (["--seeds", "1,2"], ["--n 3", "--seeds"]),
    "n 0": (["--n", "0"], ["--n", "x>=1"]),
    "batch 0": (["--batch", "0"], ["--batch", "x>=1"]),
    "no such device": (["--device", "tpu"], ["'tpu'", "cpu"]),
    "no such cpu": (["--device", "cpu:x"], ["cpu:x"]),
    "dtype": (["--dtype", "int8"], ["int8", "bfloat16"]),
    "unknown model": (["--model", "fasion"], ["'fasion'", "fashion, mixture"]),
    "missing checkpoint": (["--model", "runs/ema.safetensors"], ["runs/ema.safetensors"]),
    "unknown option": (["--solvr", "ddim"], ["--solvr", "--solver"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(here, name):
    args, words = BAD[name]
    standard = {"--model": "mixture", "--n": "3", "--out": "a.png"} | ({} if name.startswith("grid") else {"--nfe": "2"})
    refused(run("sample", *(part for option in standard.items() for part in option), *args), *words)
    assert os.listdir(here) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(here):
    refused(sample("--device", "cuda"), "'cuda'", "there is cpu")
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    "many", [["--seeds", "0-999999999999"], ["--n", "999999999999"], ["--n", "1", "--nfe", "1000000000"]], ids=str
)
def test_astronomic_numbers_neither_hang_nor_eat_the_memory(here, many):
    def limits():
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (6, 6))

    command = [*CLI, "sample", "--model", "mixture", *many, "--out", "a.png"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limits, timeout=120)
    assert result.returncode == 2, result.stderr[-500:]
    assert "Traceback" not in result.stderr
    assert os.listdir(here) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 1000, b"\x80\x04N."], ids=["empty", "zeros", "pickle"])
def test_corrupt_checkpoint(here, content):
    (here / "bad.safetensors").write_bytes(content)
    refused(sample("--model", "bad.safetensors"), "bad.safetensors", "corrupt", "never unpickles")
    assert os.listdir(here) == ["bad.safetensors"]


def test_weights_that_are_not_finite(here, toy_tensors):
    toy_checkpoint({**toy_tensors, "mean": toy_tensors["mean"] * torch.nan})
    refused(sample("--model", "toy.safetensors", "--out", "a.png"), "λ = -5.05884", "evaluation 1", "check the checkpoint")
    toy_checkpoint({**toy_tensors, "floor": -toy_tensors["floor"]})  # not finite where the image is clean alone
    refused(sample("--model", "toy.safetensors", "--nfe", 20, "--out", "a.png"), "λ = ", "evaluation", "check the checkpoint")
    assert os.listdir(here) == ["toy.safetensors"]


def test_label_for_a_model_without_labels(here, toy_tensors):
    toy_checkpoint(toy_tensors)
    refused(sample("--model", "toy.safetensors", "--label", "1"), "--label 1", "without labels")
    assert sample("--model", "toy.safetensors").exit_code == 0


@pytest.mark.parametrize("out", ["a.png", "a.npz", "a"])
def test_output_that_exists(here, out):
    assert sample("--out", out).exit_code == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    refused(sample("--out", out, "--eta", 1), out, "exists", "--overwrite")
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert sample("--out", out, "--eta", 1, "--overwrite").exit_code == 0
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} != before


@pytest.mark.parametrize("out", ["wall/a.png", "wall/b/c/pictures"])
def test_a_file_in_the_way(here, out):
    (here / "wall").write_text("brick")
    refused(sample("--out", out), "wall", "folder", "--out")
    assert os.listdir(here) == ["wall"]
    assert (here / "wall").read_text() == "brick"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        result = subprocess.run([*CLI, "solvers"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "Error: No space left on device\n"


def test_ctrl_c_leaves_no_output_and_the_same_command_goes_on(here):
    args = ["sample", "--model", "mixture", "--nfe", "40", "--n", "36", "--batch", "3", "--out", "a.npz"]
    process = subprocess.Popen([*CLI, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(here, ".a.npz.*/0.npz", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert "Traceback" not in err
    assert out == ""
    assert not (here / "a.npz").exists()
    assert run(*args).exit_code == 0
    assert sorted(os.listdir(here)) == ["a.npz", "a.npz.json"]
    assert process.returncode == 130


def wait_for(folder, pattern, process):
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 5), ("ddpm", 3), ("dpm2", 6), ("dpm3", 6), ("dpmpp2m", 4)])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "flow"])
def test_plan_prints_the_table(solver, nfe, schedule):
    result = run("plan", solver, "--nfe", nfe, "--schedule", schedule)
    assert result.exit_code == 0, result.output
    head, _, *rows = result.stdout.splitlines()
    assert head.startswith(f"{solver}: ")
    assert f" {nfe} NFE" in head
    assert sum(" E " in row for row in rows) == nfe
    steps = {"dpm2": nfe // 2, "dpm3": nfe // 3}.get(solver, nfe)
    assert sum(" K " in row for row in rows) == steps + 1


@pytest.mark.parametrize("grid", ["logsnr", "time", "quadratic", "karras", "-4,0,4"])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "vp_linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("denoise", ["--denoise", "--no-denoise"])
def test_plan_knows_every_grid_and_schedule(grid, schedule, denoise):
    if (schedule, grid) == ("edm", "-4,0,4"):
        pytest.skip("-4.38 to 6.21")
    result = run("plan", "dpmpp2m", "--grid", grid, "--schedule", schedule, denoise)
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["dpm9"], ["dpm9", "dpmpp2m"]),
        (["dopri5"], ["dopri5"]),
        (["ddim", "--schedule", "linear"], ["linear", "ddpm_linear"]),
        (["dpm2", "--nfe", 7], ["dpm2", "7", "6 or 8"]),
        (["dpm2", "--eta", 1], ["dpm2", "eta", "r1"]),
        (["ddim", "--nfe", 4, "--steps", 4], ["nfe", "steps"]),
        (["ddim", "--grid=3,1"], ["increasing"]),
        (["ddim", "--grid=-50,1"], ["-50", "-5.05884 to 4.60512"]),
        ([], ["SOLVER"]),
    ],
    ids=str,
)
def test_plan_refuses(args, words):
    refused(run("plan", *args), *words)


def test_solvers_are_listed():
    table = run("solvers").stdout.splitlines()
    names = [line.split("|")[1].strip() for line in table]
    assert names[0] == "name"
    assert names[2:] == list(SOLVERS)
    assert len({len(line) for line in table}) == 1


def few(n=64, **more):
    subset = data.packaged()
    np.savez("few.npz", subset.pixels[:n], subset.labels[:n], **more)


def train(out, *args, images=64, every=32):
    return run("train", *TINY, "--out", out, "--images", images, "--every", every, *args)


def same(one, two):
    one, two = (checkpoint.read(path)[0] for path in (one, two))
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_train_makes_a_run_that_can_be_sampled_and_resumed():
    few()
    result = train("run")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"64 images seen, L_simple \d\.\d+, done: run\n", result.stdout)
    files = {path.name for path in Path("run").iterdir() if not path.name.startswith(".")}
    assert files == {"state.safetensors", "ema.safetensors", "ema.json", "log.csv", "samples.png"}
    with open("run/log.csv", newline="") as file:
        assert [int(row["images"]) for row in csv.DictReader(file)] == [32, 64]
    assert pretrained.load("run/ema.safetensors").card == json.loads(Path("run/ema.json").read_text())
    assert sample("--model", "run/ema.safetensors", "--out", "a.png").exit_code == 0
    refused(sample("--model", "run/state.safetensors", "--out", "b.png"), "state.safetensors", "training")

    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    refused(train("run"), "run", "--resume", "--out")
    refused(train("run", "--resume", "--lr", "0.01"), "state.safetensors", "lr", "--out")
    refused(train("run", "--resume", "--width", "32", "--seed", "1"), "unet", "seed")
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert train("run", "--resume", images=96).exit_code == 0
    assert train("whole", images=96, every=1000).exit_code == 0
    assert same("run/ema.safetensors", "whole/ema.safetensors")


def test_train_does_not_go_on_with_other_images():
    few()
    assert train("run", images=16).exit_code == 0
    few(48)
    refused(train("run", "--resume", images=32), "state.safetensors", "data")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_that_was_stopped_ends_with_the_same_bits(here, number):
    """Killed, it goes on from its last checkpoint; interrupted, it saves first."""
    few()
    command = [*CLI, "train", *TINY, "--out", "run", "--images", "1000000", "--every", "32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(here, "run/state.safetensors", process)
    process.send_signal(number)
    out, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, err
        assert re.search(r"^\d+ images seen.*--resume goes on: run$", out, re.M)
    images = 16 * checkpoint.read("run/state.safetensors", "training")[1]["step"]
    assert train("run", "--resume", images=images + 48).exit_code == 0
    assert train("whole", images=images + 48, every=10**6).exit_code == 0
    assert same("run/ema.safetensors", "whole/ema.safetensors")


def test_names_of_classes_that_no_image_has():
    """A subset of few classes keeps all their names, and every label that the model knows can be drawn."""
    subset = data.packaged()
    np.savez("few.npz", arr_0=subset.pixels[:32], arr_1=np.arange(32) % 4, classes=np.array(subset.classes))
    assert train("run", images=16).exit_code == 0
    classes = pretrained.load("run/ema.safetensors").classes
    assert classes[:4] == subset.classes[:4]
    assert run("sample", "--model", "run/ema.safetensors", "--nfe", 2, "--n", 10, "--out", "a.npz").exit_code == 0


BAD_TRAINING = {
    "nothing to resume": (["--resume"], ["run/state.safetensors"]),
    "no data": (["--data-dir", "nowhere"], ["nowhere", "apt-get install", "--data-dir"]),
    "width": (["--width", "17"], ["17", "16"]),
    "width 0": (["--width", "0"], ["width", "0"]),
    "width negative": (["--width", "-16"], ["width", "-16"]),
    "patch 0": (["--patch", "0"], ["patch", "0"]),
    "patch 3": (["--patch", "3"], ["patch", "3", "28"]),
    "blocks negative": (["--blocks", "-1"], ["blocks", "-1"]),
    "multipliers": (["--multipliers", "1,x"], ["1,x", "whole numbers"]),
    "multipliers 0": (["--multipliers", "1,0"], ["multipliers"]),
    "multipliers none": (["--multipliers", ""], ["multipliers"]),
    "attention": (["--attention", "x"], ["x", "whole numbers"]),
    "batch": (["--batch", "0"], ["batch", "0"]),
    "lr": (["--lr", "nan"], ["lr", "nan"]),
    "drop-label": (["--drop-label", "2"], ["drop-label", "2"]),
    "predicts": (["--predicts", "x0"], ["x0", "velocity"]),
    "schedule": (["--schedule", "linear"], ["linear", "ddpm_linear"]),
    "gamma": (["--gamma", "l2"], ["l2", "simple"]),
    "images": (["--images", "0"], ["--images", "x>=1"]),
    "seed": (["--seed", "-1"], ["--seed", "x>=0"]),
    "device": (["--device", "tpu"], ["'tpu'", "cpu"]),
    "a file in the way": (["--out", "few.npz/run"], ["few.npz", "--out"]),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training(here, name):
    few(16)
    args, words = BAD_TRAINING[name]
    refused(train("run", *args, images=16), *words)
    assert os.listdir(here) == ["few.npz"]
