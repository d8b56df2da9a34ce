"""The command line: what it prints and writes, and bad input answered with exit code 2, one sentence, and no file."""

import csv
import dataclasses
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
from diffode.files import ASSETS
from diffode.images import datasets
from diffode.models import checkpoint, pretrained
from experiments.common.commands import command_line, with_flags
from experiments.common.options import from_command_line
from experiments.sampling import jobs, progress
from experiments.sampling.names import default_name
from solvers import ALIASES, SOLVERS, Plan, registry, sampling

pytestmark = pytest.mark.usefixtures("small_mixture")
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
    """Under 0.5 s of processor time, which others on the machine do not take, the best of three."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CLI, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_does_not_wait_for_torch():
    """Of no command, nor does `python -m diffode`."""
    code = (
        "import sys, diffode.__main__, cli\n"
        "for args in [['-h'], *([name, '--help'] for name in cli.main.commands)]:\n"
        "    cli.main(args, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("Usage:") == 1 + len(cli.main.commands)


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
    assert re.fullmatch(rf"{solver}: 3 images, {nfe} NFE per image, \d+\.\d s, {out}\n", result.stdout)
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


@pytest.fixture
def counted(monkeypatch):
    """The plans that are made, and the names that are looked up, from here on."""
    made, found = [], []

    def find(name):
        found.append(name)
        return registry.find(name)

    def check(plan):
        made.append(plan.solver)
        return checked(plan)

    checked = Plan.__post_init__
    monkeypatch.setattr(Plan, "__post_init__", check)
    for module in (jobs, sampling):
        monkeypatch.setattr(module, "find", find)
    return made, found


@pytest.mark.parametrize("denoise", ["--denoise", "--no-denoise"])
@pytest.mark.parametrize("solver", ["unipc3", "ddim", "dpm3", "heun", "dpmpp2m+unic", "dpm-fast"])
def test_a_command_looks_a_solver_up_once_and_plans_once(counted, solver, denoise):
    """However many batches there are."""
    to_zero = denoise == "--denoise"
    nfe = {"dpm3": 48 + to_zero, "heun": 50 - to_zero}.get(solver, 50)
    args = ["--solver", solver, "--nfe", nfe, denoise]
    assert run("sample", "--model", "mixture", "--n", 2, "--batch", 1, *args, "--out", "a.png").exit_code == 0
    assert counted == ([solver], [solver])
    assert run("plan", solver, *args[2:]).exit_code == 0
    assert counted == ([solver] * 2, [solver] * 2)


def test_sample_says_what_guidance_costs():
    assert "2 NFE (4 network calls) per image" in sample("--guidance", "2").stdout


def test_sample_counts_an_adaptive_solver():
    result = run("sample", "--model", "mixture", "--solver", "dopri5", "--rtol", "1e-2", "--atol", "1e-2", "--n", 2)
    nfe = int(re.search(r"(\d+) NFE", result.stdout).group(1))
    assert nfe > 6
    (card,) = Path("samples").glob("mixture-dopri5-rtol-0.01-*.png.json")
    assert json.loads(card.read_text())["nfe"] == nfe


SHIPPED = ASSETS / "weights" / "mixture.safetensors"  # whose images differ in what they take
ADAPTIVE = ["--model", "mixture", "--solver", "dpm23", "--rtol", "0.05", "--atol", "0.05"]


def test_sample_says_what_an_adaptive_pair_did():
    result = run("sample", *ADAPTIVE, "--model", SHIPPED, "--n", 5, "--batch", 2, "--out", "a.npz")
    numbers = r"(\d+) to (\d+) NFE per image \(mean (\d+\.\d)\), (\d+\.\d) steps accepted, (\d+\.\d) rejected"
    low, high, mean, accepted, rejected = map(float, re.search(numbers, result.stdout).groups())
    card = json.loads(Path("a.npz.json").read_text())
    assert result.stderr == ""
    assert (low, high) == (min(card["nfe_of_each"]), max(card["nfe_of_each"]))
    assert mean == pytest.approx(np.mean(card["nfe_of_each"]), abs=0.05)
    assert (accepted, rejected) == pytest.approx((np.mean(card["accepted"]), np.mean(card["rejected"])), abs=0.05)
    assert card["lam_reached"] == [card["grid"][-1]] * 5
    assert card["network_calls"] == card["nfe"] == np.mean(card["nfe_of_each"])


def test_sample_within_max_nfe_hands_back_the_last_state():
    """The images are written, and it is said which did not arrive."""
    result = run("sample", *ADAPTIVE, "--n", 3, "--max-nfe", 10, "--out", "a.png")
    assert result.exit_code == 0
    assert " 9 NFE per image, 3.0 steps accepted, 0.0 rejected, " in result.stdout  # three steps of three
    card = json.loads(Path("a.png.json").read_text())
    assert card["nfe_of_each"] == [9, 9, 9]
    assert all(card["grid"][0] < lam < card["grid"][-1] for lam in card["lam_reached"])
    (warning,) = result.stderr.splitlines()
    assert warning.startswith(f"Warning: 3 of 3 images stopped at λ = {min(card['lam_reached']):.6g}")
    assert "--max-nfe" in warning
    assert Path("a.png").exists()


def test_sample_goes_on_to_sigma_0_with_an_adaptive_pair():
    assert run("sample", *ADAPTIVE, "--n", 2, "--denoise", "--out", "a.png").exit_code == 0
    card = json.loads(Path("a.png.json").read_text())
    assert card["denoise"]
    assert card["lam_reached"] == ["inf", "inf"]


def test_two_network_calls_an_evaluation_of_an_adaptive_pair_are_said():
    stdout = run("sample", *ADAPTIVE, "--guidance", 2, "--n", 2, "--out", "a.png").stdout
    card = json.loads(Path("a.png.json").read_text())
    assert card["network_calls"] == 2 * card["nfe"]
    assert f"{card['network_calls']:.6g} network calls" in stdout


def test_guidance_in_an_interval_is_counted_and_on_the_card():
    """Of ten evaluations from λ = −5 to 4.6, six are in it; the images are those of the API."""
    args = ["--model", "mixture", "--label", "3", "--guidance", 3, "--guidance-interval", "-3,2.5", "--guidance-rescale", 0.5]
    stdout = run("sample", *args, "--solver", "dpmpp2m", "--nfe", 10, "--n", 2, "--out", "a.npz").stdout
    card = json.loads(Path("a.npz.json").read_text())
    assert (card["guidance_interval"], card["guidance_rescale"]) == ([-3.0, 2.5], 0.5)
    inside = sum(-3 <= lam < 2.5 for lam in card["grid"][:-1])
    assert card["network_calls"] == 10 + inside < 20
    assert f"10 NFE ({10 + inside} network calls) per image" in stdout
    assert np.load("a.npz")["arr_0"].std() > 10


def test_the_plan_that_was_taken_can_be_kept_and_taken_again():
    assert (
        run("sample", *ADAPTIVE, "--model", SHIPPED, "--seeds", 5, "--save-plan", "taken.json", "--out", "a.npz").exit_code == 0
    )
    assert run("sample", "--model", SHIPPED, "--solver", "taken.json", "--seeds", 5, "--out", "b.npz").exit_code == 0
    one, two = (np.load(name)["arr_0"].astype(int) for name in ("a.npz", "b.npz"))
    assert abs(one - two).max() <= 1  # the same sums in another order, rounded to 256 levels
    cards = [json.loads(Path(f"{name}.npz.json").read_text()) for name in "ab"]
    assert cards[0]["nfe"] == cards[1]["nfe"]
    assert cards[1]["grid"] == Plan.load("taken.json").grid


def test_the_plan_of_a_planned_solver_can_be_kept():
    """It is the one that was run: of a solver with noise, too, and to λ = +∞."""
    args = ["--solver", "ddim", "--eta", 1, "--grid", "time", "--denoise"]
    assert sample(*args, "--save-plan", "new/plan.json", "--out", "a.npz").exit_code == 0
    plan = run("plan", "ddim", "--nfe", 2, *args[2:]).stdout
    assert run("plan", "new/plan.json").stdout == plan
    assert run("sample", "--model", "mixture", "--n", 3, "--solver", "new/plan.json", "--out", "b.npz").exit_code == 0
    assert (np.load("a.npz")["arr_0"] == np.load("b.npz")["arr_0"]).all()
    result = sample(*args, "--save-plan", "new/plan.json", "--out", "c.npz")
    refused(result, "new/plan.json exists", "--save-plan", "--overwrite")
    assert sample(*args, "--save-plan", "new/plan.json", "--out", "c.npz", "--overwrite").exit_code == 0


def test_no_plan_where_no_step_was_taken():
    result = run("sample", *ADAPTIVE, "--n", 1, "--max-nfe", 2, "--save-plan", "p.json", "--out", "a.png")
    assert result.exit_code == 0
    assert "no step was accepted" in result.stderr
    assert sorted(os.listdir()) == ["a.png", "a.png.json"]


@pytest.mark.parametrize("rtol", ["-1", "0", "inf", "nan"])
def test_a_tolerance_that_is_none(rtol):
    refused(run("sample", "--model", "mixture", "--solver", "dopri5", "--rtol", rtol), "rtol", "number", rtol)


def test_sample_has_a_default_name_and_labels_in_turn():
    """What was typed is in the name, so commands that differ do not meet."""
    for more in ((), ("--eta", 1), ("--label", "bag", "--guidance", 2), ("--grid", "quadratic"), ("--denoise",)):
        assert sample(*more).exit_code == 0
    names = {path.name for path in Path("samples").glob("*.png")}
    assert {"mixture-ddim-nfe-2-n-3.png", "mixture-ddim-nfe-2-eta-1.0-n-3.png"} <= names
    assert len(names) == 5
    assert json.loads(Path("samples/mixture-ddim-nfe-2-n-3.png.json").read_text())["labels"] == [0, 1, 2]


COMMANDS = [
    "", "--nfe 4", "--steps 4", "--eta 1", "--eta 0.5", "-o eta=1", "-o eta=1 -o x=2", "-o x=2 -o eta=1", "--grid time",
    "--grid=-5,0,4", "--grid=-5,1,4", "--grid=0,1,2", "--grid=0,1,2.5", "--seeds 0,2,4", "--seeds 0,1,4", "--seeds 0-2",
    "--seeds 2,1,0", "--seeds 4", "--label bag", "--label bag,coat", "--label none", "--guidance 2", "--clip", "--threshold 0.9",
    "--dtype float64", "--denoise", "--rtol 1", "--atol 1", "--max-nfe 9", "--variable t", "--per-sample", "--variance large",
    "--solver plan.json", "--solver a/plan.json", "--solver b/plan.json", "--solver a_plan.json", "--solver mine:solver",
    "--solver rk:heun2", "--model runs/a/ema.safetensors", "--model runs/b/ema.safetensors", "--model ema", "--r1 0.3",
    "--r2 0.3", "-o start=single", "-o start=single_1", f"-o x={'a' * 200}", f"-o x={'a' * 201}", "-o x=a/b", "-o x=a_b",
]  # fmt: skip


def named(command):
    """The default name of what `sample` writes."""
    ctx = cli.sample.make_context("sample", shlex.split(command))
    return default_name(ctx.params["model"] or "fashion", ctx.params["solver"], from_command_line(ctx))


def test_two_commands_do_not_meet_in_one_default_name():
    names = [named(command) for command in COMMANDS]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[\w.,+=-]{1,120}", name)
    assert names[:4] == ["fashion-ddim", "fashion-ddim-nfe-4", "fashion-ddim-steps-4", "fashion-ddim-eta-1.0"]
    assert "fashion-ddim-option-eta=1" in names
    assert "fashion-rk-heun2" in names


def test_what_does_not_decide_the_images_is_not_in_the_default_name():
    for command in ("--batch 3", "--device cpu", "--overwrite", "--trajectory", "--save-plan p.json"):
        assert named(command) == "fashion-ddim"


@pytest.mark.parametrize(
    ("module", "argv", "typed"),
    [
        (None, ["cli.py"], ["python", "cli.py"]),
        (None, ["/usr/bin/diffode"], ["diffode"]),
        ("diffode.__main__", ["/a/diffode/__main__.py"], ["python", "-m", "diffode"]),
        ("experiments.claims.order", ["/a/experiments/claims/order.py"], ["python", "-m", "experiments.claims.order"]),
    ],
)
def test_a_command_is_recorded_as_it_was_typed(monkeypatch, module, argv, typed):
    """But for --resume, which the first run did not have."""
    spec = module and ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [*argv, "train", "--resume", "--out", "it's a λ"])
    assert shlex.split(command_line()) == [*typed, "train", "--out", "it's a λ"]


@pytest.mark.parametrize("program", [[str(ROOT / "cli.py")], ["-m", "diffode"]], ids=str)
def test_the_first_command(here, program):
    """In a process of its own, from both front doors: images, and a card that records the command."""
    args = ["sample", "--model", "mixture", "--n", "1", "--nfe", "1", "--out", "a.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *program, *args], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert shlex.split(json.loads(Path("a.npz.json").read_text())["command"]) == ["python", *program, *args]


@pytest.mark.parametrize("name", cli.main.commands)
def test_the_examples_of_the_help_can_be_typed(name):
    command = cli.main.commands[name]
    text = run(name, "--help").stdout
    examples = re.findall(rf"^  python cli\.py {name}(.*)$", text, re.M)
    assert 2 <= len(examples) <= 4
    for line in examples:
        words = shlex.split(line.partition(" | ")[0])
        command.make_context(name, words)


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("give `save_plan` another name, or overwrite=True", "give --save-plan another name, or --overwrite"),
        ('grid="time" or denoise=False', "--grid time or --no-denoise"),
        ("more than batch=2: ask for n=1", "more than --batch 2: ask for --n 1"),
        ("max_nfe=9: raise `max_nfe`; leave nfe out", "--max-nfe 9: raise --max-nfe; leave nfe out"),
        ("`solvers` lists the options, as start=single; order=3", "`solvers` lists the options, as start=single; order=3"),
    ],
)
def test_parameters_are_printed_as_options(message, printed):
    assert with_flags(message, cli.sample) == printed


def test_the_help_of_sample_is_in_groups():
    text = run("sample", "--help").stdout
    titles = ["What is drawn:", "The solver and its budget:", "How the model is run:", "Where it goes:"]
    assert sorted(titles, key=text.index) == titles


def test_the_recorded_command_can_be_typed_again(monkeypatch):
    args = ["sample", "--model", "mixture", "--n", "2", "--nfe", "2", "--out", "it's a λ.npz"]
    monkeypatch.setattr(sys, "argv", ["cli.py", *args])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as `python cli.py` has it
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


def test_a_grid_from_a_file():
    lam = [-5.0, 1 / 3, 4.6]
    Path("g.json").write_text(json.dumps({"lam": lam}))
    assert sample("--grid", "g.json", "--out", "a.npz").exit_code == 0
    assert json.loads(Path("a.npz.json").read_text())["grid"] == lam
    assert run("plan", "ddim", "--grid", "g.json").stdout.count("\n") == 5


@pytest.mark.parametrize(
    ("lam", "words"),
    [
        ([-5, 2, 0], ["increasing", "-5"]),
        ([-9, 0, 4], ["-9", "-5.05884 to 4.60512"]),
        ([-5, 0, 2, 4], ["3 evaluations", "not 2", "leave nfe out"]),
        ("no list", ["g.json", "not a grid"]),
    ],
    ids=str,
)
def test_a_file_of_no_grid(lam, words):
    Path("g.json").write_text(json.dumps({"lam": lam}))
    refused(sample("--grid", "g.json"), *words)
    assert os.listdir() == ["g.json"]


@pytest.mark.parametrize(
    ("solver", "short", "long"),
    [
        ("ddim", ["--eta", "0.5"], ["-o", "eta=0.5"]),
        ("dpm2", ["--r1", "0.3"], ["--option", " r1 = 0.3 "]),
        ("ddpm", ["--variance", "large"], ["-o", "variance=large"]),
        ("rk:heun2", ["--variable", "lam"], ["-o", "variable=lam"]),
        ("rk4", ["--variable", "sigma_bar"], ["-o", "variable=sigma_bar"]),
        ("dopri5", ["--per-sample"], ["-o", "per-sample=true"]),
        ("dopri5", ["--rtol", "0.1"], ["-o", "rtol=0.1"]),
    ],
)
def test_an_option_by_its_own_name_and_by_option(solver, short, long):
    plain, *both = ("plain.npz", "short.npz", "long.npz")
    budget = ["--atol", 1e-3] if solver == "dopri5" else ["--nfe", 4]
    for name, args in zip((plain, *both), ([], short, long), strict=True):
        result = run("sample", "--model", "mixture", "--n", 2, "--solver", solver, *budget, *args, "--out", name)
        assert result.exit_code == 0, result.output
    cards = [json.loads(Path(f"{name}.json").read_text()) for name in both]
    assert cards[0]["options"] == cards[1]["options"] != {}
    pixels = [np.load(name)["arr_0"].astype(int) for name in (plain, *both)]
    assert (pixels[1] == pixels[2]).all()
    assert (pixels[0] != pixels[1]).any()


def test_options_that_json_cannot_hold(here):
    """S_tmax = ∞ is what EDM's code has."""
    args = ["--solver", "heun-churn", "-o", "s_tmax=inf", "-o", "s-churn=8", "--nfe", 7, "--denoise", "--out", "a.npz"]
    assert run("sample", "--model", "mixture", "--n", 2, *args).exit_code == 0
    assert json.loads(Path("a.npz.json").read_text())["options"] == {"s_tmax": "inf", "s_churn": 8.0}


