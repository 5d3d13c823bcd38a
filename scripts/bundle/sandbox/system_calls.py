"""System calls that a solution has no use for: those that name other processes, or leave something.

A seccomp filter (x86-64 and AArch64; Linux 3.5) in classic BPF, see linux/seccomp.h. All
descendants inherit it. To change the affinity or the limits of the launcher would change the times
of all later solutions; System V objects outlive whoever made them; a session of its own would let
a process escape the signal that ends its group.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

from .processes import prctl

PR_SET_SECCOMP, MODE_FILTER = 22, 2
# linux/bpf_common.h and linux/filter.h
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, ERRNO = 0x7FFF_0000, 0x0005_0000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; arguments have 8 bytes, of which the low 4 are looked at."""
X32 = 0x4000_0000
"""The first of a second set of numbers, on x86-64."""
# linux/audit.h; the columns of the tables below
ARCHITECTURES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}

NEVER = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
}
WITHOUT_EFFECT = {"setsid": (112, 157), "setpgid": (109, 154)}
"""They return 0."""
OF_ITSELF = {
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "prlimit64": (302, 261),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Only with 0 or its own pid for the first argument."""
OF_A_KIND_OF_ITSELF = {"setpriority": ((141, 140), 0), "ioprio_set": ((251, 30), 1)}
"""The second argument is the pid, and the first says that it is one."""
SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
PIDFD_SEND_SIGNAL = 424
OWNERS = {"fcntl": ((72, 25), (8, 15)), "ioctl": ((16, 29), (0x8901, 0x8902))}
"""With these commands (F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP) for a second argument they have
a file send signals of any number to any process."""

Condition = tuple[int, Sequence[int]]
"""An argument's place and the values that are allowed."""


def filter_calls(keep_signals_in: bool) -> bool:
    """Filter this process's calls and those of all it starts; False where that cannot be done.

    keep_signals_in: let it send signals to itself only, not even to its children.
    """
    if platform.machine() not in ARCHITECTURES:
        return False
    program = b"".join(_program(*ARCHITECTURES[platform.machine()], os.getpid(), keep_signals_in))
    instructions = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(descriptor, len(descriptor))
    try:
        prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.addressof(buffer))
    except OSError:
        return False
    return True


def _program(architecture: int, column: int, pid: int, keep_signals_in: bool) -> list[bytes]:
    denied = _return(ERRNO | errno.EPERM)
    program = [_load(ARCHITECTURE), _jump(JUMP_EQUAL, architecture, 1, 0), denied, _load(NUMBER)]
    if column == 0:
        program += [_jump(JUMP_AT_LEAST, X32, 0, 1), denied]
    for numbers in NEVER.values():
        program += _only_if(numbers[column], None, denied)
    for numbers in WITHOUT_EFFECT.values():
        program += _only_if(numbers[column], None, _return(ERRNO))
    itself = (0, pid)
    for numbers in OF_ITSELF.values():
        program += _only_if(numbers[column], [(0, itself)], denied)
    for numbers, kind in OF_A_KIND_OF_ITSELF.values():
        program += _only_if(numbers[column], [(0, [kind]), (1, itself)], denied)
    if keep_signals_in:
        for numbers in SIGNALS.values():
            program += _only_if(numbers[column], [(0, itself)], denied)
        program += _only_if(PIDFD_SEND_SIGNAL, None, denied)
        for numbers, commands in OWNERS.values():
            program += _unless(numbers[column], commands, denied)
    return [*program, _return(ALLOW)]


def _only_if(number: int, conditions: Sequence[Condition] | None, otherwise: bytes) -> list[bytes]:
    """Instructions for one call: allowed if all conditions hold; with None, never."""
    body = []
    for place, values in conditions or ():
        body.append(_load(ARGUMENTS + 8 * place))
        left = len(values)
        body += [_jump(JUMP_EQUAL, value, left - i, 0) for i, value in enumerate(values)]
        body.append(otherwise)
    body.append(otherwise if conditions is None else _return(ALLOW))
    return [_jump(JUMP_EQUAL, number, 0, len(body)), *body]


def _unless(number: int, commands: Sequence[int], otherwise: bytes) -> list[bytes]:
    """Instructions for one call: allowed unless its second argument is one of the commands."""
    left = len(commands)
    body = [_load(ARGUMENTS + 8)]
    body += [_jump(JUMP_EQUAL, command, left - i, 0) for i, command in enumerate(commands)]
    body += [_return(ALLOW), otherwise]
    return [_jump(JUMP_EQUAL, number, 0, len(body)), *body]


def _load(offset: int) -> bytes:
    return struct.pack("<HBBI", LOAD, 0, 0, offset)


def _jump(code: int, value: int, if_so: int, if_not: int) -> bytes:
    """Over so many instructions."""
    return struct.pack("<HBBI", code, if_so, if_not, value)


def _return(action: int) -> bytes:
    return struct.pack("<HBBI", RETURN, 0, 0, action)
