"""flashinfer-bench on a machine without CUDA.

The harness's runners and evaluators call torch.cuda throughout. This runner takes their place and
keeps what they decide: statuses, tolerances, logs, time limit. It differs from them in this:

* Every solution runs in a process of its own, which ends with it; so does the reference. This
  process holds the expected outputs, checks what comes back and measures with its own clock.
* Every call, warm-ups too, has inputs that differ from the last call's, and is checked. Outputs are
  poisoned before it, inputs compared after it.
* The baseline is the lean oracle (see oracle.py) where the definition's reference allows it: the
  same bits, without 12 GiB of dequantised weights. Speed-ups are relative to the oracle's time.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.data import (
    Definition,
    Evaluation,
    EvaluationStatus,
    Performance,
    Solution,
    TraceSet,
    Workload,
)

from ..hardware import marked
from ..harness import Runner, Settings, benchmark_with, evaluation, output_specs, settings_for
from ..sandbox.changes import Change
from ..sandbox.confinement import hide_memory
from ..sandbox.contract import Failure, Limits, Subject
from ..sandbox.launcher import Launcher, LauncherError
from ..sandbox.solution_process import SolutionProcess
from . import emulation
from .judge import Verdict, WrongNumbers, check_inputs
from .trials import Changer, Trial, draw_inputs, make_calls, moved, tensors_of

DEVICE = "cpu"
MEMORY_SHARE = 0.75
"""Of the memory that is free when the runner starts, what one solution may take."""


@dataclass(frozen=True)
class Baseline:
    """What solutions are judged against on one workload."""

    definition: Definition
    settings: Settings
    trials: list[Trial]
    latency_ms: float
    """Mean over the timed calls."""


def cpu_benchmark(
    trace_set: TraceSet,
    config: BenchmarkConfig,
    limits: Limits | None = None,
    emulated: str | None = None,
    baselines: Baselines | None = None,
) -> Benchmark:
    """The harness's Benchmark with a CpuRunner."""
    runner = CpuRunner(limits or default_limits(config), emulated, baselines)
    return benchmark_with(runner, trace_set, config)


def default_limits(config: BenchmarkConfig) -> Limits:
    return Limits(config.timeout_seconds, int(MEMORY_SHARE * free_memory()))


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo: expected a line MemAvailable, found none")


class Baselines:
    """The last workload's baseline, for the runners in all threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Baseline | None = None
        self._key: tuple[str, str] | None = None

    def get(self, key: tuple[str, str], build: Callable[[], Baseline]) -> Baseline:
        """The baseline of `key`, definition and workload; built if the last was another's."""
        with self._lock:
            if self._last is None or self._key != key:
                self.forget()  # frees the last one's inputs first
                self._last = build()
                self._key = key
            return self._last

    def forget(self) -> None:
        self._last = self._key = None


class CpuRunner(Runner):
    """Evaluates solutions one by one."""

    def __init__(
        self, limits: Limits, emulated: str | None = None, baselines: Baselines | None = None
    ) -> None:
        """limits: of each solution, and of each trial of the reference. emulated: the architecture
        of the GPU to emulate for solutions in CuTe DSL, such as sm_90a; None: they cannot run.
        baselines: shared with other runners."""
        hide_memory()
        self._limits = limits
        self._emulated = emulated
        self._baselines = baselines or Baselines()
        self._launcher: Launcher | None = None

    def run_workload(
        self,
        definition: Definition,
        workload: Workload,
        solutions: list[Solution],
        config: BenchmarkConfig,
        root: Path,
    ) -> dict[str, Evaluation]:
        """Raises RuntimeError if the reference itself fails, as the harness's runners do."""
        evaluations = {}
        for solution in solutions:
            baseline = self._baselines.get(
                (definition.name, workload.uuid),
                lambda: build_baseline(
                    definition, workload, config, root, self._ready_launcher(), self._limits
                ),
            )
            subject = emulation.subject(definition, solution, self._emulated)
            result = evaluate(subject, baseline, self._ready_launcher(), self._limits)
            if subject.emulated is not None:
                environment = result.environment
                environment.hardware = marked(environment.hardware, subject.emulated)
            evaluations[solution.name] = result
        return evaluations

    def close(self) -> None:
        self.close_launcher()
        self._baselines.forget()

    def _ready_launcher(self) -> Launcher:
        """A living launcher; one more attempt, as something may have killed the first."""
        if self._launcher is None or not self._launcher.alive:
            self.close_launcher()
            try:
                self._launcher = Launcher.start()
            except LauncherError:
                self._launcher = Launcher.start()
        return self._launcher

    def close_launcher(self) -> None:
        if self._launcher is not None:
            self._launcher.close()
            self._launcher = None


