"""The cost of a computation: its seconds, and the most memory that it held."""

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
class Cost:
    """peak_mib: on a CUDA device the most that torch had allocated; on the CPU the most that the whole process had in memory,
    libraries included, where the system reports it (Linux); otherwise None."""

    seconds: float = 0.0
    peak_mib: float | None = None


@contextmanager
def metered(device: str) -> Iterator[Cost]:
    """Measure what is done within the block on this device, after waiting for a GPU to finish; the Cost is filled in at the
    end."""
    cost, cuda = Cost(), torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_process_peak()
    start = time.perf_counter()
    yield cost
    if cuda:
        torch.cuda.synchronize(device)
    elif torch.device(device).type == "mps":
        torch.mps.synchronize()
    cost.seconds = time.perf_counter() - start
    cost.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _process_peak()


def _reset_process_peak() -> None:
    """Reset the kernel's record of the process's largest size (proc(5), clear_refs)."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that since the process began
        (PROCESS / "clear_refs").write_text("5")


def _process_peak() -> float | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 2**10 if found else None