def test_every_option_of_every_solver_can_be_said():
    """As text, and it is read as the type that the solver takes."""
    from solvers.options import parse

    said = {float: "0.5", int: "3", bool: "true", str: "ramp"}
    for entry in SOLVERS.values():
        for name, kind in entry.options.items():
            assert type(parse(entry.name, entry.options, {name: said[kind]})[name]) is kind, (entry.name, name)


def test_dpm_fast_spends_any_number():
    for nfe in (4, 5, 6, 7):
        assert f" {nfe} NFE" in sample("--solver", "dpm-fast", "--nfe", nfe, "--out", f"{nfe}.png").stdout
        assert json.loads(Path(f"{nfe}.png.json").read_text())["options"] == {"tail": nfe % 3}


def test_a_trajectory_is_written(here):
    result = sample("--trajectory", "--denoise", "--out", "a.png")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(here)) == ["a-trajectory.npz", "a-trajectory.png", "a.png", "a.png.json"]
    states = np.load("a-trajectory.npz")
    assert states["lam"].tolist() == [*json.loads(Path("a.png.json").read_text())["grid"], np.inf]
    assert states["x"].shape == states["x0"].shape == (3, 3, 1, 28, 28)
    assert np.isnan(states["x0"][:, 0]).all()
    assert np.isfinite(states["x0"][:, 1:]).all()
    np.testing.assert_allclose(states["x"][:, -1], states["x0"][:, -1], rtol=0, atol=1e-5)  # the last step ends with x̂0, rounded
    refused(sample("--trajectory", "--out", "a.npz", "--denoise"), "a-trajectory.npz exists", "--out")
    assert sample("--trajectory", "--out", "a.npz", "--overwrite").exit_code == 0
    assert (datasets.to_pixels(torch.from_numpy(np.load("a-trajectory.npz")["x"][:, -1])) == np.load("a.npz")["arr_0"]).all()


