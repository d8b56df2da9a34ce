"""Files that are whole or absent, written by one run at a time: under a temporary name in the same folder, then moved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from diffode.errors import InputError

ASSETS = Path(__file__).with_name("assets")  # weights, reference statistics and test images that come with diffode
UMASK = os.umask(0)
os.umask(UMASK)  # it can only be read by setting it


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder (made if absent); move it to `path` on success, delete it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~UMASK)  # some writers make private files
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as UTF-8 JSON, atomically: one line per key, with its value on the same line however long it is."""
    lines = [f" {json.dumps(key)}: {json.dumps(item, ensure_ascii=False, allow_nan=False)}" for key, item in value.items()]
    with atomic(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def json_value(value: Any) -> Any:
    """The value as JSON has it: a NumPy scalar as Python's number, and ±inf and nan, which JSON lacks, as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples are lists, keys are strings, numbers of NumPy are Python's."""
    return json.loads(json.dumps(value, default=json_value))


@contextmanager
def folder_for(out: Path) -> Iterator[None]:
    """Make the parent folder of `out`; remove it again if it was made here and is empty in the end.

    InputError if there is a file in its place.
    """
    new = not out.parent.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{out} cannot be written: there is a file where a folder is needed; give another name for the output"
        ) from error
    try:
        yield
    finally:
        if new and not any(out.parent.iterdir()):
            out.parent.rmdir()


@contextmanager
def locked(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock file against a second run; InputError if another run holds it. doing: for its message, as "writing out.csv"."""
    file = filelock.FileLock(lock)
    try:
        file.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"another run is {doing}: wait for it, or give another name for the output") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.release()
