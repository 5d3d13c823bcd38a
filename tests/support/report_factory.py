"""Reports as the scripts store them, with plausible figures, for tests of what shows them."""

from datetime import datetime, timezone
from functools import cache
from itertools import product

from bundle.dataset.workload_table import DEFINITION
from bundle.machine import Provenance
from bundle.probes.cases import Case, named_cases
from bundle.probes.gemm import GemmReport, GemmRow
from bundle.probes.layer import LayerReport, LayerRow
from bundle.probes.numerics import Errors
from bundle.probes.precision import BitsRow, PrecisionReport, PrecisionRow
from bundle.probes.roofline import RateRow, RooflineReport
from bundle.probes.stage_names import KernelTime
from bundle.probes.stages import StageReport, StageRow
from bundle.probes.store import Failed, Report, report_path, save
from trace_factory import H100, H200, ROWS, make_trace, write_traces

# solution: (floor over time at few and at many tokens, how its stages share the time)
FUSED = {"routing": 0.06, "GEMM1 + SwiGLU + requant + GEMM2": 0.86, "finalize": 0.08}
TRITON = {"routing": 0.06, "GEMM1 + SwiGLU + requant": 0.52, "GEMM2": 0.33, "finalize": 0.09}
SEPARATE = {
    "routing": 0.12, "GEMM1": 0.44, "SwiGLU + requant": 0.08, "GEMM2": 0.24, "finalize": 0.10,
    "other": 0.02,
}  # fmt: skip
SOLUTIONS = {
    "cutedsl_moe_fp8_v1": (0.12, 0.10, SEPARATE),
    "cutedsl_moe_fp8_v2": (0.35, 0.30, SEPARATE),
    "cutedsl_moe_fp8_v3": (0.87, 0.74, FUSED),
    "flashinfer_moe": (0.60, 0.55, SEPARATE),
    "sglang_fp8_blockwise_moe": (0.72, 0.60, SEPARATE),
    "torch_moe": (0.04, 0.09, {"routing": 0.02, "GEMM1": 0.2, "GEMM2": 0.1, "other": 0.68}),
    "triton_fused_moe_v2": (0.70, 0.50, TRITON),
    "triton_fused_moe_v3": (0.80, 0.62, TRITON),
}


@cache
def cases() -> list[tuple[Case, list[int]]]:
    """The 19 workloads and their rows per expert."""
    return [(case, case.loads()) for case in named_cases()]


def floor_us(active: int, pairs: int) -> float:
    return max(active * 44.04e6 / 4.36e6, pairs * 88.1e6 / 1430e6)


def provenance(script: str, hardware: str = H200) -> Provenance:
    return Provenance(
        hardware=hardware,
        driver="580.95.05",
        flashinfer_bench="0.1.2",
        libs={"torch": "2.13.0+cu130", "triton": "3.6.0", "cuda": "13.0"},
        command=f"python scripts/{script}",
        started=datetime(2026, 11, 20, 13, 0, tzinfo=timezone.utc),
        finished=datetime(2026, 11, 20, 13, 1, tzinfo=timezone.utc),
    )


def complete(kind: type[Report], results: list, hardware: str = H200) -> Report:
    """A report with these rows, measured and failed."""
    report = kind(provenance=provenance(kind.script, hardware), planned=len(results))
    report.add(results)
    return report


def traces(hardware: str = H200, slower: float = 1.0, solutions=SOLUTIONS) -> list:
    """Traces of all workloads; flashinfer_moe fails on one and lacks another."""
    made = []
    for number, row in enumerate(ROWS):
        floor = floor_us(row.active_local_experts, row.local_pairs)
        for name in solutions:
            few, many, _ = SOLUTIONS[name]
            latency = (floor / (few if row.seq_len < 100 else many) + 25) * slower
            wrong = name == "flashinfer_moe" and number == 3
            if name == "flashinfer_moe" and number == 5:
                continue
            status = "INCORRECT_NUMERICAL" if wrong else "PASSED"
            made.append(make_trace(name, latency, row=row, status=status, hardware=hardware))
    return made


def layer_report(hardware: str = H200) -> LayerReport:
    """The table's workloads, and one more routing; flashinfer_moe fails on one."""
    results = []
    for routing in ("workload", "all-local"):
        for case, loads in cases():
            active, pairs = sum(load > 0 for load in loads), sum(loads)
            name = case.name if routing == "workload" else f"{routing} {case.name}"
            uuid = case.uuid if routing == "workload" else f"{routing} {case.uuid}"
            for solution, (few, many, _) in SOLUTIONS.items():
                us = floor_us(active, pairs) / (few if case.seq_len < 100 else many)
                if solution == "flashinfer_moe" and case.seq_len == 58:
                    results.append(Failed(key=(solution, uuid), reason="RuntimeError: no tactic"))
                    continue
                waits = solution == "torch_moe"
                row = LayerRow(
                    definition=DEFINITION, commit="0123456789ab", solution=solution, uuid=uuid,
                    workload=name, routing=routing, seq_len=case.seq_len, active_experts=active,
                    pairs=pairs, largest_load=max(loads), relative_error=0.023, cold_us=us,
                    spread_us=us / 100, hidden=not waits, sustained_us=us * 1.1, sm_mhz=1700,
                    watts=650, graph_us=None if waits else us * 1.01,
                    not_captured="it waits" if waits else None, first_launch_us=20, return_us=70,
                )  # fmt: skip
                results.append(row)
    return complete(LayerReport, results, hardware)


