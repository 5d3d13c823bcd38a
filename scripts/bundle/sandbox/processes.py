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
END_SECONDS = 60.0


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
            pid = int(folder.name)
            if stat := _stat(pid):
                children.setdefault(int(stat[1]), []).append(pid)
    found, waiting = [], [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped this process."""
    stat = _stat(pid)
    return stat is not None and stat[0] in (b"T", b"t")


def _stat(pid: int) -> list[bytes] | None:
    """A process's state, its parent's pid and so on (proc(5)); None if it has ended."""
    try:
        # the name, in parentheses, may itself hold any character
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None


def memory_at_most(pids: Iterable[int], forked_from: int) -> int:
    """Bytes of memory of forks of a process, beyond what that one holds itself.

    What they share with each other counts as often as it is shared.
    """
    shared = _kibibytes(forked_from, "status", "RssAnon:") or 0
    return 1024 * sum(max((_kibibytes(p, "status", "RssAnon:") or 0) - shared, 0) for p in pids)


def memory_of(pids: Iterable[int]) -> int | None:
    """Bytes of memory of processes, what they share divided among them; takes much longer.

    None where the kernel does not tell this user.
    """
    own = [_kibibytes(pid, "smaps_rollup", "Pss_Anon:") for pid in pids]
    known = [each for each in own if each is not None]  # the others may have ended
    return 1024 * sum(known) if known else None


def _kibibytes(pid: int, file: str, name: str) -> int | None:
    """A figure of a process; None if it has ended, or its files are closed to this user."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text("utf-8", "replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return None


def processor_seconds(pids: Iterable[int]) -> float:
    """That these processes have run, all their threads together."""
    ticks = 0
    for pid in pids:
        if stat := _stat(pid):
            ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def shared_memory() -> int:
    """Bytes on this machine that are shared by processes or lie in files in memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    return 0  # not every sandbox of containers tells


def end_descendants(spared: Iterable[int] = ()) -> dict[int, int]:
    """Kill and reap all descendants of this process but `spared` and theirs.

    Returns the wait status of each child by pid. Thousands of them take seconds to end. A process
    that the kernel does not let go within `END_SECONDS` is left to it.
    """
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + END_SECONDS
    while True:
        begun = time.monotonic()
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
        time.sleep(max(0.002, time.monotonic() - begun))  # they need the processors to end
