"""Every name of flashinfer-bench that is not its documented interface, for 0.1.2 and its main.

The two differ in the configuration (a dataclass; pydantic, resolved per definition), in where logs
go (a folder; nowhere) and in how they time (mean of CUDA events on cloned inputs; median by CUPTI).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.bench.evaluators import LowBitEvaluator, SamplingEvaluator, resolve_evaluator
from flashinfer_bench.bench.evaluators.utils import normalize_result
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
from flashinfer_bench.utils import env_snapshot
from pydantic import ValidationError

__all__ = [
    "Benchmark",
    "BuildError",
    "Runner",
    "env_snapshot",
    "gen_inputs",
    "load_safetensors",
    "normalize_result",
]

LOW_BIT_MATCHED_RATIO = 0.95  # LowBitEvaluator's own default, in both versions
# 0.1.2: after a worker's restart, the other solutions of that workload are given the dead worker's
# baseline. The failure is not theirs. main has mended it.
DEAD_BASELINE = "Unexpected error: Baseline handle not found"


@dataclass(frozen=True)
class Settings:
    """How one definition is evaluated: the harness's configuration with every default filled in.

    The names are those that the harness's `compute_error_stats` reads.
    """

    warmup_runs: int
    iterations: int
    num_trials: int
    rtol: float
    atol: float
    required_matched_ratio: float | None
    timeout_seconds: int


@dataclass(frozen=True)
class ErrorStats:
    """One output against the expected one."""

    max_absolute: float
    max_relative: float
    matched_ratio: float
    """Share of elements within either tolerance."""
    enough: bool
    """Whether that share is the required one."""


def harness_version() -> str:
    """Of the installed package; `flashinfer_bench.__version__` is 0.0.0.dev0 in every version."""
    return version("flashinfer-bench")


def make_config(**values: Any) -> BenchmarkConfig:
    """Raises ValueError, on one line, for a value that the harness refuses."""
    try:
        return BenchmarkConfig(**values)
    except ValidationError as error:  # main's is a pydantic model
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def settings_for(config: BenchmarkConfig, definition: Definition) -> Settings:
    """Raises ValueError for a definition that the harness evaluates by sampling, on CUDA only."""
    evaluator = resolve_evaluator(definition)
    if evaluator is SamplingEvaluator:
        raise ValueError(f"{definition.name}: sampling definitions are only evaluated on CUDA")
    resolved = config
    if hasattr(config, "resolve_eval_config"):  # main
        resolved = config.resolve_eval_config(definition)
    ratio = resolved.required_matched_ratio
    if ratio is None and evaluator is LowBitEvaluator:
        ratio = LOW_BIT_MATCHED_RATIO
    return Settings(
        warmup_runs=resolved.warmup_runs,
        iterations=resolved.iterations,
        num_trials=resolved.num_trials,
        rtol=resolved.rtol,
        atol=resolved.atol,
        required_matched_ratio=ratio,
        timeout_seconds=config.timeout_seconds,
    )


def error_stats(output: torch.Tensor, expected: torch.Tensor, settings: Settings) -> ErrorStats:
    """As the harness's evaluators compute them."""
    absolute, relative, exceeds, matched = compute_error_stats(output, expected, settings)
    return ErrorStats(absolute, relative, matched, not exceeds)


def output_specs(
    definition: Definition, inputs: Sequence[Any]
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each output for these inputs."""
    shapes = definition.get_output_shapes(definition.get_axes_values_from_inputs(inputs))
    return [
        (name, dtype, tuple(shape or ()))
        for name, dtype, shape in zip(
            definition.outputs, definition.torch_output_dtypes, shapes, strict=True
        )
    ]


def load_builders() -> None:
    """Import what building takes, and look for a GPU.

    A fork of this process can no longer use CUDA; and one of the harness's libraries (tvm_ffi)
    handles SIGSEGV from here on.
    """
    BuilderRegistry.get_instance()


def build_solution(definition: Definition, solution: Solution) -> tuple[Callable, bool]:
    """The callable, and whether it takes its outputs; raises BuildError as the harness does."""
    runnable = BuilderRegistry.get_instance().build(definition, solution)
    return runnable, runnable.metadata.destination_passing_style


def build_reference(definition: Definition) -> Callable:
    return BuilderRegistry.get_instance().build_reference(definition)


def evaluation(
    status: EvaluationStatus,
    device: str,
    log: str,
    correctness: Correctness | None = None,
    performance: Performance | None = None,
) -> Evaluation:
    """An evaluation made here and now on `device`."""
    return make_eval(status, device, None, correctness, performance, extra_msg=log or None)


def benchmark_with(runner: Runner, trace_set: TraceSet, config: BenchmarkConfig) -> Benchmark:
    """The harness's Benchmark with another runner; its constructor insists on one of its own."""
    benchmark = Benchmark.__new__(Benchmark)
    benchmark._trace_set = trace_set
    benchmark._config = config
    benchmark._registry = BuilderRegistry.get_instance()
    benchmark._runner = runner
    return benchmark


def is_dead_baseline(result: Evaluation) -> bool:
    """Whether 0.1.2 has blamed a solution for its own dead worker."""
    return result.status is EvaluationStatus.RUNTIME_ERROR and DEAD_BASELINE in result.log


def fresh_inputs(
    definition: Definition, workload: Workload, root: Path, device: str = "cpu"
) -> list[Any]:
    """Inputs in the definition's order: the workload's blobs and scalars, the rest at random."""
    return gen_inputs(definition, workload, device, load_safetensors(definition, workload, root))