@pytest.mark.parametrize(("solver", "args", "states"), [("rk4", ["--nfe", 8], 3), ("dopri5", ["--rtol", 0.1], 12)])
def test_a_trajectory_of_torchdiffeq_has_states_alone(solver, args, states):
    result = run("sample", "--model", "mixture", "--n", 2, "--solver", solver, *args, "--trajectory", "--out", "a.npz")
    assert result.exit_code == 0, result.output
    arrays = np.load("a-trajectory.npz")
    assert set(arrays) == {"lam", "x"}
    assert arrays["x"].shape == (2, states, 1, 28, 28)
    assert Image.open("a-trajectory.png").size[0] > 84 * states


BAD = {
    "unknown solver": (["--solver", "dmpp2m"], ["dmpp2m", "did you mean", "dpmpp2m"]),
    "nfe 0": (["--nfe", "0"], ["--nfe", "whole number from 1", "not 0"]),
    "nfe negative": (["--nfe", "-3"], ["--nfe", "whole number from 1", "-3"]),
    "nfe odd": (["--solver", "dpm2", "--nfe", "7"], ["dpm2", "7", "6 or 8"]),
    "nfe of dpm3": (["--solver", "dpm3", "--nfe", "10"], ["dpm3", "10", "9 or 12"]),
    "nfe not a number": (["--nfe", "ten"], ["--nfe", "ten"]),
    "adaptive with nfe": (["--solver", "dopri5"], ["dopri5", "adaptive", "rtol"]),
    "nfe and steps": (["--steps", "2"], ["nfe", "steps"]),
    "steps 0": (["--steps", "0"], ["--steps", "x>=1"]),
    "unknown grid": (["--grid", "cosine"], ["cosine", "logsnr", "karras"]),
    "grid out of order": (["--grid=-5,2,0"], ["increasing", "-5"]),
    "grid twice the same": (["--grid=-5,0,0"], ["increasing", "-5"]),
    "grid with nan": (["--grid=-5,nan,4"], ["--grid", "numbers", "nan"]),
    "grid outside": (["--grid=-9,0,4"], ["-9", "-5.05884 to 4.60512"]),
    "grid at minus infinity": (["--grid=-inf,0,4"], ["inf"]),
    "grid of one": (["--grid=-5"], ["--grid", "2 to", "-5"]),
    "grid of words": (["--grid=-5,x"], ["--grid", "-5,x"]),
    "grid empty": (["--grid="], ["--grid", "-5,-2,0,2,4.6"]),
    "option of another solver": (["--solver", "dpm2", "--eta", "0.5"], ["dpm2", "eta", "r1"]),
    "eta": (["--eta", "2"], ["η", "between 0 and 1", "2"]),
    "eta nan": (["--eta", "nan"], ["option eta", "nan"]),
    "r1": (["--solver", "dpm2", "--r1", "0"], ["r1", "dpm2", "0"]),
    "variance": (["--solver", "ddpm", "--variance", "huge"], ["huge", "small", "large"]),
    "denoise with torchdiffeq": (["--solver", "midpoint", "--denoise"], ["midpoint", "finite", "leave denoise out"]),
    "label out of range": (["--label", "10"], ["'10'", "0 T-shirt", "9 ankle-boot"]),
    "label negative": (["--label", "-1"], ["'-1'", "9 ankle-boot"]),
    "label unknown": (["--label", "bag,cat"], ["'cat'", "8 bag"]),
    "label empty": (["--label", ""], ["label", "8 bag"]),
    "interval of nan": (["--guidance", "2", "--guidance-interval", "nan,1"], ["--guidance-interval", "2 numbers", "nan"]),
    "interval without guidance": (["--guidance-interval", "0,1"], ["--guidance-interval", "--guidance", "1"]),
    "guidance nan": (["--guidance", "nan"], ["guidance", "nan", "finite"]),
    "guidance beyond float32": (["--guidance", "1e308"], ["guidance", "1e+308"]),
    "guidance to nothing": (["--label", "none", "--guidance", "3"], ["guidance", "3", "label"]),
    "threshold": (["--threshold", "1.5"], ["quantile", "1.5"]),
    "suffix": (["--out", "x.jpg"], [".jpg", ".png", ".npz", "folder"]),
    "out is the folder": (["--out", "."], ["no output", "a folder"]),
    "out is the root": (["--out", "/"], ["no output", "a folder"]),
    "out is nothing": (["--out", ""], ["--out", "is no name"]),
    "seeds malformed": (["--seeds", "1;2"], ["--seeds", "1;2", "0-49999"]),
    "seeds negative": (["--seeds", "-3"], ["--seeds", "-3"]),
    "seeds reversed": (["--seeds", "9-3"], ["--seeds", "9-3"]),
    "seeds reversed among others": (["--seeds", "1,9-3"], ["--seeds", "9-3"]),
    "seeds without an end": (["--seeds", "5-"], ["--seeds", "5-"]),
    "seeds twice": (["--seeds", "1,0-2"], ["--seeds", "1,0-2", "different"]),
    "seeds too large": (["--n", "1", "--seeds", str(2**32)], ["a seed", "from 0 to 4294967295"]),
    "n and seeds": (["--seeds", "1,2"], ["--n 3", "--seeds"]),
    "n 0": (["--n", "0"], ["--n", "x>=1"]),
    "batch 0": (["--batch", "0"], ["--batch", "1<=x<="]),
    "no such device": (["--device", "tpu"], ["'tpu'", "cpu"]),
    "no such cpu": (["--device", "cpu:x"], ["cpu:x"]),
    "dtype": (["--dtype", "int8"], ["int8", "bfloat16"]),
    "unknown model": (["--model", "fasion"], ["'fasion'", "fashion, mixture"]),
    "missing checkpoint": (["--model", "runs/ema.safetensors"], ["runs/ema.safetensors"]),
    "unknown option": (["--solvr", "ddim"], ["--solvr", "--solver"]),
    "option unknown": (["-o", "etta=1"], ["ddim", "etta", "eta"]),
    "option of no solver": (["--solver", "dpm1", "-o", "eta=1"], ["dpm1", "eta", "none"]),
    "option without a value": (["-o", "eta"], ["eta", "NAME=VALUE"]),
    "option with nothing": (["-o", "eta="], ["eta=", "NAME=VALUE"]),
    "option without a name": (["-o", "=1"], ["=1", "NAME=VALUE"]),
    "option of words": (["-o", "eta=x"], ["eta", "ddim", "a number", "'x'"]),
    "option of a fraction": (["--solver", "deis-t", "-o", "order=2.5"], ["order", "deis-t", "a whole number", "'2.5'"]),
    "option of maybe": (["--solver", "dpmpp2m", "-o", "lower_final=maybe"], ["lower_final", "true or false", "'maybe'"]),
    "option of another word": (["--solver", "dpmpp2m", "-o", "start=heun"], ["dpmpp2m", "ramp", "single", "heun"]),
    "option twice": (["-o", "eta=1", "-o", "eta=1"], ["eta", "twice", "leave one out"]),
    "option twice in two ways": (["--eta", "0.5", "-o", "eta=1"], ["eta", "twice"]),
    "option twice by its name": (["--eta", "0.5", "--eta", "1"], ["eta", "twice"]),
    "option decided by nfe": (["--solver", "dpm-fast", "--nfe", "7", "-o", "tail=2"], ["nfe decides", "tail", "dpm-fast"]),
    "variable": (["--solver", "rk4", "--nfe", "4", "--variable", "x"], ["--variable", "'x'", "sigma_bar"]),
    "variable t of rk": (["--solver", "rk:heun2", "--variable", "t"], ["rk:heun2", "sigma_bar", "lam", "'t'"]),
    "variable of ddim": (["--variable", "lam"], ["ddim", "variable", "eta"]),
    "per-sample of ddim": (["--per-sample"], ["ddim", "per_sample", "eta"]),
    "no plan to keep": (["--solver", "rk4", "--nfe", "4", "--save-plan", "p.json"], ["rk4", "no plan"]),
    "plan of no .json": (["--save-plan", "p.txt"], ["--save-plan", ".json", "p.txt"]),
    "plan in the card's place": (["--save-plan", "a.png.json"], ["a.png.json", "--save-plan"]),
    "plan in a folder's place": (["--save-plan", "/"], ["--save-plan"]),
    "plan under a file": (["--save-plan", "/dev/null/p.json"], ["/dev/null", "--save-plan"]),
    "missing plan": (["--solver", "missing.json"], ["missing.json", "Plan.save"]),
    "missing module": (["--solver", "missing_module:solver"], ["missing_module", "MODULE:NAME"]),
    "trajectory of two batches": (["--trajectory", "--batch", "2"], ["--trajectory", "3", "--batch 2"]),
    "corrector of none": (["--solver", "ddim+unic"], ["ddim", "corrector", "dpmpp2m+unic"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(here, name):
    args, words = BAD[name]
    standard = {"--model": "mixture", "--n": "3", "--out": "a.png"} | ({} if name.startswith("grid") else {"--nfe": "2"})
    refused(run("sample", *(part for option in standard.items() for part in option), *args), *words)
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--n", 3, "--save-plan", "p.json"], ["3 images", "--save-plan", "--n 1"]),
        (["--n", 3, "--trajectory"], ["dpm23", "no committed states", "trajectory"]),
        (["--n", 3, "--nfe", 9], ["dpm23", "rtol"]),
        (["--n", 3, "--steps", 9], ["dpm23", "rtol"]),
        (["--n", 3, "--grid=-5,0,4"], ["dpm23", "rtol"]),
        (["--n", 3, "--max-nfe", 0], ["--max-nfe", "x>=1"]),
        (["--n", 3, "-o", "max_nfe=0"], ["--max-nfe", "not 0"]),
    ],
    ids=str,
)
def test_bad_input_of_an_adaptive_pair(here, args, words):
    refused(run("sample", *ADAPTIVE, *args, "--out", "a.png"), *words)
    assert os.listdir(here) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(here):
    refused(sample("--device", "cuda"), "'cuda'", "there is cpu")
    assert os.listdir(here) == []


def test_astronomic_numbers_neither_hang_nor_eat_the_memory(here):
    """All in one process, which has six seconds and 4 GiB."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import cli, torch, experiments.sampling.generate
spent = resource.getrusage(resource.RUSAGE_SELF)
limit = int(spent.ru_utime + spent.ru_stime) + 6
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
for many in ("--seeds 0-999999999999", "--n 999999999999", "--n 1 --nfe 1000000000"):
    try:
        cli.main(["sample", "--model", "mixture", *many.split(), "--out", "a.png"])
    except SystemExit as ended:
        assert ended.code == 2, many
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-500:]
    assert len(re.findall("^Error: ", result.stderr, re.M)) == 3
    assert os.listdir(here) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 1000, b"\x80\x04N."], ids=["empty", "zeros", "pickle"])
def test_corrupt_checkpoint(here, content):
    (here / "bad.safetensors").write_bytes(content)
    refused(sample("--model", "bad.safetensors"), "bad.safetensors", "corrupt", "no other format")
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
    refused(sample("--out", out), "wall", "folder", "another name")
    assert os.listdir(here) == ["wall"]
    assert (here / "wall").read_text() == "brick"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        result = subprocess.run([*CLI, "solvers"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "Error: No space left on device: standard output\n"


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")])
def test_a_signal_leaves_no_output_and_the_same_command_goes_on(here, number, code, word, small_weights):
    args = [
        "sample",
        "--model",
        str(small_weights / "mixture.safetensors"),
        "--nfe",
        "40",
        "--n",
        "36",
        "--batch",
        "3",
        "--out",
        "a.npz",
    ]
    process = started(*args)
    wait_for(here, ".a.npz.*/0.npz", process)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (code, "")
    assert err == f"{word}: the same command goes on where it was.\n"
    assert list(here.iterdir()) == list(here.glob(".a.npz.*"))  # the finished batches alone
    assert not (here / "a.npz").exists()
    assert run(*args).exit_code == 0
    assert sorted(os.listdir(here)) == ["a.npz", "a.npz.json"]


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(evaluations): the next `sample` is interrupted after so many, as Ctrl-C does."""
    real = progress.progress

    def after(evaluations):
        @contextmanager
        def interrupting(job):
            seen = []

            def watch(done, lam):
                seen.append(lam)
                if len(seen) == evaluations:
                    monkeypatch.setattr(progress, "progress", real)
                    raise KeyboardInterrupt

            yield watch

        monkeypatch.setattr(progress, "progress", interrupting)

    return after


def test_ctrl_c_of_a_trajectory_and_the_same_command_goes_on(here, interrupt):
    """The batch that was under way begins again, and the states are those of an undisturbed run."""
    args = ["sample", "--model", "mixture", "--nfe", "30", "--n", "5", "--batch", "5", "--trajectory", "--out"]
    interrupt(20)
    result = run(*args, "a.npz")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "Interrupted: the same command goes on where it was.\n"
    assert not [name for name in os.listdir(here) if not name.startswith(".")]
    assert run(*args, "a.npz").exit_code == run(*args, "b.npz").exit_code == 0
    one, two = np.load("a-trajectory.npz"), np.load("b-trajectory.npz")
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in ("lam", "x", "x0"))
    assert not [name for name in os.listdir(here) if name.startswith(".")]


