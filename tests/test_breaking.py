"""Bad input of every kind to every option of every command: exit code 2, one sentence, nothing written, nothing lost, and soon.

The values are generated from the types of the commands' own parameters (`values_of`); those that a type cannot know, files above
all, are written down (WRONG_FILES, WRITTEN). All cases of a command run in one forked process, in a folder with files of the
user's, with 1 GiB more than it has and ten seconds of processor time for each.
"""

import contextlib
import importlib
import json
import os
import re
import resource
import select
import signal
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
from diffode.images import datasets
from experiments.common import terminal
from experiments.common.options import FileName, GridSpec, NameValue, Numbers

ROOT = Path(cli.__file__).parent
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if "cls=Script" in path.read_text(encoding="utf-8") and path.name != "commands.py"
)
SECONDS, GIB, LONGEST = 10, 2**30, 400
NUL, UNDECODABLE, ESCAPES = "a\0b", "a\udcffb", "\x1b[31mred\x1b[0m\nError: forged \u202e"
NINES, LONG, HUGE = "9" * 5000, "x" * 5000, "10" * 15


def find(name):
    """A command by its name, `sample` or experiments.ROOM.NAME."""
    return cli.main.commands[name] if name in cli.main.commands else importlib.import_module(name).main


TINY = ["--width", "16", "--multipliers", "1", "--attention", "", "--batch", "4", "--device", "cpu", "--data-dir", "few.npz"]
PIPELINE = {"--model": None, "--pipeline": "sd", "--prompt": "a red bicycle"}
COMPARISON = ["--solvers", "ddim", "--nfe", "1", "--grids", "logsnr", "--n", "1", "--rtol", "0.1", "--features", "none"]
BASE = {  # what is asked for beside the bad value: little, and right
    "sample": ["--model", "mixture", "--n", "1", "--nfe", "1", "--out", "new/a.png"],
    "plan": ["--nfe", "2"],
    "compare": ["--model", "mixture", *COMPARISON, "--tolerance", "1e-2", "--out", "new/compared"],
    "train": [*TINY, "--images", "4", "--out", "new/run"],
    "evaluate": ["--n", "20"],
    "experiments.comparison.report": ["--out", "new/report.html"],
    "experiments.comparison.optimal_grid": [
        "--model",
        "mixture",
        "--solver",
        "ddim",
        "--nfe",
        "2",
        "--n",
        "2",
        "--out",
        "new/g.json",
    ],
    "experiments.training.fit_mixture": ["--data-dir", "few.npz", "--out", "new/m.safetensors", "--iterations", "1"],
    "experiments.training.train_classifier": ["--data-dir", "few.npz", "--out", "new/classifier"],
    "experiments.ddim_paper.inpaint": ["--out", "new/i.png"],
}
ARGUMENTS = {"plan": ["ddim"], "evaluate": ["few.npz"], "experiments.comparison.report": ["photos"]}
INSTEAD = {  # of an option that needs another solver, or excludes others of these
    **{f"--{name}": {"--solver": "dpm3", "--nfe": "3"} for name in ("r1", "r2")},
    **{f"--{name}": {"--solver": "dpm23", "--nfe": None} for name in ("rtol", "atol", "max-nfe")},
    "--variance": {"--solver": "ddpm"},
    "--steps": {"--nfe": None},
    "--grid": {"--nfe": None},
    "--seeds": {"--n": None},
    "--init": {"--strength": "0.5"},
    **{option: {"--init": "few.npz"} for option in ("--strength", "--from-lam")},
    **{option: PIPELINE for option in ("--pipeline", "--negative-prompt", "--height", "--width")},
    "--prompt": {**PIPELINE, "--prompt": None},
    "--prompts": {**PIPELINE, "--prompt": None},
}
LEFT_OUT = {("--nfe", None), ("--n", None), ("--model", None), ("--prompt", None)}


