"""Files are data: whatever is read is a regular file of the format that is meant, within bounds, or there is one InputError.

Nothing that stands in a file is imported, run, fetched or opened. What a file unpacks to may be large in
proportion to the file alone (`plausible`), so that large data can be read and a small file cannot fill the memory.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from diffode.errors import InputError, in_words, one_line, shown

MOST_JSON = 16 * 2**20  # bytes; parsed, they are up to 25 times as many
MOST_NUMBERS = 2**24  # of one sample that a file describes, as 3 × 2048 × 2048
MOST_DIGITS = 20  # of a whole number: 2⁶⁴ has as many
SMALL = 256 * 2**20  # bytes that any file may unpack to
RATIO = 30  # of unpacked to packed bytes, beyond SMALL; photographs have 1 to 3


@contextmanager
def reading(path: str | Path, what: str, expected: str) -> Iterator[None]:
    """Turn whatever is raised of a file into one InputError: "there is no `what` FILE: expected `expected`", or "FILE is not a
    `what` (why): expected `expected`". A warning of a decompression bomb is such a reason, too; all others are left unsaid. An
    InputError that names the file already stays as it is.
    """
    a, name = "an" if what[0] in "aeiou" else "a", one_line(str(path), 200)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # Pillow's DecompressionBombWarning is one
            yield
    except FileNotFoundError as error:
        raise InputError(f"there is no {what} {name}: expected {expected}") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})" if error.strerror else f"is not {a} {what} ({one_line(str(error))})"
        raise InputError(f"{name} {problem}: expected {expected}") from error
    except MemoryError:
        raise
    except Exception as error:  # readers raise all kinds: KeyError, struct.error, SyntaxError, RecursionError, ...
        if isinstance(error, InputError) and name in str(error):
            raise
        why = one_line(in_words(error), 160)
        raise InputError(f"{name} is not {a} {what} ({why}): expected {expected}") from error


def open_regular(path: str | Path) -> BufferedReader:
    """A file, opened for reading; InputError at once for a folder, a pipe, a device or a socket, of which some wait for ever."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return open(number, "rb")
    os.close(number)
    raise InputError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")


def size_of(file: BufferedReader) -> int:
    """Of an open file, in bytes."""
    return os.fstat(file.fileno()).st_size


def read_bytes(path: str | Path, most: int) -> bytes:
    """All of a regular file; InputError if it has more bytes than `most`."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"it has more than {most:,} bytes")
    return data


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(
    path: str | Path, what: str, expected: str, *, most: int = MOST_JSON, infinite: bool = False, digits: int = MOST_DIGITS
) -> Any:
    """The value of a JSON file, see `parse_json`; InputError as `reading` says it, also for one of more than `most` bytes."""
    with reading(path, what, expected):
        return parse_json(read_bytes(path, most), infinite=infinite, digits=digits)


def parse_json(text: str | bytes, *, infinite: bool = False, digits: int = MOST_DIGITS) -> Any:
    """The value of JSON text in UTF-8, in which every number is finite and no whole number exceeds so many digits.

    infinite: whether NaN and Infinity, which Python writes and JSON does not have, are taken. InputError for any other text, and
    for an object that has a name twice.
    """
    refuse = None if infinite else _no_number
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_int=partial(_whole, most=digits),
            parse_float=_finite,
            parse_constant=refuse,
            object_pairs_hook=_object_of_unique_names,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError as error:
        raise InputError("it is nested too deeply") from error
    except UnicodeError as error:
        raise InputError("it is no text in UTF-8") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"it is not JSON: {one_line(str(error))}") from error
    return value


def _whole(text: str, most: int) -> int:
    if len(text) > most:
        raise InputError(f"it has a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise InputError(f"it has the number {one_line(text, 20)}, which is too large")
    return number


def _no_number(text: str) -> float:
    raise InputError(f"it has {text}, which is no number of JSON")


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise InputError(f"an object has the name {shown(twice)} twice")
    return value


def plausible(packed: int, ratio: int = RATIO) -> int:
    """The most bytes that a file of so many may unpack to."""
    return max(SMALL, ratio * packed)


def require_plausible(unpacked: int, packed: int, ratio: int = RATIO) -> None:
    """InputError if so many bytes are more than a file of `packed` bytes may unpack to."""
    if unpacked > plausible(packed, ratio):
        raise InputError(f"its {packed:,} bytes would unpack to {_bytes(unpacked)}")


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 10**15 else f"{float(count):.0e} bytes"


def read_gzip(path: str | Path) -> bytes:
    """What a gzipped file unpacks to; InputError if that is implausibly much."""
    with open_regular(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
        most = plausible(size_of(file))
        data = unpacked.read(most + 1)
        require_plausible(len(data), size_of(file))
        return data


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz that have these names, all by default; a name that it lacks is left out.

    Every array's own header says as many bytes as its member of the archive has, which is looked at before memory is taken.
    InputError for implausibly large arrays and for Python objects, which would be unpickled; what else a damaged archive raises
    is for `reading`.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        chosen = {name: member for name, member in members.items() if names is None or name in names}
        require_plausible(sum(member.file_size for member in chosen.values()), size_of(file))
        return {name: _read_npy(archive, member) for name, member in chosen.items()}


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{shown(member.filename)} is packed in another way than np.savez does it")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in headers:
            raise InputError(f"{shown(member.filename)} is of version {version} of the format")
        shape, _, dtype = headers[version](stream)
        if not dtype.itemsize:
            raise InputError(f"{shown(member.filename)} is an array of nothing")
        if dtype.hasobject:
            raise InputError(f"{shown(member.filename)} holds Python objects, which would be unpickled")
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise InputError(f"{shown(member.filename)} has not as many bytes as {one_line(str(shape))} of {dtype} take")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)
