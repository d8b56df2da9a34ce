"""Files that are whole or absent, written by one run at a time.

What is written is made in a private folder beside its place, and moved there when it is whole. Whoever lives holds a lock: on the
private folder while it writes, on a file of its own while a run lasts. So what the dead left is known by its free lock, however
old it is, and the next that writes in the same folder clears it up.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from diffode.errors import InputError

WINDOWS = sys.platform == "win32"
ASSETS = Path(__file__).with_name("assets")  # weights, reference statistics and test images that come with diffode
PREFIX, SUFFIX = ".diffode-", ".part"  # of private folders; the file's own name may be as long as names can be
NEW, OLD, LOCK = "new", "old", "lock"  # in a private folder: what is being written, what it replaces, and the lock


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same name, where a file or a folder is to be made; move it to `path` on success.

    The folder of `path` is made if it is absent. On any failure nothing is changed. A folder replaces a folder, which comes back
    if the run dies before the new one is in its place. Files have the permissions of files that are made with open().
    """
    path = Path(os.path.realpath(path)) if os.path.isdir(path) else Path(path)
    with folder_for(path), _private(path.parent) as private:
        part = private / NEW / path.name
        try:
            part.parent.mkdir()
            yield part
            _flush(part, part.parent.stat().st_mode & 0o666)
            if part.is_dir() and path.is_dir():  # no system replaces a folder by another in one operation
                (private / OLD).mkdir()
                os.rename(path, private / OLD / path.name)
            os.replace(part, path)
            _flush_folder(path.parent)
        except OSError as error:
            if error.filename is None or str(private) in str(error.filename):  # a full disk does not say which file
                error.filename, error.filename2 = str(path), None
            raise


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as UTF-8 JSON, atomically: one line per key, with its value on the same line however long it is."""
    content = json_bytes(value)
    with atomic(path) as part:
        part.write_bytes(content)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """What `write_json` writes. Bytes of a path that are not UTF-8 become escapes."""
    lines = [f" {json.dumps(key)}: {json.dumps(item, ensure_ascii=False, allow_nan=False)}" for key, item in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "backslashreplace")


def json_value(value: Any) -> Any:
    """The value as JSON has it: a NumPy scalar as Python's number, and ±inf and nan, which JSON lacks, as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples are lists, keys are strings, numbers of NumPy are Python's."""
    return json.loads(json.dumps(value, default=json_value))


@contextmanager
def folder_for(out: Path) -> Iterator[None]:
    """Make the folder of `out`; remove again what was made here and is empty in the end.

    InputError if there is a file in its place.
    """
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{out} cannot be written: there is a file where a folder is needed; give another name for the output"
            ) from error
        yield
    finally:
        with suppress(OSError):  # of the first that is not empty
            for folder in made:
                folder.rmdir()


@contextmanager
def locked(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock file against a second run; InputError if another run holds it. doing: for its message, as "writing out.csv"."""
    held = _hold(lock)
    if held is None:
        raise InputError(f"another run is {doing}: wait for it, or give another name for the output")
    try:
        yield
    finally:
        _let_go(held, lock.unlink)


def clear_dead(folder: Path, *, deep: bool = False) -> None:
    """Remove what dead runs of this user left while they wrote in a folder, or, if it is to be deep, in any below it.

    A folder that was moved aside to be replaced goes back to its place, unless the new one is there.
    """
    for place, names, _ in os.walk(folder):
        private = [Path(place, name) for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX)]
        for dead in filter(is_own, private):
            with suppress(OSError):  # another run that clears up was faster
                if (held := _hold(dead / LOCK)) is not None:
                    _let_go(held, partial(_remove, dead))
        names[:] = [name for name in names if deep and place / Path(name) not in private]


def check_writable(path: Path) -> None:
    """OSError or ValueError unless a file could be made there, in a folder that is there or could be: by trying, since
    permissions do not tell."""
    folder = next((folder for folder in path.absolute().parents if folder.exists()), path)  # of / there is none
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file where a folder is needed")
    for name in path.absolute().relative_to(folder).parts:
        with suppress(FileNotFoundError):
            os.lstat(folder / name)  # which refuses a name that is too long
    with _private(folder):
        pass


def is_own(path: Path) -> bool:
    """Whether it is a file or folder of this user, and no link: then nobody else has planted it."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)) and (
        sys.platform == "win32" or found.st_uid == os.geteuid()
    )


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, of a name that nobody can guess, where nobody else can write, with its lock held."""
    clear_dead(folder)
    held = None
    while held is None:  # another run may take a folder without a lock for a dead one, and remove it
        private = Path(tempfile.mkdtemp(SUFFIX, PREFIX, folder))
        with suppress(FileNotFoundError):
            held = _hold(private / LOCK)
        if held is not None and not WINDOWS and private.stat().st_mode & 0o077:  # it was removed, and filelock made it anew
            _let_go(held, partial(_remove, private))
            held = None
    try:
        yield private
    finally:
        _let_go(held, partial(_remove, private))


def _hold(lock: Path) -> filelock.BaseFileLock | None:
    """The lock of a file, which is made if it is absent; None if another holds it."""
    held = filelock.FileLock(lock)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        return None
    return held


def _let_go(held: filelock.BaseFileLock, remove: Callable[[], None]) -> None:
    """Remove the file of a lock and release it, in this order, so that whoever has opened it as well sees that it is no longer
    there; in the other on Windows, where no open file can be removed."""
    steps = [remove, held.release]
    for step in reversed(steps) if WINDOWS else steps:
        with suppress(OSError):
            step()


def _remove(private: Path) -> None:
    """Remove a private folder, its lock last. What was to be replaced goes back if its place is empty."""
    for old in (private / OLD).glob("*"):
        if not os.path.lexists(private.parent / old.name):
            os.rename(old, private.parent / old.name)
    for name in (OLD, NEW):
        shutil.rmtree(private / name, ignore_errors=True)
    (private / LOCK).unlink()
    private.rmdir()


def _flush(path: Path, mode: int) -> None:
    """See to it that a file or folder is on the disk, and give a file these permissions."""
    if path.is_dir() and hasattr(os, "sync"):
        os.sync()  # a call for each of 50,000 images takes minutes
    elif path.is_dir():
        for file in path.iterdir():
            _flush(file, mode)
    else:
        os.chmod(path, stat.S_IMODE(mode))
        with open(path, "r+b") as stream:  # on Windows it takes a file that can be written to
            os.fsync(stream.fileno())


def _flush_folder(path: Path) -> None:
    """See to it that names in a folder are on the disk, where the system can do that."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
