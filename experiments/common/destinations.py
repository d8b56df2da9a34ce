"""Where results go: every file that will be written is known, and looked at before work begins.

A file that exists is replaced if it is this run's own, which another file of the run says that is written before it, or if it may
be overwritten. Any other is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from diffode.errors import InputError


def require_name(out: Path, example: str) -> None:
    """InputError for a path that ends in no name of its own: "", ".", ".." and "/"."""
    if out.name in ("", ".."):
        raise InputError(f"{str(out)!r} is no name for results: give `out` a name, as {example}")


def refuse_existing(files: Iterable[Path], *, overwrite: bool = False, remedy: str = ", or overwrite=True") -> None:
    """InputError for the first file that cannot be written, or that exists and may not be overwritten.

    remedy: what may be done beside giving `out` another name.
    """
    for file in files:
        if file.is_dir() or (obstacle := _obstacle(file.parent)):
            why = f"{file} is a folder" if file.is_dir() else f"{obstacle} is in the way"
            raise InputError(f"{file} cannot be written ({why}): give `out` another name")
        if not overwrite and os.path.lexists(file):
            raise InputError(f"{file} exists, and is not of this run: give `out` another name{remedy}")


def _obstacle(folder: Path) -> Path | None:
    """What keeps files from being written into a folder that may have to be made: a file in its place, or no permission."""
    first = next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), folder)
    return None if first.is_dir() and os.access(first, os.W_OK) else first
