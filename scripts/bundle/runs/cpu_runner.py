"""flashinfer-bench on a machine without CUDA.

The harness's runners and evaluators call torch.cuda throughout. This runner takes their place and
keeps what they decide: statuses, tolerances, logs, time limit, one worker process that survives a
failing solution and is restarted after a crash. It differs from them in three ways:

* Outputs are filled with NaN before a destination-passing call: writing nothing cannot pass.
* The timed call is the one that is checked. On a CPU a call takes seconds or, in Triton's
  interpreter, a minute. Times are wall-clock.
* The baseline is the lean oracle (see oracle.py) where the definition's reference allows it: the
  same bits, without 12 GiB of dequantised weights. Speed-ups are relative to the oracle's time.
"""

import ast
import signal
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.bench.evaluators import LowBitEvaluator, SamplingEvaluator, resolve_evaluator
from flashinfer_bench.bench.evaluators.utils import allocate_outputs, normalize_result
from flashinfer_bench.bench.runner.runner import Runner
from flashinfer_bench.bench.utils import (
    compute_error_stats,
    gen_inputs,
    load_safetensors,
    make_eval,
)
from flashinfer_bench.compile import BuilderRegistry, BuildError
from flashinfer_bench.data import (
    Correctness,
    Definition,
    Evaluation,
    EvaluationStatus,
    Performance,
    Solution,
    TraceSet,
    Workload,
)
from flashinfer_bench.utils import redirect_stdio_to_file
from torch import multiprocessing

from ..dataset.oracle import build_oracle

DEVICE = "cpu"
LOW_BIT_MATCHED_RATIO = 0.95  # LowBitEvaluator's own default


@dataclass(frozen=True)
class Baseline:
    """What solutions are judged against on one workload, one entry per trial."""

    definition: Definition
    inputs: list[list[Any]]
    outputs: list[list[torch.Tensor]]
    latency_ms: float
    """Mean over the trials."""


class CpuBenchmark(Benchmark):
    """The harness's Benchmark with a CpuRunner; its own constructor insists on a GPU runner."""

    def __init__(self, trace_set: TraceSet, config: BenchmarkConfig) -> None:
        self._trace_set = trace_set
        self._config = config
        self._registry = BuilderRegistry.get_instance()
        self._runner = CpuRunner(config.log_dir)


class CpuRunner(Runner):
    """Evaluates solutions in one worker process, which keeps the last workload's baseline."""

    def __init__(self, log_dir: str) -> None:
        self._log_dir = log_dir
        self._process = None
        self._connection = None
        self._baseline_of: tuple[str, str] | None = None

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
            self._prepare_baseline(definition, workload, config, root)
            evaluations[solution.name] = self._run_solution(solution, config)
        return evaluations

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._connection.close()
        self._process = self._connection = self._baseline_of = None

    def _prepare_baseline(
        self, definition: Definition, workload: Workload, config: BenchmarkConfig, root: Path
    ) -> None:
        if self._process is not None and not self._process.is_alive():
            self.close()
        key = (definition.name, workload.uuid)
        if self._baseline_of == key:
            return
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, worker_end = context.Pipe()
            self._process = context.Process(target=_serve, args=(worker_end,), daemon=True)
            self._process.start()
            worker_end.close()  # so that a dead worker reads as end of file
        self._baseline_of = None
        self._connection.send(("baseline", definition, workload, config, root))
        try:
            error = self._connection.recv()
        except EOFError:
            self.close()
            raise RuntimeError("the worker died in the reference (out of memory?)") from None
        if error is not None:
            raise RuntimeError(error)
        self._baseline_of = key

    def _run_solution(self, solution: Solution, config: BenchmarkConfig) -> Evaluation:
        log_path = str(Path(self._log_dir) / f"{solution.name}_{time.time()}.log")
        self._connection.send(("solution", solution, config, log_path))
        if not self._connection.poll(config.timeout_seconds):
            self.close()
            status, message = (
                EvaluationStatus.TIMEOUT,
                f"no result within {config.timeout_seconds} seconds",
            )
        else:
            try:
                return self._connection.recv()
            except EOFError:
                self._process.join()
                status, message = (
                    EvaluationStatus.RUNTIME_ERROR,
                    f"the worker process died with exit code {self._process.exitcode}",
                )
                self.close()
        return make_eval(status, DEVICE, log_path, extra_msg=message)


