"""What a computation took: seconds, and the most memory that it held."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # of Linux


@dataclass
class Taken:
    """peak_mib: on a CUDA device what torch had allocated at most; on the CPU the most that the whole process had in memory,
    libraries included, where the system says so (Linux); else None."""

    seconds: float = 0.0
    peak_mib: float | None = None


@contextmanager
def metered(device: str) -> Iterator[Taken]:
    """Measure what is done within, on this device; a GPU is waited for."""
    taken, cuda = Taken(), torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    start = time.perf_counter()
    yield taken
    if cuda:
        torch.cuda.synchronize(device)
    elif torch.device(device).type == "mps":
        torch.mps.synchronize()
    taken.seconds = time.perf_counter() - start
    taken.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _peak_of_process()


def _forget_peak() -> None:
    """Begin anew with the process's largest size (proc(5), clear_refs)."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that since the start
        (PROCESS / "clear_refs").write_text("5")


def _peak_of_process() -> float | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 2**10 if found else None
