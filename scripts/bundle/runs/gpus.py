"""Several GPUs of this machine: a child process for each, which sees no other.

The harness, too, can use several GPUs; but it then gives the solutions of one workload to different
ones, and 0.1.2 lets two of them talk over one worker's pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..paths import BadInput
from .evaluator import Evaluator
from .worker import WorkerLost

VISIBLE = "CUDA_VISIBLE_DEVICES"
END_SECONDS = 20
"""For a child that is told to end: the harness's own processes end first."""


class GpuProcess:
    """A Worker in a child process."""

    def __init__(self, gpu: str, name: str, root: Path) -> None:
        """gpu: as CUDA_VISIBLE_DEVICES takes it."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, gpu, name, root), name=name)
        self._process.start()
        theirs.close()  # so that its end is noticed here
        self._thread = ThreadPoolExecutor(1)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, method: str, *arguments: Any) -> Future:
        return self._thread.submit(self._exchange, method, arguments)

    def _exchange(self, method: str, arguments: tuple) -> Any:
        try:
            self._connection.send((method, arguments))
            failed, result = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(END_SECONDS)
            status = self._process.exitcode
            raise WorkerLost(f"its process {self.pid} has ended, exit status {status}") from error
        if failed:
            raise result
        return result

    def close(self) -> None:
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(END_SECONDS)
            self._process.kill()  # for one that does not end by itself
        self._process.join()
        self._thread.shutdown()
        self._connection.close()


def serve(connection: Connection, gpu: str, name: str, root: Path) -> None:
    """The child: answers until its parent closes the connection or ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ[VISIBLE] = gpu  # before anything asks CUDA
    evaluator = Evaluator(root, name=name)
    try:
        while True:
            method, arguments = connection.recv()
            try:
                answer = False, getattr(evaluator, method)(*arguments)
            except Exception as error:
                answer = True, error
            connection.send(answer)
    except (EOFError, BrokenPipeError):
        pass  # the parent has ended
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # a terminal interrupts the parent, too, which tells
    finally:
        evaluator.close()


def visible_gpus(wanted: Sequence[str], count: int) -> list[str]:
    """What to put into CUDA_VISIBLE_DEVICES for each of the GPUs `wanted`, numbers from 0.

    They count among the `count` GPUs that are visible here. Raises BadInput for one that is not,
    and for one that is named twice.
    """
    visible = os.environ.get(VISIBLE)
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    known = [str(number) for number in range(min(count, len(names)))]
    if unknown := [number for number in wanted if number not in known]:
        expected = f"some of {','.join(known)}" if known else "a CUDA device, there is none"
        raise BadInput(f"--gpus: expected {expected}; got {','.join(unknown)}")
    if len(set(wanted)) < len(wanted):
        raise BadInput(f"--gpus: expected each once, got {','.join(wanted)}")
    return [names[int(number)] for number in wanted]


def gpu_processes(gpus: Sequence[str], root: Path) -> list[GpuProcess]:
    """A child for each of some GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    return [GpuProcess(gpu, f"GPU {gpu}", root) for gpu in gpus]
