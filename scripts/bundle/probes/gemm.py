"""Grouped GEMMs alone: a report's rows and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from statistics import median

from ..comparison.floor import Gpu
from ..sheets import BEST, Entry, Heading, Sheet, number_entry
from .baseline import pick_baseline
from .store import Key, Report, Row

USUAL_BASELINE = "sgl_grouped_mm"


class GemmRow(Row):
    """One kernel on one grouped GEMM: rows_per_expert[e] x K times K x N for each expert e."""

    identity = ("kernel", "case", "uuid")
    kernel: str
    case: str
    """E=4 m=64 N=4096 K=7168 in the sweep; GEMM1 T=58 or GEMM2 T=58 for a real layer."""
    uuid: str | None = None
    """Of the real layer's workload."""
    rows_per_expert: list[int]
    n: int
    k: int
    us: float
    """Median, cold L2, without the host's launch time."""
    relative_error: float
    """L2 norm of the error over that of the fp32 result, on some rows of the largest expert."""

    @property
    def is_sweep(self) -> bool:
        return self.uuid is None

    @property
    def problem(self) -> tuple[str, str | None]:
        """What kernels are compared on."""
        return self.case, self.uuid

    @property
    def workload(self) -> str:
        """T=58; of a real layer's GEMM."""
        return self.case.partition(" ")[2]

    @property
    def experts(self) -> int:
        """Experts that have rows."""
        return sum(rows > 0 for rows in self.rows_per_expert)

    @property
    def pairs(self) -> int:
        return sum(self.rows_per_expert)

    @property
    def flop(self) -> int:
        return 2 * prod((self.pairs, self.n, self.k))

    @property
    def weight_bytes(self) -> int:
        return self.experts * self.n * self.k

    @property
    def bytes(self) -> int:
        """fp8 weights and activations once, their fp32 scales, bf16 results."""
        scales = self.weight_bytes // 128**2 + self.pairs * self.k // 128
        return self.weight_bytes + self.pairs * self.k + 4 * scales + 2 * self.pairs * self.n


class GemmReport(Report[GemmRow]):
    kind = "gemm"
    script = "gemm.py"
    row_types = (GemmRow,)


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


Ratios = dict[Key, float]
"""Time relative to the baseline's, by the row's key."""


def gemm_ratios(rows: Sequence[GemmRow], baseline: str) -> Ratios:
    base = {row.problem: row.us for row in rows if row.kernel == baseline}
    return {row.key: row.us / base[row.problem] for row in rows if row.problem in base}


def gemm_sheets(report: GemmReport, baseline: str | None, gpu: Gpu | None) -> list[Sheet]:
    """Summary, patterns by m, the real layers: both GEMMs together, one by one; the sweep."""
    rows = report.rows
    if not rows:
        return []
    baseline = pick_baseline(baseline, USUAL_BASELINE, (row.kernel for row in rows))
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
    ratios: Ratios,
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
    lines: list[list[Entry]] = []
    breaks: set[int] = set()
    last = None
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
        values = [ratios[row.key] for row in members if row.key in ratios]
        entries += [Entry(f"{f(values):.2f}" if values else "-") for f in (min, median, max)]
        lines.append(entries)
    title = f"Grouped GEMM, {name}: ratio = time / time of {baseline}, below 1 is faster"
    return Sheet(title, headings, lines, frozenset(breaks - {0}))


def _layer_sheet(rows: Sequence[GemmRow], gpu: Gpu | None) -> Sheet:
    """GEMM1 + GEMM2 of each workload and kernel; the fastest of a workload is marked."""
    names = list(dict.fromkeys(row.kernel for row in rows))
    layers: dict[str | None, dict[str, list[GemmRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        layers[row.uuid][row.kernel].append(row)
    headings = [Heading("workload", left=True), *([Heading("floor")] if gpu else [])]
    lines = []
    for of_kernel in layers.values():
        # a kernel that lacks one of the two has no sum
        both = {name: of_kernel[name] for name in names if len(of_kernel[name]) == 2}
        us = {name: sum(row.us for row in pair) for name, pair in both.items()}
        entries = [Entry(next(iter(of_kernel.values()))[0].workload)]
        if gpu:
            pair = next(iter(both.values()), None)
            floor = sum(gemm_floor_us(row, gpu) for row in pair) if pair else None
            entries.append(number_entry(floor))
        for name in names:
            best = name in us and us[name] == min(us.values())
            entries.append(number_entry(us.get(name), style=BEST if best else ""))
        lines.append(entries)
    headings += [Heading(name) for name in names]
    return Sheet("GEMM1 + GEMM2 of the layers, us", headings, lines)


def _case_sheet(
    title: str,
    rows: Sequence[GemmRow],
    ratios: Ratios,
    gpu: Gpu | None,
    baseline: str,
) -> Sheet:
    """Every case and kernel; the fastest of a case is marked."""
    headings = [Heading("case", left=True), Heading("kernel", left=True)]
    names = ["us", "TFLOP/s", "GB/s", *(["% of floor"] if gpu else []), "ratio", "rel. error"]
    headings += [Heading(name) for name in names]
    fastest: dict[tuple, float] = {}
    for row in rows:
        fastest[row.problem] = min(row.us, fastest.get(row.problem, row.us))
    lines: list[list[Entry]] = []
    breaks: set[int] = set()
    last = None
    for row in rows:
        if row.case != last:
            breaks.add(len(lines))
        figures = gemm_figures(row, gpu)
        entries = [Entry(row.case if row.case != last else ""), Entry(row.kernel)]
        entries.append(number_entry(row.us, style=BEST if row.us == fastest[row.problem] else ""))
        entries += [Entry(f"{figures['tflops']:,.0f}"), Entry(f"{figures['gbs']:,.0f}")]
        entries += [Entry(f"{figures['percent']:.0f}")] if gpu else []
        ratio = ratios.get(row.key)
        entries += [number_entry(ratio, ".3f"), number_entry(row.relative_error, ".1e")]
        lines.append(entries)
        last = row.case
    return Sheet(f"{title} (ratio to {baseline})", headings, lines, frozenset(breaks - {0}))
