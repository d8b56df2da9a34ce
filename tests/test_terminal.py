"""What every command does when it is told to end, when memory or the disk is short, and with text that acts on terminals."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from experiments.common import commands, interrupts, terminal
from tests.test_breaking import ARGUMENTS, SCRIPTS, find

CLI = [sys.executable, cli.__file__]
COMMANDS = [*cli.main.commands, *SCRIPTS]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_with(monkeypatch):
    """run_with(name, body): the answer of a command that does what `body` does."""

    def run(name, body):
        command = find(name)
        monkeypatch.setattr(command, "callback", lambda *args, **params: body())
        return CliRunner().invoke(command, ARGUMENTS.get(name, []))

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_cleans_up_when_it_is_told_to_end(name, run_with):
    """And a second signal does not interrupt that."""
    done = []

    def body():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    result = run_with(name, body)
    goes_on = ": the same command goes on where it was" if find(name).resumable else ""
    assert (result.exit_code, result.stdout, result.stderr, done) == (143, "", f"Terminated{goes_on}.\n", [True])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(
    ("number", "code", "word"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated"), ("SIGHUP", 129, "Hung up")]
)
def test_each_signal_has_its_exit_code(number, code, word, run_with):
    result = run_with("sample", lambda: signal.raise_signal(getattr(signal, number)))
    assert (result.exit_code, result.stderr) == (code, f"{word}: the same command goes on where it was.\n")


def test_a_signal_that_is_ignored_stays_ignored(run_with):
    """nohup diffode sample ... outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_with("sample", lambda: signal.raise_signal(signal.SIGHUP)).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_clean_up_that_hangs_can_be_interrupted_again(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE", 0.0)
    with interrupts.raised():
        for _ in range(2):
            with pytest.raises(interrupts.Interrupt):
                signal.raise_signal(signal.SIGTERM)


FULL = [
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to allocate ..."),
    RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904, 8]"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_want_of_memory_is_a_sentence(error, run_with):
    def body():
        raise error

    result = run_with("sample", body)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: out of memory: lower --batch (64)\n"


def test_other_errors_are_no_want_of_memory(run_with):
    """They are ours to mend, and keep their traceback."""

    def body():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert isinstance(run_with("sample", body).exception, RuntimeError)


def limited(words, more):
    """The answer of a command in a process that may take `more` bytes."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
            result = CliRunner().invoke(cli.main, words)
            os.write(write_end, json.dumps([result.exit_code, result.stderr, repr(result.exception)]).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as stream:
        answer = json.loads(stream.read())
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("words", "lower"),
    [
        ("sample --batch 4000 --n 4000 --nfe 1 --out a.png", "--batch (4000) or --n (4000)"),
        ("train --data-dir few.npz --batch 20000 --images 20000 --out run", "--batch (20000) or --width (48) or --blocks (1)"),
        ("train --data-dir few.npz --width 32000 --out run", "--batch (128) or --width (32000) or --blocks (1)"),
    ],
)
def test_what_to_lower_where_memory_is_short(here, words, lower):
    np.savez("few.npz", np.zeros((16, 28, 28, 1), np.uint8))
    code, said, exception = limited([*words.split(), "--device", "cpu"], 100 << 20)
    assert (code, said) == (2, f"Error: out of memory: lower {lower}\n"), exception
    assert os.listdir(here) == ["few.npz"]


def test_warnings_of_libraries_do_not_reach_the_terminal(run_with):
    def body():
        warnings.warn("Corrupt EXIF data", UserWarning, stacklevel=1)
        raise commands.InputError("the answer")

    with warnings.catch_warnings():
        warnings.resetwarnings()
        assert run_with("sample", body).stderr == "Error: the answer\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("λ = 4.6, σ̄ ≤ 1 — «é» 字", "λ = 4.6, σ̄ ≤ 1 — «é» 字"),
        ("a\x1b[31mb\nc\td\r", r"a\x1b[31mb\nc\td\r"),
        ("\u202eabc\u2066\u200b\u2028\x85\x9b", r"\u202eabc\u2066\u200b\u2028\x85\x9b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_text_that_would_act_on_a_terminal_is_escaped(text, printed):
    assert terminal.printable(text) == printed


def test_a_message_keeps_what_is_wrong_and_what_to_do():
    for given in ("9" * 5000, "word " * 1000, "\x1b" * 5000):
        said = terminal.bounded(f"unknown solver {given!r}: see `solvers`")
        assert len(said) <= terminal.LONGEST_MESSAGE
        assert said.startswith("unknown solver '")
        assert said.endswith("': see `solvers`")


def test_a_plan_of_a_file_names_its_solver_on_one_line():
    result = CliRunner().invoke(cli.main, ["plan", "ddim", "--nfe", "1", "--save", "p.json"])
    text = Path("p.json").read_text(encoding="utf-8").replace('"ddim"', json.dumps("\x1b[31mddim\nddpm"))
    Path("p.json").write_text(text, encoding="utf-8")
    evil = CliRunner().invoke(cli.main, ["plan", "p.json"])
    assert evil.exit_code == 0
    assert len(evil.stdout.splitlines()) == len(result.stdout.splitlines())
    assert "\x1b" not in evil.stdout


def test_lines_are_kept_and_what_they_hold_is_escaped(capsys):
    terminal.say("a\nb\x1b[31m")
    assert capsys.readouterr().out == "a\nb\\x1b[31m\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--help > /dev/full", 2, "Error: No space left on device\n"),
        ("--help | (exec <&-; sleep 1)", 141, ""),
        ("--help >&-", 0, ""),
        ("nothing 2> /dev/full", 2, ""),
        ("nothing 2>&-", 2, ""),
    ],
)
def test_streams_that_cannot_be_written(words, code, said):
    command = f"set -o pipefail; {sys.executable} {cli.__file__} {words}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, said)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_is_no_failure(name, run_with):
    def body():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    result = run_with(name, body)
    assert (result.exit_code, result.output) == (141, "")


def test_what_a_terminal_cannot_show_is_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run([*CLI, "plan", "--help"], env=environment, capture_output=True, encoding="latin-1")
    assert (result.returncode, result.stderr) == (0, "")
    assert r"\u03bb" in result.stdout
