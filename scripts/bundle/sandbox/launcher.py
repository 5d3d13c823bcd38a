"""Starts solutions' processes quickly, and ends all that they have started.

The launcher is a process that has imported PyTorch, Triton and the harness and nothing else:
forking it takes milliseconds, importing takes seconds. It runs no solution's code and knows no
expected output. A launcher that a solution has killed or stopped is replaced by the next `start`.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .processes import descendants, end_descendants, inherit_orphans, is_stopped

SCRIPTS = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
"""For the imports, on a slow disk."""
ANSWER_SECONDS = 90.0
"""For an answer, on a machine full of processes that are being ended."""
LOOK_SECONDS = 1.0
"""Between two looks at a launcher that does not answer."""
PROGRAM = (
    f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); "
    "from bundle.sandbox.fork_server import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)
READY = struct.Struct("?")
"""The launcher's first message: whether its forks can use CUDA."""
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
    _living: ClassVar[set[int]] = set()
    """The pids of this process's launchers, of which each thread may have one."""

    @classmethod
    def start(cls, device: str = "cpu") -> Launcher:
        """Raises LauncherError if it does not come up, with what it has printed.

        Also if the processes that it starts could not use `device`.
        """
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
            cls._living.add(process.pid)
            theirs.close()
            ours.settimeout(START_SECONDS)
            try:
                ready = ours.recv(READY.size)
            except OSError:
                ready = b""
            if not ready:
                launcher.close()
                errors.seek(0)
                text = errors.read().decode("utf-8", "replace").strip()
                last = text.splitlines()[-1] if text else f"exit status {process.returncode}"
                raise LauncherError(f"no process for solutions could be started: {last}")
            if device != "cpu" and ready != READY.pack(True):
                launcher.close()
                raise LauncherError(
                    f"no process for solutions could use {device}: importing PyTorch and "
                    "flashinfer-bench has initialised CUDA in the one that starts them"
                )
        return launcher

    def fork(self, descriptors: list[int], folder: Path) -> int:
        """Start a solution's process and return its pid.

        descriptors: its socket, its log, the shared memory, the order.
        """
        try:
            socket.send_fds(self.connection, [START + os.fsencode(folder)], descriptors)
            (pid,) = PID.unpack(self._answer(PID.size))
        except (OSError, struct.error) as error:
            raise LauncherError("the process that starts solutions has gone") from error
        return pid

    def reap(self) -> int | None:
        """End the solution's process and all that it started.

        Returns its wait status, or None if the launcher itself had to be replaced.
        """
        try:
            self.connection.send(REAP)
            found, status = STATUS.unpack(self._answer(STATUS.size))
        except (OSError, struct.error):
            self.close()
            return None
        return status if found else None

    def _answer(self, size: int) -> bytes:
        """Nothing if the launcher has ended or been stopped; raises OSError if it says nothing."""
        deadline = time.monotonic() + ANSWER_SECONDS
        self.connection.settimeout(LOOK_SECONDS)
        while True:
            try:
                return self.connection.recv(size)
            except TimeoutError:
                if is_stopped(self.process.pid):
                    return b""
                if time.monotonic() > deadline:
                    raise

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
        self._living.discard(self.process.pid)
        end_descendants(spared=self.others | self._living)
