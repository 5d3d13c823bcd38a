"""Traces as flashinfer-bench writes them, made with its own models."""

from pathlib import Path

from bundle.dataset.workload_table import DEFINITION, Row, read_table
from bundle.paths import ROOT
from flashinfer_bench.data import (
    Correctness,
    Environment,
    Evaluation,
    EvaluationStatus,
    Performance,
    RandomInput,
    ScalarInput,
    Trace,
    Workload,
    append_jsonl_file,
)

ROWS = read_table(ROOT)
H200 = "NVIDIA H200"
H100 = "NVIDIA H100 80GB HBM3"
LIBS = {"torch": "2.13.0+cu130", "triton": "3.6.0", "cuda": "13.0"}
REFERENCE_MS = 13.0


def make_trace(
    solution: str,
    latency_us: float = 100.0,
    *,
    row: Row = ROWS[0],
    status: str = "PASSED",
    hardware: str = H200,
    libs: dict[str, str] = LIBS,
    timestamp: str = "2026-11-20T13:00:00.123456",
    matched_ratio: float | str | None = 0.93,
    max_error: float = 2048.0,
    workload: Workload | None = None,
    definition: str = DEFINITION,
) -> Trace:
    """A trace of a replica of `row`, or of `workload`; failures carry what the harness records."""
    status = EvaluationStatus(status)
    correctness = performance = None
    if status in (EvaluationStatus.PASSED, EvaluationStatus.INCORRECT_NUMERICAL):
        extra = None if matched_ratio is None else {"matched_ratio": matched_ratio}
        correctness = Correctness(
            max_relative_error=max_error, max_absolute_error=max_error, extra=extra
        )
    if status is EvaluationStatus.PASSED:
        speedup = REFERENCE_MS / (latency_us / 1e3) if latency_us else 0.0
        performance = Performance(
            latency_ms=latency_us / 1e3, reference_latency_ms=REFERENCE_MS, speedup_factor=speedup
        )
    evaluation = Evaluation(
        status=status,
        environment=Environment(hardware=hardware, libs=libs),
        timestamp=timestamp,
        log="stdout and stderr of the run",
        correctness=correctness,
        performance=performance,
    )
    return Trace(
        definition=definition,
        workload=workload or moe_workload(row),
        solution=solution,
        evaluation=evaluation,
    )


def moe_workload(row: Row, uuid: str | None = None) -> Workload:
    return Workload(
        axes={"seq_len": row.seq_len},
        inputs={
            "hidden_states": RandomInput(),
            "local_expert_offset": ScalarInput(value=row.local_expert_offset),
            "routed_scaling_factor": ScalarInput(value=row.routed_scaling_factor),
        },
        uuid=uuid or row.uuid,
    )


def all_rows(solution: str, factor: float = 1.0, **details) -> list[Trace]:
    """One trace per workload of the table, 100 us + 1 us per token, times `factor`."""
    return [make_trace(solution, factor * (100 + row.seq_len), row=row, **details) for row in ROWS]


def write_traces(root: Path, traces: list[Trace], author: str | None = None) -> Path:
    """Append to the trace files below `root`, in the layout of 0.1.x or, with an author, newer."""
    for trace in traces:
        op_type = trace.definition.split("_")[0]
        folder = root / "traces" / (author or "") / op_type
        append_jsonl_file([trace], folder / f"{trace.definition}.jsonl")
    return root / "traces"
