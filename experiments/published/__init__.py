"""Numbers that others have published; README.md says where."""

from __future__ import annotations

import csv
from pathlib import Path

from diffode.errors import InputError

FOLDER = Path(__file__).parent


def table(name: str) -> list[dict[str, str]]:
    """The rows of NAME.csv, their values as they are printed there; InputError for a name that is not known."""
    file = FOLDER / f"{name}.csv"
    if not file.is_file():
        raise InputError(
            f"no published table {name!r}: known are {', '.join(sorted(path.stem for path in FOLDER.glob('*.csv')))}"
        )
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
