"""Jobs on one GPU or many: each goes to the next that is free, whole; a GPU that is lost loses only
the job that it had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from flashinfer_bench.bench import BenchmarkConfig
from flashinfer_bench.data import Solution

from ..paths import BadInput
from .jobs import Event, Finished, Job, Lost, Started
from .worker import Machine, Worker, WorkerLost


class Pool:
    """Several workers, on machines that are alike in everything that the figures depend on."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        """Waits for the first worker; the others may come later.

        Raises BadInput if none comes up.
        """
        self._workers = list(workers)
        self._coming = {worker.ask("machine"): worker for worker in workers}
        self._ready: deque[Worker] = deque()
        self._left_out: list[Lost] = []
        self._refusals: tuple[list[Solution], dict[str, str]] | None = None
        self.machine = self._first()

    @property
    def description(self) -> str:
        names = ", ".join(worker.name for worker in self._workers)
        return f"{self.machine.device.name} ({names})"

    def refusals(self, solutions: list[Solution]) -> dict[str, str]:
        """As the first worker tells; another that differs is left out."""
        first = self._ready[0]
        found = first.ask("refusals", solutions).result()
        self._refusals = solutions, found
        return found

    def run(self, jobs: Sequence[Job], config: BenchmarkConfig) -> Iterator[Event]:
        """All jobs, in any order, unless all workers are lost before."""
        waiting = deque(jobs)
        checked: set[str] = set()
        running: dict[Future, tuple[Worker, Job | None]] = {}
        while True:
            while waiting and self._ready:
                worker = self._ready.popleft()
                if self._refusals and worker.name not in checked:
                    running[worker.ask("refusals", self._refusals[0])] = worker, None
                    checked.add(worker.name)
                    continue
                job = waiting.popleft()
                running[worker.ask("evaluate", job, config)] = worker, job
                yield Started(worker.name, job)
            yield from self._left_out
            self._left_out.clear()
            if not running and not (waiting and self._coming):
                return
            done, _ = wait([*running, *self._coming], return_when=FIRST_COMPLETED)
            for future in done & running.keys():
                worker, had = running.pop(future)
                try:
                    result = future.result()
                except WorkerLost as error:
                    yield Lost(worker.name, had, str(error))
                    continue
                if had is not None:
                    yield Finished(worker.name, had, result)
                elif self._refusals and result != self._refusals[1]:
                    reason = differing(self._refusals[1], result)
                    yield Lost(worker.name, None, f"left out: solutions that cannot run: {reason}")
                    continue
                self._ready.append(worker)
            self._welcome(done & self._coming.keys())

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _first(self) -> Machine:
        """The first worker's machine, when it has answered."""
        while self._coming:
            answers, _ = wait(self._coming, return_when=FIRST_COMPLETED)
            for future in [each for each in self._coming if each in answers]:
                if future.exception() is None:
                    machine: Machine = future.result()
                    self._ready.append(self._coming.pop(future))
                    return machine
                self._leave_out(future)
        reasons = "; ".join(f"{lost.worker}: {lost.reason}" for lost in self._left_out)
        raise BadInput(f"expected GPUs that can be used: {reasons}")

    def _welcome(self, answers: set[Future]) -> None:
        """Take those that have come up, if they are like the first."""
        for future in answers:
            if future.exception() is not None:
                self._leave_out(future)
                continue
            worker, machine = self._coming.pop(future), future.result()
            reason = differing(self.machine.facts, machine.facts)
            if reason:
                self._left_out.append(Lost(worker.name, None, f"left out: {reason}"))
            else:
                self._ready.append(worker)

    def _leave_out(self, future: Future) -> None:
        """One that has not come up; raises what is no loss of a worker."""
        worker, error = self._coming.pop(future), future.exception()
        if not isinstance(error, WorkerLost):
            future.result()
        self._left_out.append(Lost(worker.name, None, str(error)))


def differing(expected: dict[str, str], found: dict[str, str]) -> str:
    """What two machines do not share; empty if nothing."""
    names = [n for n in expected | found if expected.get(n) != found.get(n)]
    return ", ".join(f"{n}: expected {expected.get(n)}, got {found.get(n)}" for n in names)