def _serve(connection) -> None:
    """The worker process: answers each request until the runner goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    baseline = None
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        if command == "baseline":
            baseline = None  # frees the last workload's inputs before making the next ones
            try:
                baseline = build_baseline(*arguments)
                connection.send(None)
            except Exception as error:
                connection.send(f"{type(error).__name__}: {error}")
        else:
            solution, config, log_path = arguments
            redirect_stdio_to_file(log_path)
            connection.send(evaluate(solution, baseline, config, log_path))


def build_baseline(
    definition: Definition, workload: Workload, config: BenchmarkConfig, root: Path
) -> Baseline:
    """Inputs, outputs and mean time of the reference for `config.num_trials` trials.

    Random inputs are drawn with a seed taken from the workload's UUID: every run checks the same.
    """
    if resolve_evaluator(definition) is SamplingEvaluator:
        raise ValueError(f"{definition.name}: sampling definitions are only evaluated on CUDA")
    reference = _reference(definition)
    loaded = load_safetensors(definition, workload, root)
    torch.manual_seed(zlib.crc32(workload.uuid.encode()))
    inputs, outputs, latencies = [], [], []
    for _ in range(config.num_trials):
        inputs.append(gen_inputs(definition, workload, DEVICE, loaded))
        result, latency_ms = _time(reference, lambda: inputs[-1], config)
        outputs.append(normalize_result(definition, result, DEVICE))
        latencies.append(latency_ms)
    return Baseline(definition, inputs, outputs, sum(latencies) / len(latencies))


def evaluate(
    solution: Solution, baseline: Baseline, config: BenchmarkConfig, log_path: str
) -> Evaluation:
    """Build and run one solution, and decide as the harness's evaluators do."""
    definition = baseline.definition
    try:
        runnable = BuilderRegistry.get_instance().build(definition, solution)
    except BuildError:
        traceback.print_exc()
        return make_eval(EvaluationStatus.COMPILE_ERROR, DEVICE, log_path)
    except Exception:
        traceback.print_exc()
        return make_eval(EvaluationStatus.RUNTIME_ERROR, DEVICE, log_path)
    if config.required_matched_ratio is None and resolve_evaluator(definition) is LowBitEvaluator:
        config = replace(config, required_matched_ratio=LOW_BIT_MATCHED_RATIO)

    max_abs, max_rel, min_matched, enough = 0.0, 0.0, 1.0, True
    latencies = []
    for inputs, expected in zip(baseline.inputs, baseline.outputs, strict=True):
        try:
            outputs, latency_ms = _call(runnable, definition, inputs, config)
        except Exception:
            traceback.print_exc()
            return make_eval(EvaluationStatus.RUNTIME_ERROR, DEVICE, log_path)
        latencies.append(latency_ms)
        for output, reference in zip(outputs, expected, strict=True):
            if output.shape != reference.shape:
                return make_eval(EvaluationStatus.INCORRECT_SHAPE, DEVICE, log_path)
            if output.dtype != reference.dtype:
                return make_eval(EvaluationStatus.INCORRECT_DTYPE, DEVICE, log_path)
            non_finite = _non_finite(output)
            if non_finite is not None:
                return make_eval(
                    EvaluationStatus.INCORRECT_NUMERICAL,
                    DEVICE,
                    log_path,
                    correctness=Correctness(
                        max_relative_error=non_finite, max_absolute_error=non_finite
                    ),
                )
            abs_error, rel_error, exceeds, matched = compute_error_stats(output, reference, config)
            max_abs, max_rel = max(max_abs, abs_error), max(max_rel, rel_error)
            min_matched, enough = min(min_matched, matched), enough and not exceeds

    correctness = Correctness(
        max_relative_error=max_rel,
        max_absolute_error=max_abs,
        extra={"matched_ratio": min_matched},
    )
    if not enough:
        return make_eval(
            EvaluationStatus.INCORRECT_NUMERICAL, DEVICE, log_path, correctness=correctness
        )
    latency_ms = sum(latencies) / len(latencies)
    performance = Performance(
        latency_ms=latency_ms,
        reference_latency_ms=baseline.latency_ms,
        speedup_factor=baseline.latency_ms / latency_ms,
    )
    return make_eval(
        EvaluationStatus.PASSED, DEVICE, log_path, correctness=correctness, performance=performance
    )


def _reference(definition: Definition) -> Callable:
    """The lean oracle where the reference has what it needs, else the reference itself."""
    functions = {
        node.name
        for node in ast.parse(definition.reference).body
        if isinstance(node, ast.FunctionDef)
    }
    if "dequantize_weights" in functions:
        return build_oracle(definition)
    return BuilderRegistry.get_instance().build_reference(definition)


def _call(
    runnable: Callable, definition: Definition, inputs: list[Any], config: BenchmarkConfig
) -> tuple[list[torch.Tensor], float]:
    """The outputs of the last timed call and the mean time in ms.

    Every call gets clones of the inputs: one that changes them must not spoil the next.
    """
    outputs: list[torch.Tensor] = []

    def arguments() -> list[Any]:
        outputs[:] = allocate_outputs(definition, inputs, DEVICE) if is_dps else []
        for output in outputs:
            if output.is_floating_point():
                output.fill_(float("nan"))
        clones = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
        return clones + outputs

    is_dps = runnable.metadata.destination_passing_style
    result, latency_ms = _time(runnable, arguments, config)
    return outputs if is_dps else normalize_result(definition, result, DEVICE), latency_ms


def _time(
    function: Callable, arguments: Callable[[], list[Any]], config: BenchmarkConfig
) -> tuple[Any, float]:
    """The last result of `function(*arguments())` and the mean time of its timed calls in ms."""
    seconds = 0.0
    with torch.no_grad():
        for call in range(config.warmup_runs + config.iterations):
            values = arguments()
            start = time.perf_counter()
            result = function(*values)
            if call >= config.warmup_runs:
                seconds += time.perf_counter() - start
    return result, seconds / config.iterations * 1e3


def _non_finite(output: torch.Tensor) -> float | None:
    """Infinity or NaN if `output` has any, looking for them in the harness's order."""
    if torch.isinf(output).any():
        return float("inf")
    return float("nan") if torch.isnan(output).any() else None