def values_of(param):
    """Bad values of a parameter, by its type."""
    kind = param.type
    if getattr(param, "is_flag", False):
        return [f"{param.opts[0]}={text}" for text in ("", "x", "1")]  # a flag takes no value
    if isinstance(kind, click.types.IntParamType):
        low, high = getattr(kind, "min", None), getattr(kind, "max", None)
        out = [str(bound) for bound in (*([] if low is None else [low - 1]), *([] if high is None else [high + 1]))]
        return ["", "x", "1.5", "nan", "inf", "0x10", "1e3", NINES, "-" + NINES, ESCAPES, HUGE, "-1", *out]
    if isinstance(kind, click.types.FloatParamType):
        return ["", "x", "nan", "inf", "-inf", "1e999", "1,5", "0x1p3", ESCAPES, NINES]
    if isinstance(kind, click.Choice):
        return ["", "x", LONG, ESCAPES, str(kind.choices[0]).upper() + "S"]
    if isinstance(kind, Numbers):
        return [
            "",
            "x",
            "1,,2",
            "3-1",
            "-1",
            "1-",
            NINES,
            f"1-{NINES}",
            "0-99999999999",
            "1,1",
            "１２",
            "1.5",
            "nan",
            "1;2",
            ESCAPES,
        ]
    if isinstance(kind, NameValue):
        return [
            "",
            "x",
            "=",
            "=1",
            "eta=",
            "etta=1",
            "eta=x",
            "eta=nan",
            "eta=1e999",
            f"eta={NINES}",
            f"{LONG}=1",
            ESCAPES + "=1",
        ]
    if isinstance(kind, GridSpec):
        lists = ["", ",", "1", "1,1", "nan,1", "-inf,0", "1e999,2", "x,1", "5,1", "-9,9", "-5,,4", "-" + NINES]
        return [*lists, "cosine", "Logsnr", LONG, ESCAPES]
    if isinstance(kind, FileName):
        return ["", " ", NUL, UNDECODABLE, LONG, "/proc/none/a.json", "notes.txt/a", f"new/{'x' * 250}.png"]
    return ["", NUL, UNDECODABLE, LONG, ESCAPES]


