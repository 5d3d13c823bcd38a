"""Sheets of the reports: what the terminal, Markdown and the page show of the stored rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import geometric_mean, median

from ..comparison.figures import COMMON, MISSING, PASSED, Comparison, compare
from ..comparison.floor import Gpu
from ..comparison.render import Metric
from ..comparison.traces import TraceRecord
from ..paths import ROOT, BadInput
from ..sheets import BEST, DIM, FAILED, Entry, Heading, Sheet, number
from .reports import (
    GemmReport,
    GemmRow,
    PrecisionReport,
    PrecisionRow,
    RooflineReport,
    StageReport,
    StageRow,
)
from .stages import OTHER, comparable_us

# The usual baselines: SGLang's path and its kernel.
STAGE_BASELINE, GEMM_BASELINE = "sglang_fp8_blockwise_moe", "sgl_grouped_mm"
SAME = 0.03  # a difference below the spread of repeated runs


def pick_baseline(wanted: str | None, usual: str, names: Iterable[str]) -> str:
    """The baseline asked for, else the usual one, else the first by name."""
    known = sorted(set(names))
    if wanted is not None and wanted not in known:
        raise BadInput(f"--baseline: expected one of {', '.join(known)}; got {wanted}")
    return wanted or (usual if usual in known else known[0])


def verdict(ratio: float | None) -> str:
    """A time relative to the baseline's, in a word."""
    if ratio is None:
        return ""
    if abs(ratio - 1) <= SAME:
        return "same"
    return f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x slower"


# Stages ----------------------------------------------------------------------------------------


def stage_sheets(report: StageReport, baseline: str | None = None) -> list[Sheet]:
    """A sheet per workload, and one of the kernels that no rule knows."""
    rows = [row for row in report.rows if row.error is None]
    if not rows:
        return []
    baseline = pick_baseline(baseline, STAGE_BASELINE, (row.solution for row in rows))
    by_workload: dict[str, list[StageRow]] = defaultdict(list)
    for row in rows:
        by_workload[row.workload].append(row)
    sheets = [_stage_sheet(group, baseline) for group in by_workload.values()]
    unknown = [
        [Entry(row.solution), Entry(row.workload), number_entry(kernel.us), Entry(kernel.name[:90])]
        for row in rows
        for kernel in row.kernels
        if kernel.stage == OTHER
    ]
    if unknown:
        headings = [Heading("solution", left=True), Heading("workload", left=True), Heading("us")]
        headings.append(Heading("kernel", left=True))
        sheets.append(Sheet("Kernels that no stage claims (other)", headings, unknown, detail=True))
    return sheets


def number_entry(value: float | None, pattern: str = ",.1f", style: str = "") -> Entry:
    return Entry(number(value, pattern), style)


def _stage_sheet(rows: Sequence[StageRow], baseline: str) -> Sheet:
    against = next((row for row in rows if row.solution == baseline), None)
    headings = [
        Heading("solution", left=True),
        Heading("stage", left=True),
        Heading("us"),
        Heading("share"),
        Heading("ratio"),
        Heading("verdict", left=True),
    ]
    lines, breaks = [], set()
    for row in rows:
        breaks.add(len(lines))
        compared = [
            (name, us, against and comparable_us(name, against.stages))
            for name, us in row.stages.items()
        ]
        compared += [
            ("gap", row.gap_us, None),
            ("end to end", row.end_to_end_us, against and against.end_to_end_us),
        ]
        for i, (name, us, base) in enumerate(compared):
            ratio = us / base if base and row is not against else None
            total = name == "end to end"
            lines.append(
                [
                    Entry(row.solution if i == 0 else ""),
                    Entry(name),
                    number_entry(us),
                    Entry("" if total else f"{us / row.end_to_end_us:.0%}", DIM),
                    Entry("" if ratio is None else f"{ratio:.3f}"),
                    Entry(("baseline" if row is against else verdict(ratio)) if total else ""),
                ]
            )
    first = rows[0]
    title = f"{first.workload}: {first.pairs:,} pairs on {first.active_experts} local experts"
    return Sheet(f"{title}; ratio to {baseline}", headings, lines, frozenset(breaks - {0}))