def build_baseline(
    definition: Definition,
    workload: Workload,
    config: BenchmarkConfig,
    root: Path,
    launcher: Launcher,
    limits: Limits,
) -> Baseline:
    """Inputs, expected outputs and mean time of the reference.

    Raises RuntimeError if it fails or takes too long.
    """
    settings = settings_for(config, definition)
    subject = Subject(definition, lean=has_oracle(definition))
    trials: list[Trial] = []
    seconds: list[float] = []
    for _ in range(settings.num_trials):
        inputs = draw_inputs(definition, workload, root)
        outputs = output_specs(definition, inputs)
        with SolutionProcess(launcher, subject, inputs, outputs, limits) as process:
            try:
                process.build()
                process.give(inputs)
                reference = partial(call_reference, process, tensors_of(inputs))
                changer = Changer(
                    definition, workload, inputs, settings, reference, lambda: process.used_experts
                )
                calls, took = make_calls(changer)
            except Failure as failure:
                raise RuntimeError(f"the reference: {failure.message}") from failure
        check_tolerances(calls[-1].expected, settings)
        trials.append(Trial(inputs, calls))
        seconds += took[-settings.iterations :]
    return Baseline(definition, settings, trials, 1e3 * sum(seconds) / len(seconds))


def call_reference(
    process: SolutionProcess, given: list[torch.Tensor], change: Change
) -> tuple[list[torch.Tensor], float]:
    """Outputs and seconds with a change, which is put back."""
    result = process.call(change)
    process.put_back(change, given)
    return result


def check_tolerances(expected: list[torch.Tensor], settings: Settings) -> None:
    """Raises RuntimeError if an output of zeros is within the tolerances everywhere."""
    for output in expected:
        if output.any() and not moved(torch.zeros_like(output), output, settings).any():
            raise RuntimeError(
                f"atol {settings.atol}, rtol {settings.rtol}: expected tolerances that tell zeros "
                f"from the reference's output, of at most {output.float().abs().max():g}"
            )


def evaluate(
    subject: Subject, baseline: Baseline, launcher: Launcher, limits: Limits
) -> Evaluation:
    """Run one solution in a process of its own, and decide as the harness's evaluators do."""
    verdict = Verdict()
    correctness = None
    seconds: list[float] = []
    inputs = baseline.trials[0].inputs
    process = SolutionProcess(
        launcher,
        subject,
        inputs,
        output_specs(baseline.definition, inputs),
        limits,
    )
    try:
        with process:
            process.build()
            for trial in baseline.trials:
                seconds += run_trial(process, trial, baseline, verdict)
            process.end()
        status, message = EvaluationStatus.PASSED, ""
    except WrongNumbers as failure:
        status, message, correctness = failure.status, failure.message, failure.correctness
    except Failure as failure:
        status, message = failure.status, failure.message
    log = "\n".join(filter(None, [str(process.printed).rstrip("\n"), message]))
    if status is not EvaluationStatus.PASSED:
        return evaluation(status, DEVICE, log, correctness)
    latency_ms = 1e3 * sum(seconds) / len(seconds)
    performance = Performance(
        latency_ms=latency_ms,
        reference_latency_ms=baseline.latency_ms,
        speedup_factor=baseline.latency_ms / latency_ms,
    )
    return evaluation(status, DEVICE, log, verdict.correctness, performance)


def run_trial(
    process: SolutionProcess, trial: Trial, baseline: Baseline, verdict: Verdict
) -> list[float]:
    """The seconds of the timed calls of one trial; raises Failure."""
    definition, settings = baseline.definition, baseline.settings
    names = [
        name
        for name, value in zip(definition.inputs, trial.inputs, strict=True)
        if isinstance(value, torch.Tensor)
    ]
    process.give(trial.inputs)
    seconds = []
    for call in trial.calls:
        outputs, took = process.call(call.change)
        check_inputs(names, process.inputs, tensors_of(trial.inputs), call.change)
        verdict.add(list(definition.outputs), outputs, call, settings)
        seconds.append(took)
    return seconds[-settings.iterations :]


def has_oracle(definition: Definition) -> bool:
    """Whether the reference has what the lean oracle needs."""
    functions = [
        node.name
        for node in ast.parse(definition.reference).body
        if isinstance(node, ast.FunctionDef)
    ]
    return "dequantize_weights" in functions