def started(*args):
    """The command line in a process of its own, which Ctrl-C reaches even where the tests run in the background, deaf to it."""
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*CLI, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)


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
        (["dpm9"], ["dpm9", "did you mean", "dpm2"]),
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


def test_a_plan_is_saved_drawn_and_shown(here):
    result = run("plan", "unipc3", "--nfe", 5, "--save", "new/plan.json", "--png", "plan.png")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(here)) == ["new", "plan.png"]
    assert str(Plan.load("new/plan.json")) + "\n" == result.stdout
    assert run("plan", "new/plan.json").stdout == result.stdout
    assert run("plan", "new/plan.json", "--png", "again.png").exit_code == 0
    assert Path("again.png").read_bytes() == Path("plan.png").read_bytes()
    assert Image.open("plan.png").format == "PNG"
    before = {path: path.read_bytes() for path in here.rglob("*.*") if path.is_file()}
    refused(run("plan", "ddim", "--save", "new/plan.json"), "new/plan.json exists", "--save another name", "--overwrite")
    refused(run("plan", "ddim", "--save", "b.json", "--png", "plan.png"), "plan.png exists", "--png another name", "--overwrite")
    assert {path: path.read_bytes() for path in here.rglob("*.*") if path.is_file()} == before
    assert run("plan", "ddim", "--save", "new/plan.json", "--png", "plan.png", "--overwrite").exit_code == 0
    assert Plan.load("new/plan.json").solver == "ddim"


