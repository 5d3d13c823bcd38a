"""The launcher's process, and how a fork of it becomes a solution's process.

The launcher has imported PyTorch, Triton and the harness and nothing else. It runs no solution's
code, knows no expected output, and never asks whether there is a GPU: that marks all of its forks,
which PyTorch then keeps from using one.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .channel import REQUEST, Command, Order, Outcome, Request
from .launcher import PID, READY, START, STATUS
from .processes import die_with_parent, end_descendants, inherit_orphans

if TYPE_CHECKING:
    from .contestant import Contestant


def serve(descriptor: int, parent: int) -> None:
    """The launcher's process."""
    die_with_parent(parent)
    inherit_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    connection = socket.socket(fileno=descriptor)
    from . import contestant  # noqa: F401  # the slow part
    from .confinement import hide_memory

    with suppress(ImportError):
        importlib.import_module("triton")  # as each fork would, to build
    hide_memory()
    connection.send(READY.pack(forks_can_use_cuda()))
    child = 0
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
        if not message:
            end_descendants()
            os._exit(0)
        if message[:1] == START:
            child = os.fork()
            if child == 0:
                _become_solution(connection, descriptors, Path(os.fsdecode(message[1:])))
            for given in descriptors:
                os.close(given)
            connection.send(PID.pack(child))
        else:
            if child:
                with suppress(ProcessLookupError, PermissionError):
                    # all of the group at once: none can fork in time, however often it does
                    os.killpg(child, signal.SIGKILL)
            statuses = end_descendants()
            connection.send(STATUS.pack(child in statuses, statuses.get(child, 0)))
            child = 0


def forks_can_use_cuda() -> bool:
    """Whether nothing has asked for a GPU in this process; only a fork of it can tell."""
    import torch

    child = os.fork()
    if child == 0:
        os._exit(torch.cuda._is_in_bad_fork())
    return os.waitpid(child, 0)[1] == 0


def _become_solution(launcher: socket.socket, descriptors: list[int], folder: Path) -> None:
    """Never returns."""
    from ..harness import load_builders
    from . import confinement
    from .contestant import report
    from .system_calls import filter_calls

    try:
        parent = os.getppid()
        os.setsid()
        die_with_parent(parent)
        launcher.close()
        answers, log, memory, order_memory = descriptors
        os.dup2(log, 1)
        os.dup2(log, 2)
        for standard, text in ((1, "stdout"), (2, "stderr")):
            stream = os.fdopen(standard, "w", 1, "utf-8", "backslashreplace", closefd=False)
            setattr(sys, text, stream)
        order = Order.from_json(
            os.pread(order_memory, os.fstat(order_memory).st_size, 0).rstrip(b"\0")
        )
        os.close(order_memory)
        os.close(log)
        load_builders()
        die_of_faults()
        enter(folder, order.confined)
        confinement.limit_resources(order.memory_limit)
        if order.confined:
            confinement.drop_capabilities(confinement.TO_FILES)
            confinement.confine_writes(folder)
            scoped = confinement.landlock_version() >= confinement.SCOPES_SINCE
            filter_calls(keep_signals_in=not scoped)
        else:
            confinement.drop_capabilities(confinement.ALL_BUT_PTRACE)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer_requests(socket.socket(fileno=answers), order, memory)
    except BaseException as error:
        report(error)
    finally:
        os._exit(1)


def die_of_faults() -> None:
    """Have a fault end this process at once, and write where in Python it was.

    Handlers of libraries would have it look up C++ symbols first, for many seconds or for ever.
    """
    for fault in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
        signal.signal(fault, signal.SIG_DFL)
    faulthandler.enable(2)


def answer_requests(connection: socket.socket, order: Order, memory: int) -> None:
    """Answer requests until told to end; never returns."""
    me = os.getpid()
    contestant = _contestant(order, memory)
    while True:
        message = connection.recv(REQUEST.size)
        if not message:  # the parent has gone
            os._exit(0)
        request = Request.unpack(message)
        answer = contestant.answer(request)
        is_copy = os.getpid() != me
        if is_copy:
            answer = replace(answer, outcome=Outcome.COPY_RETURNED)
        for stream in (sys.stdout, sys.stderr):
            with suppress(BaseException):
                stream.flush()  # the solution may have closed it, or replaced it by anything
        connection.send(answer.pack())
        if is_copy:
            os._exit(1)
        if request.command is Command.END:
            # Threads of the solution may go on for as long as the parent lets them.
            connection.recv(1)
            os._exit(0)


def _contestant(order: Order, memory: int) -> Contestant:
    if order.device != "cpu":
        from .gpu_contestant import GpuContestant

        return GpuContestant(order, memory)
    from .contestant import Contestant

    return Contestant(order, memory)


def enter(folder: Path, confined: bool) -> None:
    """Work in `folder`, build there and, if confined, have it for a home.

    Compilers for a GPU keep what they have compiled at home, which costs minutes.
    """
    os.chdir(folder)
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TRITON_HOME") if confined else ()
    for name in ("FIB_CACHE_PATH", *places):
        os.environ[name] = str(folder)
