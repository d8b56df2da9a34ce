"""A file is whole or absent, whatever happens while it is written."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from diffode import files
from diffode.files import atomic, write_json


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "not" / "yet" / "made" / "a.txt"
    with atomic(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert part.parent == path.parent  # so that moving it is one operation
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_changes_nothing(tmp_path, error, old):
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)

    def write():
        with atomic(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == (["a.txt"] if old else [])
    assert not old or path.read_text() == old


def test_a_writer_that_writes_nothing_is_a_failure(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="No such file"), atomic(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"σ": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"σ": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"σ": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_strict(tmp_path, value):
    """NaN and Infinity are no JSON: jq and JavaScript refuse a file that holds one."""
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"rtol": value})
    assert os.listdir(tmp_path) == []


def test_private_writers_make_files_of_ordinary_permissions(tmp_path):
    with atomic(tmp_path / "a.txt") as part:
        part.touch(mode=0o600)
    assert mode(tmp_path / "a.txt") == 0o666 & ~umask()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    code = f"import runpy; runpy.run_path({files.__file__!r})['write_json']({str(tmp_path / 'a.json')!r}, {{}})"
    subprocess.run([sys.executable, "-c", code], check=True, umask=mask)
    assert mode(tmp_path / "a.json") == 0o666 & ~mask


def test_two_writers_do_not_meet(tmp_path):
    with atomic(tmp_path / "a.txt") as one, atomic(tmp_path / "b.txt") as two:
        assert one != two
        one.write_text("a")
        two.write_text("b")
    assert [Path(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == ["a", "b"]