def test_a_plan_is_drawn_with_matplotlib_only(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run("plan", "ddim", "--save", "a.json", "--png", "a.png"), "matplotlib", "pip install 'diffode[plots]'")
    assert os.listdir(here) == []
    assert run("plan", "ddim", "--save", "a.json").exit_code == 0


@pytest.mark.parametrize("place", ["--save=wall/a.json", "--save=a.txt", "--png=a.jpg", "--png=wall/b/c.png", "--save=here.json"])
def test_a_plan_that_cannot_be_written(here, place):
    (here / "wall").write_text("brick")
    (here / "here.json").mkdir()
    option, _, path = place.partition("=")
    refused(run("plan", "ddim", place), path, option)
    assert sorted(os.listdir(here)) == ["here.json", "wall"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours(here):
    (here / "locked").mkdir(mode=0o500)
    refused(run("plan", "ddim", "--save", "locked/a.json"), "locked", "--save")
    refused(sample("--out", "a.png", "--save-plan", "locked/a.json"), "locked", "--save-plan")
    refused(sample("--out", "locked/a.png"), "locked")


def save_plan(*args, name="plan.json"):
    assert run("plan", *args, "--save", name).exit_code == 0


CORRUPT = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1, 2]",
    "no stages": lambda text: '{"solver": "ddim"}',
    "binary": lambda text: "\x00\x01",
    "a wrong number": lambda text: text.replace('"x": 1.', '"x": 2.', 2),
    "a number of words": lambda text: text.replace('"x": 1.0', '"x": "one"', 1),
    "another path": lambda text: text.replace('"vp"', '"vpp"'),
    "another field": lambda text: text.replace('"evaluate"', '"evalute"'),
}


