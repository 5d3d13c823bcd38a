"""Starts solutions' processes quickly, and ends all that they have started.

The launcher is a process that has imported PyTorch and the harness and nothing else: forking it
takes milliseconds, importing takes seconds. It runs no solution's code and knows no expected
output. A launcher that a solution has killed or stopped is replaced by the next `start`.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .processes import descendants, die_with_parent, end_descendants, inherit_orphans

SCRIPTS = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
"""For the imports, on a slow disk."""
REAP_SECONDS = 6.0
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); "
    "from bundle.sandbox.launcher import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)
START, REAP = b"S", b"R"
PID = struct.Struct("<i")
STATUS = struct.Struct("<ii")
"""Whether the solution's process was found, and its wait status."""


class LauncherError(RuntimeError):
    """The launcher did not start, or has gone."""


@dataclass
class Launcher:
    """The parent's handle; one solution's process at a time."""

    process: subprocess.Popen
    connection: socket.socket
    others: set[int]
    """Children that this process had before."""

    @classmethod
    def start(cls) -> Launcher:
        """Raises LauncherError, with what it has printed, if it does not come up."""
        inherit_orphans()
        others = set(descendants(os.getpid()))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
            launcher = cls(process, ours, others)
            theirs.close()
            ours.settimeout(START_SECONDS)
            try:
                ready = ours.recv(1)
            except OSError:
                ready = b""
            if not ready:
                launcher.close()
                errors.seek(0)
                text = errors.read().decode("utf-8", "replace").strip()
                last = text.splitlines()[-1] if text else f"exit status {process.returncode}"
                raise LauncherError(f"no process for solutions could be started: {last}")
        return launcher

    def fork(self, descriptors: list[int], folder: Path) -> int:
        """Start a solution's process and return its pid.

        descriptors: its socket, its log, the shared memory, the order.
        """
        self.connection.settimeout(REAP_SECONDS)
        try:
            socket.send_fds(self.connection, [START + os.fsencode(folder)], descriptors)
            (pid,) = PID.unpack(self.connection.recv(PID.size))
        except (OSError, struct.error) as error:
            raise LauncherError("the process that starts solutions has gone") from error
        return pid

    def reap(self) -> int | None:
        """End the solution's process and all that it started.

        Returns its wait status, or None if the launcher itself had to be replaced.
        """
        self.connection.settimeout(REAP_SECONDS)
        try:
            self.connection.send(REAP)
            found, status = STATUS.unpack(self.connection.recv(STATUS.size))
        except (OSError, struct.error):
            self.close()
            return None
        return status if found else None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the launcher and all of its descendants."""
        self.connection.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end_descendants(spared=self.others)


def serve(descriptor: int, parent: int) -> None:
    """The launcher process."""
    die_with_parent(parent)
    inherit_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    connection = socket.socket(fileno=descriptor)
    from . import contestant  # noqa: F401  # the slow part
    from .confinement import hide_memory

    hide_memory()
    connection.send(b"1")
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
            statuses = end_descendants()
            connection.send(STATUS.pack(child in statuses, statuses.get(child, 0)))


def _become_solution(launcher: socket.socket, descriptors: list[int], folder: Path) -> None:
    """Never returns."""
    from . import confinement, contestant

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
        order = contestant.Order.from_json(os.pread(order_memory, os.fstat(order_memory).st_size, 0)
                                           .rstrip(b"\0"))  # fmt: skip
        os.close(order_memory)
        os.close(log)
        contestant.enter(folder, order.confined)
        confinement.limit_resources(order.memory_limit)
        confinement.drop_ptrace()
        if order.confined:
            confinement.confine_writes(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        contestant.serve(socket.socket(fileno=answers), order, memory)
    except BaseException as error:
        contestant.report(error)
    finally:
        os._exit(1)