# Grouped GEMM ----------------------------------------------------------------------------------


def gemm_floor_us(row: GemmRow, gpu: Gpu) -> float:
    """The least time: weights read once at full bandwidth, or all products at the FP8 rate."""
    reading = row.weight_bytes / (gpu.bandwidth_tbs * 1e6)
    return max(reading, row.flop / (gpu.fp8_tflops * 1e6))


def gemm_figures(row: GemmRow, gpu: Gpu | None) -> dict[str, float]:
    """TFLOP/s, GB/s and, where the GPU's rates are known, percent of the floor."""
    figures = {"tflops": row.flop / row.us / 1e6, "gbs": row.bytes / row.us / 1e3}
    if gpu:
        figures["percent"] = 100 * gemm_floor_us(row, gpu) / row.us
    return figures


def gemm_ratios(rows: Sequence[GemmRow], baseline: str) -> dict[tuple[str, str], float]:
    """Time relative to the baseline's, by (kernel, case)."""
    base = {row.case: row.us for row in rows if row.kernel == baseline}
    return {(r.kernel, r.case): r.us / base[r.case] for r in rows if r.case in base}


def gemm_sheets(report: GemmReport, baseline: str | None, gpu: Gpu | None) -> list[Sheet]:
    """Summary, patterns by m, the real layers: both GEMMs together, one by one; the sweep."""
    rows = [row for row in report.rows if row.error is None]
    if not rows:
        return []
    baseline = pick_baseline(baseline, GEMM_BASELINE, (row.kernel for row in rows))
    ratios = gemm_ratios(rows, baseline)
    sweep = [row for row in rows if row.is_sweep]
    layers = [row for row in rows if not row.is_sweep]
    sheets = []
    if sweep:
        sheets.append(_spread_sheet(sweep, ratios, gpu, baseline, lambda _: "all", "sweep"))
        sheets.append(
            _spread_sheet(
                sweep, ratios, gpu, baseline, lambda r: f"m = {max(r.rows_per_expert)}", "by m"
            )
        )
    if layers:
        sheets.append(_layer_sheet(layers, gpu))
        sheets.append(_case_sheet("The layers' own GEMMs", layers, ratios, gpu, baseline))
    if sweep:
        sheet = _case_sheet("Sweep", sweep, ratios, gpu, baseline)
        sheets.append(Sheet(sheet.title, sheet.headings, sheet.rows, sheet.breaks, detail=True))
    return sheets


def _spread_sheet(
    rows: Sequence[GemmRow],
    ratios: dict[tuple[str, str], float],
    gpu: Gpu | None,
    baseline: str,
    group_of: Callable[[GemmRow], str],
    name: str,
) -> Sheet:
    """Minimum, median and maximum over the cases of each group and kernel."""
    groups: dict[tuple[str, str], list[GemmRow]] = defaultdict(list)
    for row in rows:
        groups[group_of(row), row.kernel].append(row)
    spread = ("min", "median", "max")
    headings = [Heading("cases", left=True), Heading("kernel", left=True), Heading("n")]
    headings += [Heading(each, "TFLOP/s") for each in spread]
    if gpu:
        headings += [Heading(each, "% of floor") for each in spread]
    headings += [Heading(each, "ratio") for each in spread]
    lines, breaks, last = [], set(), None
    for (group, kernel), members in groups.items():
        if group != last:
            breaks.add(len(lines))
        figures = [gemm_figures(row, gpu) for row in members]
        entries = [Entry(group if group != last else ""), Entry(kernel), Entry(f"{len(members)}")]
        last = group
        columns = [("tflops", ",.0f"), *([("percent", ".0f")] if gpu else [])]
        for key, pattern in columns:
            values = [each[key] for each in figures]
            entries += [Entry(f"{f(values):{pattern}}") for f in (min, median, max)]
        values = [ratios[row.kernel, row.case] for row in members if (kernel, row.case) in ratios]
        entries += [Entry(f"{f(values):.2f}" if values else "-") for f in (min, median, max)]
        lines.append(entries)
    title = f"Grouped GEMM, {name}: ratio = time / time of {baseline}, below 1 is faster"
    return Sheet(title, headings, lines, frozenset(breaks - {0}))