@pytest.mark.parametrize("how", CORRUPT)
def test_a_corrupt_plan(here, how):
    save_plan("ddim", "--nfe", 4)
    text = (here / "plan.json").read_text()
    (here / "plan.json").write_text(CORRUPT[how](text))
    assert (here / "plan.json").read_text() != text
    for command in (["plan", "plan.json"], ["sample", "--model", "mixture", "--n", 1, "--solver", "plan.json", "--out", "a.png"]):
        refused(run(*command), "plan.json is not a")
    assert os.listdir(here) == ["plan.json"]


def test_a_plan_has_its_own_budget_schedule_and_path(here):
    save_plan("ddim", "--nfe", 4)
    save_plan("ddim", "--nfe", 4, "--schedule", "flow", name="flow.json")
    here_is = ["sample", "--model", "mixture", "--n", 1, "--out", "a.png", "--solver"]
    for more in (["--nfe", 4], ["--steps", 4], ["--grid", "logsnr"], ["--grid=-5,4"], ["--denoise"]):
        refused(run(*here_is, "plan.json", *more), "plan.json", "its own grid", "leave nfe, steps, grid and denoise out")
        refused(run("plan", "plan.json", *more), "plan.json", "leave all other options out")
    refused(run("plan", "plan.json", "--schedule", "ddpm_linear"), "plan.json", "leave all other options out")
    for command in (["plan", "plan.json"], [*here_is, "plan.json"]):
        refused(run(*command, "--eta", 1), "plan.json", "eta")
    refused(run(*here_is, "flow.json"), "flow.json", "flow", "vp")
    assert sorted(os.listdir(here)) == ["flow.json", "plan.json"]


