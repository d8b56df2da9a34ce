"""A file is whole or absent, whatever happens while it is written."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diffode import InputError, files
from diffode.files import atomic, clear_dead, folder_for, locked, write_json


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
        assert path.parent in part.parents  # so that moving it is one operation
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


def dies_while_it_writes(path, *, moved_aside=False):
    """Write to `path` in a process that is killed before it is done."""
    if (pid := os.fork()) == 0:
        if moved_aside:  # dies between its two moves
            os.replace = lambda *_: os._exit(0)
        with atomic(path) as part:
            if moved_aside:
                part.mkdir()
            else:
                part.write_text("half")
                os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("windows", [False, True])
def test_what_the_dead_left_is_cleared_up_and_what_the_living_write_is_not(tmp_path, monkeypatch, windows):
    """By the next that writes in the folder, whatever it writes. windows: in the order that Windows needs."""
    monkeypatch.setattr(files, "WINDOWS", windows)
    with atomic(tmp_path / "living") as living:
        dies_while_it_writes(tmp_path / "dead")
        (tmp_path / ".diffode-empty.part").mkdir()  # it died before it had a lock
        assert len(os.listdir(tmp_path)) == 3
        write_json(tmp_path / "b.json", {})
        assert sorted(os.listdir(tmp_path)) == [living.parents[1].name, "b.json"]
        living.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["b.json", "living"]


def test_the_dead_are_cleared_up_in_a_whole_tree(tmp_path):
    for name in ("a", "b/c/d"):
        dies_while_it_writes(tmp_path / name)
    clear_dead(tmp_path)
    assert os.listdir(tmp_path) == ["b"]
    assert len(os.listdir(tmp_path / "b" / "c")) == 1
    clear_dead(tmp_path, deep=True)
    assert os.listdir(tmp_path / "b" / "c") == []


def test_only_what_was_left_by_dead_writers_is_cleared_up(tmp_path):
    """Not what a user calls so, nor what a link points to."""
    for name in (".diffode-notes.part", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("years of work")
    (tmp_path / ".diffode-link.part").symlink_to("elsewhere")
    (tmp_path / ".diffode-file.part").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    clear_dead(tmp_path, deep=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="takes two users")
def test_what_another_user_left_is_not_touched(tmp_path):
    dies_while_it_writes(tmp_path / "a")
    for path in tmp_path.rglob("*"):
        os.chown(path, 12345, 12345)
    write_json(tmp_path / "b.json", {})
    assert len(os.listdir(tmp_path)) == 2


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "000001.png").write_text("image")
    dies_while_it_writes(tmp_path / "a", moved_aside=True)
    assert "a" not in os.listdir(tmp_path)
    write_json(tmp_path / "b.json", {})
    assert sorted(os.listdir(tmp_path)) == ["a", "b.json"]
    assert (tmp_path / "a" / "000001.png").read_text() == "image"


def test_nobody_can_plant_what_is_written_to(tmp_path):
    """The folder is private, and no name in the shared folder is known in advance."""
    names = set()
    for _ in range(2):
        with atomic(tmp_path / "a") as part:
            names.add(part.parents[1].name)
            assert mode(part.parents[1]) == 0o700
            part.touch()
    assert len(names) == 2


def test_a_file_may_have_the_longest_name(tmp_path):
    with atomic(tmp_path / ("a" * 255)) as part:
        part.write_text("whole")
    assert os.listdir(tmp_path) == ["a" * 255]


def test_no_umask_is_set(tmp_path):
    """Another thread's file would be open to all meanwhile."""
    write = f"runpy.run_path({files.__file__!r})['write_json']({str(tmp_path / 'a.json')!r}, {{}})"
    code = f"import os, runpy; os.umask = None; {write}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("where", [None, "b", "new"])
def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path, where):
    def write():
        with atomic(tmp_path / "a.txt") as part:
            raise OSError(errno.ENOSPC, "No space left on device", where and str(part.parents[1] / where))

    with pytest.raises(OSError, match="No space left") as raised:
        write()
    assert raised.value.filename == str(tmp_path / "a.txt")


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """Files are written all the same; nothing that lives is taken for dead."""
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with atomic(tmp_path / "a") as living, locked(tmp_path / "lock", "writing"):
        write_json(tmp_path / "b.json", {})
        assert living.parents[1].exists()
        living.touch()
    assert sorted(os.listdir(tmp_path)) == ["a", "b.json"]


@pytest.mark.parametrize("windows", [False, True])
def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path, monkeypatch, windows):
    monkeypatch.setattr(files, "WINDOWS", windows)
    for _ in range(2):
        with locked(tmp_path / "lock", "writing a"):
            with pytest.raises(InputError, match="another run is writing a"), locked(tmp_path / "lock", "writing a"):
                pass
            assert os.listdir(tmp_path) == ["lock"]
        assert os.listdir(tmp_path) == []


def test_a_lock_is_never_held_by_two(tmp_path):
    """Although its file comes and goes with every run."""
    inside, most, refused, taken = [], [], [], []

    def run():
        for _ in range(300):
            try:
                with locked(tmp_path / "lock", "writing"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    taken.append(1)
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(taken) + len(refused) == 1200
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "lock", "writing"):
        pass
    assert not (tmp_path / "victim").exists()


def test_folders_that_were_made_in_vain_are_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_for(tmp_path / "a" / "b" / "c.txt"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    (tmp_path / "wall").touch()
    with pytest.raises(InputError, match="file where a folder is needed"), folder_for(tmp_path / "wall" / "b" / "c.txt"):
        pass
