"""What the kernel keeps a solution's process from doing.

Always: no core dumps, no files beyond a size, no more private memory than its limit, as root no
rights but to files. With seccomp (system_calls.py): no calls that name processes outside or leave
something in the kernel. With Landlock (Linux 5.13, if the kernel has it on): writing only below its
own folder and to a few devices, no access to processes outside.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

from .processes import prctl

FILE_BYTES = 1 << 30
"""The largest file that a solution may write."""
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
CAP_SETPCAP, CAP_SYS_PTRACE = 8, 19
TO_FILES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: in a container, root often reads others' files."""
ALL_BUT_PTRACE = tuple(number for number in range(64) if number != CAP_SYS_PTRACE)
CAPABILITY_VERSION_3 = 0x20080522
# linux/landlock.h; the numbers of the system calls are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, TRUNCATE, REFER = 1 << 1, 1 << 14, 1 << 13
ALL_WRITES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
SCOPE_ABSTRACT_SOCKET, SCOPE_SIGNAL = 1, 2
SCOPES_SINCE = 6
"""The version of Landlock."""
DEVICES = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom", "tty")]


def hide_memory() -> None:
    """Keep other processes of this user from reading or writing this one's memory.

    One with CAP_SYS_PTRACE still can: see `drop_capabilities`.
    """
    prctl(PR_SET_DUMPABLE, 0)


def limit_resources(memory_bytes: int | None) -> None:
    """memory_bytes: of private memory; None: no limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def drop_capabilities(kept: Iterable[int]) -> None:
    """Give up all rights of root but these, for this process and all that it starts.

    With no others than `TO_FILES` it owns root's files and no more: it cannot look into other
    processes, set the clock, raise its limits or its priority, or mount anything.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: low words, then high
    sets = ctypes.create_string_buffer(24)
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("<6I", sets))
    held = {n for n in range(64) if words[1 + n // 32 * 3] & (1 << n % 32)}
    dropped = held - set(kept)
    if not dropped:
        return
    if CAP_SETPCAP in held:
        for number in sorted(dropped - {CAP_SETPCAP}):
            prctl(PR_CAPBSET_DROP, number)
        if CAP_SETPCAP in dropped:
            prctl(PR_CAPBSET_DROP, CAP_SETPCAP)
    left = held & set(kept)
    mask = [sum(1 << n % 32 for n in left if n // 32 == half) for half in range(2)]
    words = [words[i] & mask[i // 3] for i in range(6)]
    if libc.capset(header, struct.pack("<6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")


def landlock_version() -> int:
    """0 where the kernel has no Landlock, or has it switched off."""
    return max(ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1), 0)


def confine_writes(folder: Path) -> bool:
    """Let this process and all it starts write below `folder` only; False without Landlock."""
    version = landlock_version()
    if not version:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ALL_WRITES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("<QQQ", handled, 0, SCOPE_ABSTRACT_SOCKET | SCOPE_SIGNAL)
    size = 24 if version >= SCOPES_SINCE else 16 if version >= 4 else 8
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    places = [(folder, handled), (Path("/proc/self"), handled)]
    places += [(device, handled & (WRITE_FILE | TRUNCATE)) for device in DEVICES if device.exists()]
    for writable, rights in places:
        parent = os.open(writable, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("<Qi", rights, parent)
        if libc.syscall(ADD_RULE, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), f"landlock_add_rule({writable})")
        os.close(parent)
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)
    return True