def test_another_plan_of_the_same_name_is_another_job(here, interrupt):
    """What was sampled with the first is not mixed with the second."""
    args = ["sample", "--model", "mixture", "--n", "6", "--batch", "3", "--solver", "plan.json", "--out", "a.npz"]
    save_plan("ddim", "--nfe", 10)
    interrupt(15)
    assert run(*args).exit_code == 130
    assert list(here.glob(".a.npz.*/0.npz"))
    save_plan("dpmpp2m", "--nfe", 2, "--overwrite")
    result = run(*args)
    assert "6 images, 2 NFE per image" in result.stdout
    whole = run("sample", "--model", "mixture", "--n", 6, "--batch", 3, "--solver", "dpmpp2m", "--nfe", 2, "--out", "b.npz")
    assert whole.exit_code == 0
    assert (np.load("a.npz")["arr_0"] == np.load("b.npz")["arr_0"]).all()


MINE = """
from solvers import Solver
from solvers.ddim import ddim
mine = Solver("mine", lambda grid, schedule: ddim(grid, schedule, eta={eta}), 1, 1, "me")
other = 1
"""


def test_a_solver_of_ones_own(here):
    (here / "my_solvers.py").write_text(MINE.format(eta=0.5))
    args = ["sample", "--model", "mixture", "--n", 2, "--nfe", 3, "--out"]
    for name, more in (("a.npz", ["--solver", "my_solvers:mine"]), ("b.npz", ["--eta", 0.5])):
        assert run(*args, name, *more).exit_code == 0
    assert (np.load("a.npz")["arr_0"] == np.load("b.npz")["arr_0"]).all()
    first, named = (json.loads(Path(f"{name}.npz.json").read_text())["plan"] for name in "ab")
    assert first is not None
    assert named is None
    refused(run(*args, "c.npz", "--solver", "my_solvers:other"), "my_solvers:other", "not a Solver")
    refused(run(*args, "c.npz", "--solver", "my_solvers:none"), "my_solvers:none", "MODULE:NAME")


