"""A machine without a GPU: native solutions one by one, simulated ones on several cores at once.

Simulated are those whose kernels are interpreted (Triton) or emulated (CuTe DSL). Each uses one
core, for up to minutes, and its time says nothing about the solution; so a few run beside each
other. A native one is measured, and has the machine for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flashinfer_bench.bench import BenchmarkConfig
from flashinfer_bench.data import Solution

from .cpu_runner import free_memory
from .emulation import is_interpreted, is_simulated
from .evaluator import Evaluator, Here
from .jobs import Event, Job
from .pool import Pool
from .worker import Worker

PROCESSES = 2
"""More would each compute the reference again."""
PROCESS_BYTES = 6 << 30
"""Of a worker and its solution at the real geometry, where each has the inputs (1.4 GB)."""


class Cores:
    """Stands in for Here and Pool."""

    def __init__(self, root: Path, emulated: str | None, start: Callable[[str], Worker]) -> None:
        """start: a process with an evaluator like this one's, by its name."""
        self._start = start
        self._here = Here(Evaluator(root, emulated))
        self._pool: Pool | None = None
        self.machine = self._here.machine

    @property
    def description(self) -> str:
        return self._here.description

    def refusals(self, solutions: list[Solution]) -> dict[str, str]:
        return self._here.refusals(solutions)

    def run(self, jobs: Sequence[Job], config: BenchmarkConfig) -> Iterator[Event]:
        """jobs: of one solution each. Those that take longest start first."""
        simulated = [job for job in jobs if any(map(is_simulated, job.solutions))]
        yield from self._here.run([job for job in jobs if job not in simulated], config)
        processes = min(PROCESSES, os.cpu_count() or 1, len(simulated))
        if processes < 2 or free_memory() < processes * PROCESS_BYTES:
            yield from self._here.run(simulated, config)
            return
        self._here.close()  # gives its memory back
        names = [f"process {number + 1}" for number in range(processes)]
        self._pool = Pool([self._start(name) for name in names])
        yield from self._pool.run(sorted(simulated, key=_expected_order), config)

    def close(self) -> None:
        self._here.close()
        if self._pool is not None:
            self._pool.close()


def _expected_order(job: Job) -> tuple[int, bool]:
    """Largest workloads first, and of each the interpreted solutions, which take longest."""
    size = sum(job.workload.workload.axes.values())
    return -size, not any(map(is_interpreted, job.solutions))
