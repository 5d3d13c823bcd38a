"""The parent's side: one solution (or reference) in its process, with limits, memory and clock."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.data import EvaluationStatus

from .changes import CHANGE, Change, apply, undo
from .channel import (
    ANSWER,
    Answer,
    Command,
    Order,
    Outcome,
    Request,
    create_memory,
    lay_out,
    open_tensors,
)
from .contract import Failure, Limits, Subject
from .folder import free_room, remove_folder, taken_room
from .launcher import Launcher
from .poison import poison
from .processes import (
    descendants,
    memory_at_most,
    memory_of,
    processor_seconds,
    shared_memory,
)

HEAD_BYTES, TAIL_BYTES = 16 << 10, 48 << 10
"""What is kept of what a solution prints: the beginning and the end."""
WATCH_SECONDS = 0.5
"""Between two looks at the memory and the number of its processes."""
FEW_PROCESSES = 32
"""Whose shared memory can be told in the time of a look."""
LAST_WORDS_SECONDS = 0.25
"""For a forked copy to come back, or a left-over thread to end the process, after the last call."""
GIB = 1 << 30


class PrintedText:
    """The beginning and the end of a stream, however long it is."""

    def __init__(self) -> None:
        self.head = b""
        self.tail = b""
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = HEAD_BYTES - len(self.head)
        self.head += data[:room]
        self.tail = (self.tail + data[room:])[-TAIL_BYTES:] if len(data) > room else self.tail

    def __str__(self) -> str:
        omitted = self.total - len(self.head) - len(self.tail)
        middle = f"\n[{omitted} bytes left out]\n".encode() if omitted else b""
        return (self.head + middle + self.tail).decode("utf-8", "replace")


class SolutionProcess:
    """A context manager: on leaving, nothing that the solution started is left."""

    def __init__(
        self,
        launcher: Launcher,
        subject: Subject,
        arguments: Sequence[Any],
        outputs: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
        limits: Limits,
        device: str = "cpu",
    ) -> None:
        """arguments: tensors and scalars in the definition's order; they tell shapes only."""
        self.limits = limits
        self.launcher = launcher
        self.printed = PrintedText()
        self._left = limits.seconds
        self.used_experts: list[int] = []
        """By the last call of the oracle; of a solution's process nothing that can be believed."""
        self._copies = device != "cpu"
        """Whether the solution has copies of the arguments, and is told what has changed."""
        names = list(subject.definition.inputs)
        tensors = [
            (name, value.dtype, tuple(value.shape))
            for name, value in zip(names, arguments, strict=True)
            if isinstance(value, torch.Tensor)
        ]
        slots, size = lay_out([*tensors, *outputs, CHANGE])
        self._memory = create_memory(size)
        mapped = open_tensors(self._memory, slots)
        self.inputs = mapped[: len(tensors)]
        """The tensors among the arguments, as the solution sees them."""
        self.outputs = mapped[len(tensors) : -1]
        self._change = mapped[-1]
        of_inputs = iter(slots)
        is_tensor = [isinstance(value, torch.Tensor) for value in arguments]
        self._order = Order(
            definition=subject.definition.model_dump_json(),
            solution=subject.solution and subject.solution.model_dump_json(),
            lean=subject.lean,
            inputs=[next(of_inputs) if tensor else None for tensor in is_tensor],
            scalars=[
                None if tensor else value
                for tensor, value in zip(is_tensor, arguments, strict=True)
            ],
            outputs=slots[len(tensors) : -1],
            change=slots[-1],
            memory_limit=limits.memory_bytes,
            confined=device == "cpu",
            device=device,
            emulated=subject.emulated,
            emulator_cache=subject.emulator_cache,
        )

    def __enter__(self) -> SolutionProcess:
        self._folder = Path(tempfile.mkdtemp(prefix="solution_"))
        self._free_before = free_room(self._folder)
        self._shared_before = shared_memory() + sum(x.nbytes for x in self.inputs + self.outputs)
        text = self._order.to_json()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log, log_end = os.pipe2(os.O_CLOEXEC)
        order = create_memory(len(text), text)
        try:
            self.pid = self.launcher.fork(
                [theirs.fileno(), log_end, self._memory, order], self._folder
            )
            self._pidfd: int | None = os.pidfd_open(self.pid)
        except BaseException:
            self._pidfd = None
            self._release()
            raise
        finally:
            theirs.close()
            os.close(log_end)
            os.close(order)
        os.set_blocking(self._log, False)
        self._connection.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self.launcher.reap()
        self._read_log()
        self._release()

    def _release(self) -> None:
        self._connection.close()
        os.close(self._log)
        os.close(self._memory)
        if self._pidfd is not None:
            os.close(self._pidfd)
        remove_folder(self._folder)

    def build(self) -> None:
        self._ask(Command.BUILD)

    def give(self, arguments: Sequence[Any]) -> None:
        """Put the tensors among `arguments` into the shared memory."""
        given = [value for value in arguments if isinstance(value, torch.Tensor)]
        for mine, value in zip(self.inputs, given, strict=True):
            mine.copy_(value)
        self._ask(Command.LOAD)

    def fetch(self) -> None:
        """Have the arguments in the shared memory as they are now in the solution's."""
        self._ask(Command.FETCH)

    def put_back(self, change: Change, given: Sequence[torch.Tensor]) -> None:
        """Undo a change; `given` holds the tensors as they were."""
        undo(change, self.inputs, given)

    def call(self, change: Change, own_stream: bool = False) -> tuple[list[torch.Tensor], float]:
        """Poison the outputs, call once, and return copies of the outputs and the seconds it took.

        change: made after the clock was started. The clock stops when the outputs are copied: what
        is written later comes too late. own_stream: on a GPU, whether a stream other than the
        default one is current.
        """
        for output in self.outputs:
            poison(output)
        start = time.perf_counter()
        apply(change, self.inputs)
        if self._copies:
            self._tell(change)
        answer = self._ask(Command.CALL, int(own_stream))
        self.used_experts = [bit for bit in range(32) if answer.number >> bit & 1]
        copies = [output.clone() for output in self.outputs]
        return copies, time.perf_counter() - start

    def time(self, calls: int) -> tuple[float, float]:
        """Seconds per call by this process's clock, and as the solution's process claims."""
        start = time.perf_counter()
        answer = self._ask(Command.TIME, calls)
        return (time.perf_counter() - start) / calls, answer.number * 1e-9

    def compare(self, change: Change, pairs: int) -> float:
        """The time of a call with the last call's inputs, as a share of that with new ones.

        By the solution's clock; the parts of `change` are what is new, and not put back.
        """
        self._tell(change)
        return self._ask(Command.COMPARE, pairs).number / 1000

    def _tell(self, change: Change) -> None:
        for row, part in zip(self._change, change, strict=False):
            row.copy_(torch.tensor([part.number, part.index, len(part.values)]))
        self._change[len(change) :] = 0

    def end(self) -> None:
        """Let the process end; a last look for forked copies and threads that spoil the end."""
        answer = self._ask(Command.END)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        others = set(descendants(self.launcher.process.pid)) - {self.pid}
        if not others and not answer.number:
            deadline = 0.0
        ends: list[Any] = [self._connection, self._pidfd]
        late = False
        while not late:
            late = time.monotonic() >= deadline
            ready, _, _ = select.select(ends, [], [], max(deadline - time.monotonic(), 0.0))
            if self._connection in ready:
                if message := self._receive():
                    self._check_answer(message, b"")
                ends.remove(self._connection)  # closed; the process may end or stay
            if self._pidfd in ready:
                raise Failure(EvaluationStatus.RUNTIME_ERROR, self._how_it_died())

    @property
    def left_behind(self) -> int:
        """The processes that the solution has started and that still run."""
        return len(set(descendants(self.launcher.process.pid)) - {self.pid})

    def _ask(self, command: Command, number: int = 0) -> Answer:
        """Send a request and return its answer; raises Failure for anything else."""
        request = Request(secrets.token_bytes(16), command, number)
        try:
            self._connection.send(request.pack())
        except OSError:
            raise Failure(EvaluationStatus.RUNTIME_ERROR, self._how_it_died()) from None
        begun = time.monotonic()
        try:
            message = self._wait(begun + self._left)
        finally:
            self._left -= time.monotonic() - begun
        answer = self._check_answer(message, request.nonce)
        if answer.outcome is not Outcome.DONE:
            raise Failure(EvaluationStatus[answer.outcome.name], answer.text)
        return answer

    def _check_answer(self, message: bytes, nonce: bytes) -> Answer:
        try:
            answer = Answer.unpack(message)
        except ValueError as error:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR, f"wrote something of its own to the runner: {error}"
            ) from None
        if answer.outcome is Outcome.COPY_RETURNED:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR, "forked, and the copy came back from it, too"
            )
        if answer.nonce != nonce:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR, "answered a request that was not made, or twice"
            )
        return answer

    def _wait(self, deadline: float) -> bytes:
        """The next message; meanwhile read what is printed and watch the limits.

        What has come counts, even if this process was not run in time to see it.
        """
        open_ends: list[Any] = [self._connection, self._log, self._pidfd]
        next_look = time.monotonic() + WATCH_SECONDS
        while True:
            now = time.monotonic()
            late = now >= deadline
            wait = max(min(deadline, next_look) - now, 0.0)
            ready, _, _ = select.select(open_ends, [], [], wait)
            if self._connection in ready:
                if message := self._receive():
                    return message
                open_ends.remove(self._connection)  # closed; the process may end or hang
            if self._log in ready:
                before = self.printed.total
                if self._read_log() == before:
                    open_ends.remove(self._log)
                if self.printed.total > self.limits.printed_bytes:
                    raise Failure(
                        EvaluationStatus.RUNTIME_ERROR,
                        f"printed more than {self.limits.printed_bytes} bytes",
                    )
            if self._pidfd in ready:
                raise Failure(EvaluationStatus.RUNTIME_ERROR, self._how_it_died())
            if late:
                self._check_limits()  # whoever takes too much may have kept this process from it
                used = processor_seconds(descendants(self.launcher.process.pid))
                raise Failure(
                    EvaluationStatus.TIMEOUT,
                    f"no result within {self.limits.seconds:g} seconds ({used:.1f} s of a "
                    "processor)",
                )
            if time.monotonic() >= next_look:
                self._check_limits()
                next_look = time.monotonic() + WATCH_SECONDS

    def _receive(self) -> bytes:
        """A message, or nothing if there is none: the socket is closed, or was read by nobody."""
        try:
            return self._connection.recv(ANSWER.size + 1)
        except OSError:
            return b""

    def _read_log(self) -> int:
        """Read what is there of the log now; returns the bytes printed so far."""
        for _ in range(64):  # a solution that prints for ever must not keep us here
            try:
                data = os.read(self._log, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self.printed.add(data)
        return self.printed.total

    def _check_limits(self) -> None:
        processes = descendants(self.launcher.process.pid)
        if len(processes) > self.limits.processes:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR,
                f"started more than {self.limits.processes} processes",
            )
        self._check_memory(processes)
        self._check_files()

    def _check_memory(self, processes: list[int]) -> None:
        limit = self.limits.memory_bytes
        if limit is None:
            return
        shared = max(shared_memory() - self._shared_before, 0)
        if memory_at_most(processes, self.launcher.process.pid) + shared <= limit:
            return
        used = memory_of(processes) if len(processes) <= FEW_PROCESSES else None
        if used is None or used + shared > limit:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR, f"took more than {limit / GIB:.1f} GiB of memory"
            )

    def _check_files(self) -> None:
        """Others write to the same disk: looks closer only if all together have made too much."""
        free, limits = free_room(self._folder), self.limits
        written = self._free_before.bytes - free.bytes
        made = self._free_before.files - free.files
        if written <= limits.written_bytes and made <= limits.files:
            return
        taken = taken_room(self._folder)
        if written > limits.written_bytes and taken.bytes > written / 2:
            raise Failure(
                EvaluationStatus.RUNTIME_ERROR,
                f"wrote more than {limits.written_bytes / GIB:.1f} GiB to files",
            )
        if taken.files > limits.files:
            raise Failure(EvaluationStatus.RUNTIME_ERROR, f"made more than {limits.files} files")

    def _how_it_died(self) -> str:
        """Asks the launcher, which ends and reaps everything."""
        status = self.launcher.reap()
        if status is None:
            return "ended the process that had started it"
        if os.WIFEXITED(status):
            return f"the process ended itself with exit status {os.WEXITSTATUS(status)}"
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        hint: dict[int, str] = {
            signal.SIGKILL: " (out of memory?)",
            signal.SIGXFSZ: " (a file grew too large)",
        }
        return f"killed by signal {number}, {name}{hint.get(number, '')}"