WRONG_FILES = {
    "json": ["missing.json", "empty.json", "garbage.json", "list.json", "null.json", "deep.json", "folder.json", "fifo.json"],
    "npz": [
        "missing.npz",
        "empty.npz",
        "garbage.npz",
        "pickled.npz",
        "scalar.npz",
        "text.npz",
        "folder.npz",
        "fifo.npz",
        "/dev/null",
    ],
    "safetensors": [f"{name}.safetensors" for name in ("missing", "empty", "garbage", "folder", "fifo")],
    "modules": ["nowhere:model", "broken:model", "exits:model", "other:model", ":", "a:b:c", "../other:model", "other.py:model"],
    "places": ["notes.txt", ".", "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "fifo.json", "photos", "empty"],
}
PIPELINES = [*WRONG_FILES["places"], "few.npz", "nowhere", "hub:", "mine:model"]
PROMPTS = ["missing.txt", "empty.json", "garbage.json", "fifo.json", "photos", "/dev/null", "/dev/zero", "/proc/self/mem"]
DATA = [*WRONG_FILES["npz"], "notes.txt", "photos", "empty", "missing", "/dev/zero", "/proc/self/mem"]
MODELS = [
    *WRONG_FILES["safetensors"],
    *WRONG_FILES["modules"],
    "notes.txt",
    "photos",
    "fasion",
    "hub:",
    "ddpm:notes.txt",
    "guided:notes.txt",
    "dit:empty.safetensors",
    "sit:/dev/zero",
    "/dev/zero",
]
SOLVERS = [*WRONG_FILES["json"], *WRONG_FILES["modules"], "dmpp2m", "DDIM", "rk:", "rk:x", "ddim+unic", "/dev/zero"]
TAKEN = [
    ".",
    "..",
    "/",
    "notes.txt",
    "photo.png",
    "photos",
    "/dev/null",
    "/dev/full",
    "/proc/a.png",
    "a.jpg",
    "notes.txt/a.png",
]
WRITTEN = {  # command, option or argument: values that are of its type, and bad
    ("sample", "--model"): MODELS,
    **{(command, "--pipeline"): PIPELINES for command in ("sample", "compare")},
    **{(command, "--decoder"): PIPELINES for command in ("sample", "compare")},
    **{(command, "--prompt"): ["a\nb", "x" * 4001] for command in ("sample", "compare")},
    **{(command, "--prompts"): PROMPTS for command in ("sample", "compare")},
    **{(command, f"--{side}"): ["7", "16385"] for command in ("sample", "compare") for side in ("height", "width")},
    ("sample", "--solver"): SOLVERS,
    ("sample", "--grid"): WRONG_FILES["json"],
    ("sample", "--label"): ["-1", "10", "bag,", "cat", NINES],
    ("sample", "--device"): ["gpu", "cuda:99", "cuda:-1", "cpu:x", "mps:1", "meta", "xpu"],
    ("sample", "--guidance"): ["1e308"],
    ("sample", "--guidance-interval"): ["1", "1,0", "1,1", "nan,1", "0,1,2", "a,b"],
    ("sample", "--guidance-rescale"): ["-0.1", "1.1"],
    ("sample", "--threshold"): ["0", "-1", "1.5"],
    ("sample", "--eta"): ["2", "-1"],
    ("sample", "--r1"): ["0", "1", "-1"],
    ("sample", "--r2"): ["0", "2"],
    ("sample", "--rtol"): ["0", "-1"],
    ("sample", "--atol"): ["0", "-1"],
    ("sample", "--init"): [*DATA, "photo.png", "large.png", "fifo.json", "/dev/zero.png"],
    ("sample", "--strength"): ["0", "-0.5", "1.01", "0.5,0.6"],
    ("sample", "--from-lam"): ["-9", "9", "0,1"],
    ("sample", "--out"): TAKEN,
    ("sample", "--save-plan"): [*TAKEN, "new/a.png.json", "new/../new/a.png.json", "new/a.png", "/proc/p.json"],
    ("sample", "--option"): ["tau=1e300", "eta=1,eta=2", "__class__=1", "eta==1"],
    ("plan", "solver"): SOLVERS,
    ("plan", "--schedule"): ["linear", "DDPM_LINEAR", "__init__", "make", "ddpm_table"],
    ("plan", "--grid"): WRONG_FILES["json"],
    ("plan", "--save"): TAKEN,
    ("plan", "--png"): [place for place in TAKEN if place != "notes.txt/a.png"] + ["a.json"],
    ("verify", "names"): SOLVERS,
    ("evaluate", "samples"): DATA,
    ("evaluate", "--reference"): DATA,
    ("evaluate", "--json"): [*TAKEN, "list.json"],
    ("evaluate", "--device"): ["gpu", "cuda:99"],
    ("compare", "--model"): MODELS,
    ("compare", "--solvers"): [*SOLVERS, "ddim(", "ddim)", "ddim(eta)", "ddim(eta=x)", ",", "ddim,,ddim", "ddim,ddim"],
    ("compare", "--grids"): [",", "cosine", "logsnr,", "logsnr,logsnr", "list.json"],
    ("compare", "--rtol"): ["x", "0", "-1", "nan", "inf", "0.1,", "1e999"],
    ("compare", "--tolerance"): ["0", "-1", "1e-300", "1e308", "nan", "AUTO", "1e-8,auto"],
    ("compare", "--data"): DATA,
    ("compare", "--out"): ["notes.txt", "/dev/null", "/proc/a", "/", "notes.txt/a"],
    ("train", "--data-dir"): DATA,
    ("train", "--out"): ["notes.txt", "/dev/null", "/proc/a", "notes.txt/a", "few.npz/run"],
    ("train", "--lr"): ["0", "-1", "1"],
    ("train", "--drop-label"): ["-0.1", "1.1"],
    ("train", "--multipliers"): ["0", "-1", "x", "1,x", "1.5", NINES, ","],
    ("train", "--attention"): ["x", "-1", "1.5", NINES],
    ("train", "--predicts"): ["x0", "NOISE"],
    ("train", "--schedule"): ["linear", "edm"],
}
ACCEPTED = {  # (command, option, value): why it is right
    ("sample", "--max-nfe", HUGE): "a limit that no run reaches",
    ("train", "--images", HUGE): "it trains until it is told to end",
    ("train", "--every", HUGE): "it saves once, at the end",
    ("train", "--attention", ""): "no attention",
    ("experiments.training.train_classifier", "--epochs", HUGE): "it trains until it is told to end",
    ("experiments.training.fit_mixture", "--iterations", HUGE): "it fits until it is told to end",
    ("experiments.ddim_paper.inpaint", "--jumps", HUGE): "--fast is without jumps",
    ("experiments.ddim_paper.interpolation", "--nfe", HUGE): "--fast takes few",
}


def name_of(param):
    """Its longest option, or the name of an argument."""
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.name


def pairs(words):
    """Options and their values, None of a flag."""
    at = [i for i, word in enumerate(words) if word.startswith("--")]
    return {words[i]: words[i + 1] if i + 1 < len(words) and i + 1 not in at else None for i in at}


def arguments(command, param, value):
    """The words of a command with one value of one parameter, and little else."""
    name, options = name_of(param), pairs(BASE.get(command, []))
    if any(other.name == "fast" for other in find(command).params) and name not in ("--data-dir", "--fast"):
        options["--fast"] = None
    of_pipelines = command == "compare" and "--pipeline" in INSTEAD.get(name, {})
    changed = INSTEAD.get(name, {}) if command in ("sample", "plan") or of_pipelines else {}
    options = {
        option: text for option, text in {**options, **changed}.items() if option != name and (option, text) not in LEFT_OUT
    }
    before = [] if isinstance(param, click.Argument) else ARGUMENTS.get(command, [])
    if command == "plan" and "--solver" in options:
        before = [options.pop("--solver")]
    words = [word for option, text in options.items() for word in (option, text) if word is not None]
    if isinstance(param, click.Argument):
        return [*words, "--", value]
    return [*before, *words, value if getattr(param, "is_flag", False) else f"{name}={value}"]


def cases(command):
    """(name of the parameter, value, words) of every case of a command."""
    for param in find(command).params:
        name = name_of(param)
        for value in [*values_of(param), *WRITTEN.get((command, name), [])]:
            if (command, name, value) not in ACCEPTED:
                yield name, value, arguments(command, param, value)


@pytest.fixture(scope="module")
def loaded():
    """All modules, once, so that not every process imports them."""
    lazily = ("experiments.sampling.generate", "experiments.comparison.compare", "experiments.training.train", "solvers.verify")
    for name in (*SCRIPTS, *lazily):
        importlib.import_module(name)
    torch.optim.AdamW([torch.zeros(1)])  # which imports a compiler


@pytest.fixture
def folder(tmp_path, loaded):
    """A folder with files of the user's, right ones and wrong ones."""
    here = tmp_path / "here"
    here.mkdir()
    subset = datasets.packaged()
    np.savez(here / "few.npz", subset.pixels[:24], subset.labels[:24])
    (here / "notes.txt").write_text("mine")
    for name in ("photos", "empty", *(f"folder.{suffix}" for suffix in ("json", "npz", "safetensors"))):
        (here / name).mkdir()
    (here / "photos" / "a.png").write_bytes(b"no picture")
    (here / "photo.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 30)).save(here / "large.png")
    for suffix in ("json", "npz", "safetensors"):
        (here / f"empty.{suffix}").write_bytes(b"")
        (here / f"garbage.{suffix}").write_bytes(b"\x1b[31m\x00\xff" * 50)
        os.mkfifo(here / f"fifo.{suffix}")
    for name, text in {"list": "[1, 2]", "null": "null", "deep": "[" * 100_000}.items():
        (here / f"{name}.json").write_text(text)
    np.savez(here / "pickled.npz", np.array([{}], dtype=object))
    np.savez(here / "scalar.npz", np.float32(1))
    np.savez(here / "text.npz", np.array(["a", "b"]))
    for name, text in {"broken": "1 / 0", "exits": "raise SystemExit(0)", "other": "model = 1"}.items():
        (here / f"{name}.py").write_text(text)
    return here


def contents(folder):
    """Every file and folder below, and what changes if it is written."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= dict.fromkeys((f"{place}/{name}" for name in folders), "a folder")
        for name in names:
            about = os.lstat(f"{place}/{name}")
            found[f"{place}/{name}"] = about.st_ino, about.st_mode, about.st_size, about.st_mtime_ns
    return found


class TooLong(BaseException):
    """Ten seconds of processor time are over."""


def complaint(result, name, value):
    """What is wrong with the answer to a bad value; None if it is as promised."""
    if result.exit_code != 2 or result.stdout:
        what = result.exception if isinstance(result.exception, Exception) else result.stdout[:100]
        return f"exit code {result.exit_code}: {what!r:.300}"
    lines = [line for line in result.stderr.splitlines() if line]
    sentences = [line for line in lines if not line.startswith(("Usage: ", "Try "))]
    if len(sentences) != 1 or not sentences[0].startswith("Error: "):
        return f"no single sentence: {result.stderr!r:.300}"
    if len(sentences[0]) > LONGEST or not all(line.isprintable() for line in lines):
        return f"{len(sentences[0])} characters, or some of them not printable: {result.stderr!r:.300}"
    if re.search("Traceback|out of memory", result.stderr):
        return result.stderr
    given = terminal.printable(value)[:4] if value else "''"
    file = value.partition(":")[2][:4] or given  # of FORMAT:FILE
    said = sentences[0].replace("_", "-")
    if not any(hint.replace("_", "-") in said for hint in (name.strip("-"), name.strip("-").rstrip("s"), given, file, "not inf")):
        return f"neither the option nor what was given is named: {sentences[0]}"
    return None


def serve(command, numbered, pipe):
    """In a process of its own: run the cases, and write a line of JSON for each."""
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIB, size + GIB))

    def over(number, frame):
        raise TooLong

    signal.signal(signal.SIGPROF, over)
    before = contents(Path.cwd().parent)
    for number, (name, value, words) in numbered:
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            problem = complaint(CliRunner().invoke(find(command), words), name, value)
        except TooLong:
            problem = f"{SECONDS} s were not enough"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        after = contents(Path.cwd().parent)
        if after != before:
            changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            problem, before = f"{problem or ''} files changed: {changed}", after
        os.write(pipe, json.dumps([number, problem, time.process_time() - began]).encode() + b"\n")


def answers(command, listed):
    """(problem or None, seconds) for each case; a process that dies or hangs is begun again behind the case that did it."""
    found = {}
    while len(found) < len(listed):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                serve(command, [*enumerate(listed)][len(found) :], write_end)
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as lines:
            while select.select([lines], [], [], 20)[0] and (line := lines.readline()):
                number, problem, seconds = json.loads(line)
                found[number] = problem, seconds
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if len(found) < len(listed):
            found[len(found)] = "the process died or waited for ever", 0.0
    return [found[number] for number in range(len(listed))]


@pytest.mark.parametrize("command", [*cli.main.commands, *SCRIPTS])
def test_bad_input_is_answered(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    listed = [*cases(command)]
    problems = [
        f"{name}={value[:60]!r}: {problem}"
        for (name, value, _), (problem, _) in zip(listed, answers(command, listed), strict=True)
        if problem is not None
    ]
    assert not problems, f"{len(problems)} of {len(listed)}:\n" + "\n".join(problems)


def test_every_option_of_every_command_has_bad_values():
    """A new option without any is found here; and what is said to be right is among what would be tried."""
    count = 0
    for command in [*cli.main.commands, *SCRIPTS]:
        listed = [*cases(command)]
        count += len(listed)
        for param in find(command).params:
            assert sum(name == name_of(param) for name, _, _ in listed) >= 3, (command, param.name)
    assert count >= 2000
    for command, name, value in ACCEPTED:
        (param,) = (param for param in find(command).params if name_of(param) == name)
        assert value in [*values_of(param), *WRITTEN.get((command, name), [])]
    for command, name in WRITTEN:
        assert name in map(name_of, find(command).params)


@pytest.mark.parametrize(
    "words", [["nothing"], ["--nothing"], ["solvers", "x"], ["sample", "x"], ["\udcff"], ["evaluate", "a\0b"]]
)
def test_commands_that_are_none(words):
    result = CliRunner().invoke(cli.main, words)
    assert complaint(result, words[-1], words[-1]) is None