def test_verify_measures_claims(monkeypatch):
    result = run("verify", "ddim")
    assert result.exit_code == 0, result.output
    assert "ddim" in result.stdout
    monkeypatch.setitem(SOLVERS, "ddim", dataclasses.replace(SOLVERS["ddim"], order=2))
    result = run("verify", "ddim")
    assert result.exit_code == 1
    assert "order of ddim" in result.stdout
    refused(run("verify", "ddim", "dmpp2m"), "dmpp2m", "did you mean dpmpp2m")


def test_solvers_are_listed():
    table = run("solvers").stdout.splitlines()
    names = [line.split("|")[1].strip() for line in table]
    assert names[0] == "name"
    assert names[2:] == [*SOLVERS, *ALIASES]
    assert len({len(line) for line in table}) == 1


@pytest.fixture
def few_samples(monkeypatch):
    """Training draws few images at each saving."""
    monkeypatch.setattr("experiments.training.train.SAMPLES", 3)


def few(n=64, **more):
    """few.npz: the middle, 16 × 16 pixels, of images."""
    subset = datasets.packaged()
    np.savez("few.npz", subset.pixels[:n, 6:22, 6:22], subset.labels[:n], **more)


def train(out, *args, images=64, every=32):
    return run("train", *TINY, "--out", out, "--images", images, "--every", every, *args)


def same(one, two):
    one, two = (checkpoint.read(path)[0] for path in (one, two))
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_train_makes_a_run_that_can_be_sampled_and_resumed(few_samples):
    few()
    result = train("run")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"64 images seen, L_simple \d\.\d+, done: run\n", result.stdout)
    files = {path.name for path in Path("run").iterdir() if not path.name.startswith(".")}
    assert files == {"state.safetensors", "ema.safetensors", "ema.json", "log.csv", "samples.png"}
    with open("run/log.csv", newline="") as file:
        assert [int(row["images"]) for row in csv.DictReader(file)] == [32, 64]
    assert pretrained.load("run/ema.safetensors").card.to_json() == json.loads(Path("run/ema.json").read_text())
    assert sample("--model", "run/ema.safetensors", "--out", "a.png").exit_code == 0
    refused(sample("--model", "run/state.safetensors", "--out", "b.png"), "state.safetensors", "training")

    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    refused(train("run"), "run holds a run", "resume it", "(out)")
    refused(train("run", "--resume", "--lr", "0.01"), "state.safetensors", "lr", "(out)")
    refused(train("run", "--resume", "--width", "32", "--seed", "1"), "unet", "seed")
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert train("run", "--resume", images=96).exit_code == 0
    assert train("whole", images=96, every=1000).exit_code == 0
    assert same("run/ema.safetensors", "whole/ema.safetensors")


def test_train_does_not_go_on_with_other_images(few_samples):
    few()
    assert train("run", images=16).exit_code == 0
    few(48)
    refused(train("run", "--resume", images=32), "state.safetensors", "data")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(here, number, few_samples):
    """Killed, it goes on from its last checkpoint; interrupted, it saves first."""
    few()
    process = started("train", *TINY, "--out", "run", "--images", "1000000", "--every", "32")
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


def test_names_of_classes_that_no_image_has(few_samples):
    """A subset of few classes keeps all their names, and every label that the model knows can be drawn."""
    subset = datasets.packaged()
    np.savez("few.npz", arr_0=subset.pixels[:32], arr_1=np.arange(32) % 4, classes=np.array(subset.classes))
    assert train("run", images=16).exit_code == 0
    classes = pretrained.load("run/ema.safetensors").classes
    assert classes[:4] == subset.classes[:4]
    assert run("sample", "--model", "run/ema.safetensors", "--nfe", 2, "--n", 10, "--out", "a.npz").exit_code == 0


BAD_TRAINING = {
    "nothing to resume": (["--resume"], ["run/state.safetensors"]),
    "no data": (["--data-dir", "nowhere"], ["nowhere", "apt-get install"]),
    "width": (["--width", "17"], ["17", "16"]),
    "width 0": (["--width", "0"], ["width", "0"]),
    "width negative": (["--width", "-16"], ["width", "-16"]),
    "patch 0": (["--patch", "0"], ["patch", "0"]),
    "patch 3": (["--patch", "3"], ["patch", "3", "16"]),
    "blocks negative": (["--blocks", "-1"], ["blocks", "-1"]),
    "multipliers": (["--multipliers", "1,x"], ["1,x", "whole numbers"]),
    "multipliers 0": (["--multipliers", "1,0"], ["multipliers"]),
    "multipliers none": (["--multipliers", ""], ["multipliers"]),
    "attention": (["--attention", "x"], ["x", "whole numbers"]),
    "batch": (["--batch", "0"], ["batch", "0"]),
    "lr": (["--lr", "nan"], ["lr", "nan"]),
    "drop-label": (["--drop-label", "2"], ["drop_label", "2"]),
    "predicts": (["--predicts", "x0"], ["x0", "velocity"]),
    "schedule": (["--schedule", "linear"], ["linear", "ddpm_linear"]),
    "gamma": (["--gamma", "l2"], ["l2", "simple"]),
    "images": (["--images", "0"], ["--images", "x>=1"]),
    "seed": (["--seed", "-1"], ["--seed", "0<=x<="]),
    "device": (["--device", "tpu"], ["'tpu'", "cpu"]),
    "a file in the way": (["--out", "few.npz/run"], ["few.npz", "another name"]),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training(here, name):
    few(16)
    args, words = BAD_TRAINING[name]
    refused(train("run", *args, images=16), *words)
    assert os.listdir(here) == ["few.npz"]
