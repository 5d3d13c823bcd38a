"""Find and end whatever a process has started, however it tries to get away.

A subreaper inherits the orphans among its descendants, so a process that leaves its session or
loses its parent is still found below it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, *arguments: int) -> None:
    """prctl(2); raises OSError where it fails."""
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *values):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def inherit_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent, of pid `parent`, ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def descendants(root: int) -> list[int]:
    """The pids of all living or unreaped descendants of process `root`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # the name, in parentheses, may itself hold any character
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes hold for themselves."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def shared_memory() -> int:
    """Bytes on this machine that are shared by processes or lie in files in memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    return 0  # not every sandbox of containers tells


def end_descendants(spared: Iterable[int] = (), seconds: float = 4.0) -> dict[int, int]:
    """Kill and reap all descendants of this process but `spared` and theirs.

    Returns the wait status of each child by pid. A process that the kernel does not let go within
    `seconds` is left to it.
    """
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while True:
        kept = set(spared)
        for pid in list(kept):
            kept.update(descendants(pid))
        alive = [pid for pid in descendants(os.getpid()) if pid not in kept]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in alive:
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # a grandchild: it becomes a child when its parent is reaped
                continue
            if reaped:
                statuses[reaped] = status
        if not alive or time.monotonic() > deadline:
            return statuses
        time.sleep(0.002)
