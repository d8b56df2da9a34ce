"""Where a job works, beside its output: its finished batches, and a record of the files that it moves into place.

Nothing that an earlier run left is taken on trust. A batch is used if it is, to the bit, what this version of diffode wrote as
this batch of this job, and is drawn again if it is anything else. A file in the output's place is the job's own if the record has
its digest. The record is the last file to go, so the same command ends what a run left at whatever point it was killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffode._version import __version__
from diffode.errors import InputError
from diffode.files import as_json, atomic, clear_dead, folder_for, is_own, locked
from diffode.reading import open_regular
from experiments.sampling.jobs import Job
from experiments.sampling.summary import Summary
from experiments.sampling.trajectory import Arrays

CHECKSUM = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Work:
    """The hidden folder of a job's batches, and its record: named by the job's digest, so another job never meets them."""

    job: Job
    folder: Path
    record: Path

    @classmethod
    def beside(cls, out: Path, job: Job) -> Work:
        """That of a job whose output is `out`."""
        return cls(job, out.with_name(f".{out.name}.{job.digest}"), out.with_name(f".{out.name}.{job.digest}.record"))

    def read_batch(self, start: int) -> Arrays | None:
        """The arrays of the batch that begins with image `start`; None if there is none, or it is not as it was written."""
        content = self._read(self.folder / f"{start}.npz")
        return None if content is None else dict(np.load(io.BytesIO(content)))

    def write_batch(self, start: int, arrays: Arrays) -> None:
        """Keep a finished batch, as an .npz with a checksum after its end."""
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        self._write(self.folder / f"{start}.npz", stream.getvalue())

    def read_record(self) -> tuple[set[str], Summary | None]:
        """The digests of the files that were to be moved into place, and the summary of the run that did so."""
        content = self._read(self.record) if is_own(self.record) else None
        if content is None:
            return set(), None
        digests, summary = json.loads(content)
        return set(digests), Summary(
            **{**summary, "per_image": {name: np.array(of) for name, of in summary["per_image"].items()}}
        )

    def write_record(self, digests: Iterable[str], summary: Summary) -> None:
        """Note what is about to be moved into place, beside what was so before."""
        per_image = {name: array.tolist() for name, array in summary.per_image.items()}
        noted = sorted({*digests, *self.read_record()[0]}), {**vars(summary), "per_image": per_image}
        self._write(self.record, json.dumps(as_json(noted)).encode())

    def _write(self, file: Path, content: bytes) -> None:
        with atomic(file) as part:
            part.write_bytes(content + self._checksum(file, content))

    def _read(self, file: Path) -> bytes | None:
        """What was written; None for anything else."""
        try:
            with open_regular(file) as stream:
                whole = stream.read()
        except (OSError, InputError):
            return None
        content, checksum = whole[:-CHECKSUM], whole[-CHECKSUM:]
        return content if checksum == self._checksum(file, content) else None

    def _checksum(self, file: Path, content: bytes) -> bytes:
        """Of the content, and of what it is: another job's, another batch, or by another version, is not the same."""
        return hashlib.sha256(f"{__version__} {self.job.digest} {file.name} ".encode() + content).digest()


@contextmanager
def working_on(out: Path, job: Job, folders: Iterable[Path]) -> Iterator[Work]:
    """The Work of a job, held against a second run, after what dead runs left in the folders has been cleared up.

    It is removed on success, and if it holds no batch. InputError if something else is in its place.
    """
    work = Work.beside(out, job)
    with folder_for(out):
        with locked(out.with_name(f".{out.name}.lock"), f"writing {out}"):
            for folder in folders:
                clear_dead(folder)
            work.folder.mkdir(mode=0o700, exist_ok=True)
            if not is_own(work.folder):
                raise InputError(f"{work.folder} is in the way, and is not this user's: give another name for the output")
            try:
                yield work
                shutil.rmtree(work.folder)
            finally:
                if work.folder.exists() and not any(work.folder.glob("*.npz")):
                    shutil.rmtree(work.folder)
        work.record.unlink(missing_ok=True)