def _layer_sheet(rows: Sequence[GemmRow], gpu: Gpu | None) -> Sheet:
    """GEMM1 + GEMM2 of each workload and kernel; the fastest of a workload is marked."""
    names = list(dict.fromkeys(row.kernel for row in rows))
    layers: dict[str, dict[str, list[GemmRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        layers[row.workload][row.kernel].append(row)
    headings = [Heading("workload", left=True), *([Heading("floor")] if gpu else [])]
    lines = []
    for workload, of_kernel in layers.items():
        # a kernel that lacks one of the two has no sum
        both = {name: of_kernel[name] for name in names if len(of_kernel[name]) == 2}
        us = {name: sum(row.us for row in pair) for name, pair in both.items()}
        entries = [Entry(workload)]
        if gpu:
            pair = next(iter(both.values()), None)
            entries.append(number_entry(pair and sum(gemm_floor_us(row, gpu) for row in pair)))
        for name in names:
            best = name in us and us[name] == min(us.values())
            entries.append(number_entry(us.get(name), style=BEST if best else ""))
        lines.append(entries)
    headings += [Heading(name) for name in names]
    return Sheet("GEMM1 + GEMM2 of the layers, us", headings, lines)


def _case_sheet(
    title: str,
    rows: Sequence[GemmRow],
    ratios: dict[tuple[str, str], float],
    gpu: Gpu | None,
    baseline: str,
) -> Sheet:
    """Every case and kernel; the fastest of a case is marked."""
    headings = [Heading("case", left=True), Heading("kernel", left=True)]
    names = ["us", "TFLOP/s", "GB/s", *(["% of floor"] if gpu else []), "ratio", "rel. error"]
    headings += [Heading(name) for name in names]
    fastest: dict[str, float] = {}
    for row in rows:
        fastest[row.case] = min(row.us, fastest.get(row.case, row.us))
    lines, breaks, last = [], set(), None
    for row in rows:
        if row.case != last:
            breaks.add(len(lines))
        figures = gemm_figures(row, gpu)
        entries = [Entry(row.case if row.case != last else ""), Entry(row.kernel)]
        entries.append(number_entry(row.us, style=BEST if row.us == fastest[row.case] else ""))
        entries += [Entry(f"{figures['tflops']:,.0f}"), Entry(f"{figures['gbs']:,.0f}")]
        entries += [Entry(f"{figures['percent']:.0f}")] if gpu else []
        ratio = ratios.get((row.kernel, row.case))
        entries += [number_entry(ratio, ".3f"), number_entry(row.relative_error, ".1e")]
        lines.append(entries)
        last = row.case
    return Sheet(f"{title} (ratio to {baseline})", headings, lines, frozenset(breaks - {0}))


# Precision -------------------------------------------------------------------------------------


def precision_sheets(report: PrecisionReport) -> list[Sheet]:
    """Outputs against fp32 and the fp64 models, errors by stage, outputs bit by bit."""
    rows = [row for row in report.rows if row.error is None]
    probe = [row.workload for row in rows if row.workload.endswith("probe")][:1]
    outputs = [row for row in rows if row.stage == "output" and row.workload not in probe]
    stages = [row for row in rows if row.workload in probe and row.stage != "bits"]
    stages.sort(key=lambda row: _STAGE_ORDER[row.stage])
    bits = [row for row in rows if row.stage == "bits"]
    sheets = []
    for against in dict.fromkeys(row.against for row in outputs):
        chosen = [row for row in outputs if row.against == against]
        sheets.append(_error_sheet(f"Output against {against}", "workload", chosen))
    if against := [row for row in outputs if row.against == "fp32"]:
        sheets.append(_matched_sheet(against))
    for against in dict.fromkeys(row.against for row in stages):
        chosen = [row for row in stages if row.against == against]
        title = f"Stage by stage against {against} ({probe[0]}: one local expert per token)"
        sheets.append(_error_sheet(title, "stage", chosen))
    if bits:
        sheets.append(_bits_sheet(bits))
    return sheets


def _grouped(
    rows: Sequence[PrecisionRow], by: str, cells: Callable[[PrecisionRow], list[Entry]]
) -> tuple[list[list[Entry]], frozenset[int]]:
    """Lines that begin with the group, where it is new, and the breaks between groups."""
    lines, breaks, last = [], set(), None
    for row in rows:
        group = getattr(row, by)
        if last is not None and group != last:
            breaks.add(len(lines))
        lines.append([Entry(group if group != last else ""), Entry(row.solution), *cells(row)])
        last = group
    return lines, frozenset(breaks)


def _error_sheet(title: str, by: str, rows: Sequence[PrecisionRow]) -> Sheet:
    """Distances from one reference."""
    columns: list[tuple[str, Callable[[PrecisionRow], str]]] = [
        ("1 - cosine", lambda row: f"{1 - row.errors.cosine:.1e}"),
        ("rel. L2", lambda row: f"{row.errors.relative_l2:.1e}"),
        ("max abs.", lambda row: f"{row.errors.max_absolute:.1e}"),
        ("max rel.", lambda row: f"{row.errors.max_relative:.1e}"),
    ]
    if any(row.differing is not None for row in rows):
        columns.append(
            ("codes off", lambda row: "-" if row.differing is None else f"{row.differing:.2%}")
        )
    if any(row.block is not None for row in rows):
        columns.append(("block", lambda row: {None: "", 0: "none"}.get(row.block, f"{row.block}")))
    lines, breaks = _grouped(rows, by, lambda row: [Entry(get(row)) for _, get in columns])
    headings = [Heading(by, left=True), Heading("solution", left=True)]
    return Sheet(title, [*headings, *(Heading(name) for name, _ in columns)], lines, breaks)


def _matched_sheet(rows: Sequence[PrecisionRow]) -> Sheet:
    tolerances = [*rows[0].errors.matched]
    lines, breaks = _grouped(
        rows, "workload", lambda row: [Entry(f"{row.errors.matched[t]:.4f}") for t in tolerances]
    )
    headings = [Heading("workload", left=True), Heading("solution", left=True)]
    headings += [Heading(tolerance, "matched at atol / rtol") for tolerance in tolerances]
    return Sheet("Share of matched elements, against fp32", headings, lines, breaks)


_STAGE_ORDER = {"GEMM1": 0, "requantised": 1, "output": 2}  # of the pipeline


def _bits_sheet(rows: Sequence[PrecisionRow]) -> Sheet:
    headings = [Heading("one", left=True), Heading("other", left=True), Heading("workloads")]
    headings += [Heading("bit-equal"), Heading("most elements that differ")]
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        pairs[row.solution, row.against].append(row.differing)
    lines = []
    for (one, other), shares in pairs.items():
        equal = sum(share == 0 for share in shares)
        style = BEST if equal == len(shares) else ""
        counts = [Entry(f"{len(shares)}"), Entry(f"{equal}", style)]
        lines.append([Entry(one), Entry(other), *counts, Entry(f"{max(shares):.2%}")])
    return Sheet("Outputs bit by bit", headings, lines)


# Roofline --------------------------------------------------------------------------------------


def roofline_sheets(report: RooflineReport, records: Sequence[TraceRecord] = ()) -> list[Sheet]:
    """The measured rates, then percent of the floor that each solution's traces reach."""
    lines = [
        [
            Entry(row.name),
            number_entry(row.us),
            Entry(f"{row.tbs:.2f} TB/s" if row.bytes else f"{row.tflops:,.0f} TFLOP/s"),
        ]
        for row in report.rows
        if row.us
    ]
    headings = [Heading("rate", left=True), Heading("us"), Heading("reached")]
    sheets = [Sheet(f"What the {report.provenance.hardware} reaches", headings, lines)]
    own = [r for r in records if r.environment["hardware"] == report.provenance.hardware]
    if own and report.is_complete:
        gpu = Gpu(report.bandwidth_tbs, report.fp8_tflops, source="measured")
        for comparison in compare(own, root=ROOT, mix=True, gpu=gpu):
            if sheet := percent_sheet(comparison):
                sheets.append(sheet)
    return sheets


def percent_of_floor(comparison: Comparison) -> dict[str, list[float | None]]:
    """100 * floor / latency of each column, for each row; None where either is not there."""
    return {
        column.label: [
            100 / cell.floor_ratio if (cell := row.cells[column.label]).floor_ratio else None
            for row in comparison.rows
        ]
        for column in comparison.columns
    }


def percent_sheet(comparison: Comparison) -> Sheet | None:
    """Percent of the floor by workload, geometric means last; None without any floor."""
    percents = percent_of_floor(comparison)
    if not any(value for values in percents.values() for value in values):
        return None
    headings = [Heading(name) for name in ("workload", "floor, us", *percents)]
    lines = []
    for i, row in enumerate(comparison.rows):
        floor = next(iter(row.cells.values())).floor_us
        best = max((values[i] or 0 for values in percents.values()), default=0)
        entries = [Entry(workload_name(row.label)), number_entry(floor)]
        for label, values in percents.items():
            if values[i] is None:
                missing = row.cells[label].status == MISSING
                entries.append(Entry(MISSING if missing else "failed", FAILED))
            else:
                entries.append(Entry(f"{values[i]:.0f}", BEST if values[i] == best else ""))
        lines.append(entries)
    means = [Entry("mean", DIM), Entry("")]
    for values in percents.values():
        there = [value for value in values if value is not None]
        complete = len(there) == len(values)
        means.append(Entry(f"{geometric_mean(there):.0f}" if complete else "-", DIM))
    lines.append(means)
    return Sheet("Percent of the floor reached", headings, lines, frozenset({len(comparison.rows)}))


# Workloads -------------------------------------------------------------------------------------


def metric_sheet(comparison: Comparison, metric: Metric, title: str) -> Sheet:
    """One figure of all solutions on all workloads, the fastest of a row marked."""
    headings = [Heading("workload"), *(Heading(column.label) for column in comparison.columns)]
    lines = []
    for row in comparison.rows:
        entries = [Entry(workload_name(row.label))]
        for column in comparison.columns:
            cell = row.cells[column.label]
            if cell.status == PASSED:
                entries.append(Entry(metric.format(cell), BEST if cell.winner else ""))
            else:
                entries.append(Entry(cell.status, FAILED))
        lines.append(entries)
    return Sheet(title, headings, lines)


def summary_sheet(comparison: Comparison) -> Sheet:
    """Who wins: workloads passed and won, geometric mean speed-ups over all and by regime."""
    headings = [Heading(name, left=name == "solution") for name in ("solution", "passed", "wins")]
    scopes = [scope for scope in comparison.scopes if scope.label != COMMON]
    headings += [Heading(f"speed-up, {scope.label}") for scope in scopes]
    best = {
        scope.label: max((s.speedup_geometric.value or 0 for s in scope.scores.values()), default=0)
        for scope in scopes
    }
    lines = []
    for column in comparison.columns:
        overall = comparison.scopes[0].scores[column.label]
        failed = FAILED if overall.passed < overall.total else ""
        entries = [Entry(column.label), Entry(f"{overall.passed}/{overall.total}", failed)]
        entries.append(Entry(f"{overall.wins}"))
        for scope in scopes:
            mean = scope.scores[column.label].speedup_geometric
            if mean.value is None:
                entries.append(Entry(f"{mean.count} of {mean.total}", FAILED))
            else:
                style = BEST if mean.value == best[scope.label] else ""
                entries.append(Entry(f"{mean.value:,.2f}", style))
        lines.append(entries)
    return Sheet("Geometric mean speed-up versus the reference", headings, lines)


def workload_name(label: dict) -> str:
    """T=58 where seq_len alone tells workloads apart, else all of the label."""
    rest = {k: v for k, v in label.items() if k not in ("seq_len", "local_expert_offset")}
    if "seq_len" in label and not rest:
        return f"T={label['seq_len']}"
    return " ".join(f"{name}={value}" for name, value in label.items())
