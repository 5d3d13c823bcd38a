"""A machine without a GPU: native solutions one by one, simulated ones on several cores at once.

Simulated are those whose kernels are interpreted (Triton) or emulated (CuTe DSL). Each uses one
core, for up to minutes, and its time says nothing about the solution; so a few run beside each
other. A native one is measured, and has the machine for itself.

One workload comes after the other, and all of its solutions share its inputs and its expected
outputs: at the real geometry these take a minute and 1.4 GB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from flashinfer_bench.bench import BenchmarkConfig
from flashinfer_bench.data import Solution

from .cpu_runner import Baselines, free_memory
from .emulation import is_interpreted, is_simulated
from .evaluator import Evaluator, Here
from .jobs import Event, Job
from .pool import Pool

THREADS = 2
"""One more solution at a time takes 2 GB more."""
BYTES = 6 << 30
"""Of two solutions at a time at the real geometry: the inputs once more for each, its own copy."""


class Cores:
    """Stands in for Here and Pool."""

    def __init__(self, root: Path, emulated: str | None) -> None:
        self._baselines = Baselines()
        self._new_evaluator = lambda: Evaluator(root, emulated, baselines=self._baselines)
        self._here = Here(self._new_evaluator())
        self._pool: Pool | None = None
        self.machine = self._here.machine

    @property
    def description(self) -> str:
        return self._here.description

    def refusals(self, solutions: list[Solution]) -> dict[str, str]:
        return self._here.refusals(solutions)

    def run(self, jobs: Sequence[Job], config: BenchmarkConfig) -> Iterator[Event]:
        """jobs: of one solution each. Of those of a workload, what takes longest starts first."""
        threads = min(THREADS, os.cpu_count() or 1, sum(map(_is_simulated, jobs)))
        if threads > 1 and free_memory() >= BYTES:
            names = [f"thread {number + 1}" for number in range(threads)]
            self._pool = Pool([ThreadWorker(name, self._new_evaluator()) for name in names])
        for _, group in groupby(jobs, lambda job: job.workload.workload.uuid):
            of_workload = sorted(group, key=_expected_order)
            if self._pool is None:
                yield from self._here.run(of_workload, config)
                continue
            native = [job for job in of_workload if not _is_simulated(job)]
            yield from self._here.run(native, config)
            yield from self._pool.run(of_workload[len(native) :], config)

    def close(self) -> None:
        self._here.close()
        if self._pool is not None:
            self._pool.close()


def _is_simulated(job: Job) -> bool:
    return any(map(is_simulated, job.solutions))


def _expected_order(job: Job) -> tuple[bool, bool]:
    """Native solutions first, then the interpreted ones, which take longest."""
    return _is_simulated(job), not any(map(is_interpreted, job.solutions))


class ThreadWorker:
    """A Worker in a thread of this process: what its solutions do, they do in processes anyway."""

    def __init__(self, name: str, evaluator: Evaluator) -> None:
        self.name = name
        self._evaluator = evaluator
        self._thread = ThreadPoolExecutor(1)

    def ask(self, method: str, *arguments: Any) -> Future:
        return self._thread.submit(getattr(self._evaluator, method), *arguments)

    def close(self) -> None:
        self._evaluator.close()  # ends what still runs
        self._thread.shutdown()
