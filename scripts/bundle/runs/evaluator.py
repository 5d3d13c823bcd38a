"""What evaluates jobs in one process, on one GPU or the CPU: here, in a child, or on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.data import Solution, Trace, TraceSet

from ..dataset.loading import check_blobs
from ..dataset.replicas import prepare
from ..harness import env_snapshot
from ..machine import this_hardware
from ..paths import BadInput, check_root
from .cpu_runner import Baselines, cpu_benchmark
from .jobs import Event, Finished, Job, Started, evaluate
from .provenance import CLOCKS, MACHINE, POWER_LIMIT, facts
from .requirements import current_device, refusals
from .worker import Machine


class Evaluator:
    """The harness's Benchmark, started at the first job; its GPU is the first that is visible."""

    def __init__(
        self,
        root: Path,
        emulated: str | None = None,
        name: str = "",
        baselines: Baselines | None = None,
    ) -> None:
        """root: of the dataset.
        emulated: the architecture to emulate for CuTe DSL without a GPU, such as sm_90a.
        name: of this GPU among others, to be noted in its traces.
        baselines: without a GPU, shared with other evaluators in this process.
        """
        self._root = check_root(root)
        self._baselines = baselines
        self._name = name
        self._benchmark: Benchmark | None = None
        if name:  # in a process of its own
            logging.basicConfig(level=logging.ERROR, format=f"{name}: %(message)s")
        device = current_device()
        if not device.is_cuda:
            device = replace(device, emulated=emulated)
            os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is later
        self._device = device

    def machine(self) -> Machine:
        snapshot = env_snapshot("cuda:0" if self._device.is_cuda else "cpu")
        libs = snapshot.libs | facts()
        versions = {name: libs[name] for name in libs if name not in (CLOCKS, POWER_LIMIT)}
        return Machine(self._device, this_hardware(), versions)

    def refusals(self, solutions: list[Solution]) -> dict[str, str]:
        """Those that cannot run here, and why."""
        return refusals(solutions, self._root, self._device)

    def evaluate(self, job: Job, config: BenchmarkConfig) -> list[Trace]:
        """The traces of a job; of a solution that was not judged, as the reference failed, none.

        config: the same for all jobs. Raises BadInput if the workload's blobs are damaged.
        """
        if self._benchmark is None:
            self._benchmark = self._start(config)
        check_blobs(job.definition, job.workload.workload, self._root)
        traces = evaluate(self._benchmark, job)
        for trace in traces:
            if self._name:
                trace.evaluation.environment.libs[MACHINE] = self._name
        return traces

    def close(self) -> None:
        if self._benchmark is not None:
            self._benchmark.close()
            self._benchmark = None

    def _start(self, config: BenchmarkConfig) -> Benchmark:
        make_blobs(self._root)  # of a machine that does not share its disk with the first
        trace_set = TraceSet(root=self._root)
        if self._device.is_cuda:
            return Benchmark(trace_set, config)
        return cpu_benchmark(
            trace_set, config, emulated=self._device.emulated, baselines=self._baselines
        )


class Here:
    """One evaluator, in this process."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.machine = evaluator.machine()

    @property
    def description(self) -> str:
        return self.machine.device.name

    def refusals(self, solutions: list[Solution]) -> dict[str, str]:
        return self._evaluator.refusals(solutions)

    def run(self, jobs: Sequence[Job], config: BenchmarkConfig) -> Iterator[Event]:
        for job in jobs:
            yield Started("", job)
            yield Finished("", job, self._evaluator.evaluate(job, config))

    def close(self) -> None:
        self._evaluator.close()


def make_blobs(root: Path) -> None:
    """The workloads' replicas, where they are missing."""
    try:
        prepare(root)
    except (OSError, ValueError) as error:
        raise BadInput(f"blobs of {root}: {error}") from error