def stage_report(hardware: str = H200) -> StageReport:
    rows = []
    for case, loads in cases():
        if case.seq_len not in (58, 901, 14107):
            continue
        active, pairs = sum(load > 0 for load in loads), sum(loads)
        for name, (few, many, shares) in SOLUTIONS.items():
            busy = floor_us(active, pairs) / (few if case.seq_len < 100 else many)
            stages = {stage: busy * share for stage, share in shares.items()}
            kernels = [
                KernelTime(name=f"{stage} kernel", stage=stage, launches=1.0, us=us)
                for stage, us in stages.items()
            ]
            row = StageRow(
                definition=DEFINITION, solution=name, uuid=case.uuid, workload=case.name,
                seq_len=case.seq_len, active_experts=active, pairs=pairs,
                end_to_end_us=busy + 25, stages=stages, kernels=kernels,
            )  # fmt: skip
            rows.append(row)
    return complete(StageReport, rows, hardware)


def gemm_report(hardware: str = H200) -> GemmReport:
    kernels = {"sgl_grouped_mm": 0.75, "sgl_es_grouped_mm": 0.78, "triton_v3_gemm": 0.82}
    shapes = [
        (f"E={e} m={m} N={n} K={k}", None, [m] * e, n, k)
        for e, m, n, k in product((1, 4, 8), (64, 128, 512), *[(2048, 4096, 7168)] * 2)
    ]
    for case, loads in cases():
        shapes.append((f"GEMM1 {case.name}", case.uuid, loads, 4096, 7168))
        shapes.append((f"GEMM2 {case.name}", case.uuid, loads, 7168, 2048))
    rows = []
    for number, (name, uuid, loads, n, k) in enumerate(shapes):
        for kernel, reached in kernels.items():
            row = GemmRow(
                definition=DEFINITION if uuid else None, kernel=kernel, case=name, uuid=uuid,
                rows_per_expert=loads, n=n, k=k, us=1.0, relative_error=1.7e-3,
            )  # fmt: skip
            floor = max(row.weight_bytes / 4.36e6, row.flop / 1430e6)
            us = 2.5 + floor / reached * (1 + 0.1 * ((number * 7 + len(kernel)) % 5))
            rows.append(row.model_copy(update={"us": us}))
    return complete(GemmReport, rows, hardware)


def errors(scale: float) -> Errors:
    matched = {"0.1 / 0.2": 1 - 3 * scale, "1 / 0.3": 1 - 2 * scale}
    matched |= {"0.1 / 0.05": 1 - 12 * scale, "0.01 / 0.01": 1 - 30 * scale}
    return Errors(
        cosine=1 - scale**2, relative_l2=scale, max_absolute=1e4 * scale, max_relative=100 * scale,
        matched=matched,
    )  # fmt: skip


def precision_report(hardware: str = H200) -> PrecisionReport:
    def row(solution: str, workload: str, stage: str, against: str, scale: float, **more):
        return PrecisionRow(
            definition=DEFINITION, solution=solution, uuid=f"uuid of {workload}", workload=workload,
            stage=stage, against=against, errors=errors(scale), **more,
        )  # fmt: skip

    probe, rows = "T=256 probe", []
    for workload in ("T=58", "T=901", probe):
        rows.append(row("fp8 model", workload, "output", "fp32", 0.0229))
        for name in SOLUTIONS:
            off = 1e-6 if name == "torch_moe" else 0.023
            rows.append(row(name, workload, "output", "fp32", off))
            rows.append(row(name, workload, "output", "own fp64 model", 0.003, block=128))
        for kind, differing in (("cutedsl_moe_fp8", 0.0), ("triton_fused_moe", 0.0123)):
            first = 1 if kind == "cutedsl_moe_fp8" else 2
            bits = BitsRow(
                solution=f"{kind}_v{first}", against=f"{kind}_v{first + 1}", stage="bits",
                uuid=f"uuid of {workload}", workload=workload, differing=differing,
            )  # fmt: skip
            rows.append(bits)
    rows.append(row("triton_v3_gemm", probe, "GEMM1", "fp32", 0.0017))
    rows.append(row("fp8 model", probe, "requantised", "fp32", 0.025))
    for name in SOLUTIONS:
        rows.append(row(name, probe, "requantised", "fp32", 0.025))
        rows.append(
            row(name, probe, "requantised", "own fp64 model", 0.004, differing=0.0031, block=128)
        )
    return complete(PrecisionReport, rows, hardware)


def roofline_report(hardware: str = H200) -> RooflineReport:
    rows = [
        RateRow(name="read 4 GiB", us=985.0, bytes=4 << 30),
        RateRow(name="copy 2 GiB", us=1006.0, bytes=4 << 30),
        RateRow(name="dense FP8 16384x4096x7168", us=672.0, flop=2 * 16384 * 4096 * 7168),
        RateRow(name="dense FP8 8192x8192x8192", us=765.0, flop=2 * 8192**3),
    ]
    return complete(RooflineReport, rows, hardware)


def all_reports(hardware: str = H200) -> list[Report]:
    makers = (layer_report, stage_report, gemm_report, precision_report, roofline_report)
    return [make(hardware) for make in makers]


def write_all(root, two_gpus: bool = False):
    """Traces below root/traces and data in root/data; returns both folders."""
    folder = root / "data"
    for report in all_reports():
        save(report, report_path(folder, type(report), H200))
    made = traces()
    if two_gpus:
        made += traces(H100, slower=1.4, solutions=["torch_moe", "triton_fused_moe_v3"])
        save(stage_report(H100), report_path(folder, StageReport, H100))
    return write_traces(root, made), folder
