"""How far results are off: a report's rows and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ..sheets import BEST, Entry, Heading, Sheet
from .numerics import Errors
from .store import Report, Row

BITS = "bits"  # the stage of a BitsRow


class Compared(Row):
    """One result against another on one workload."""

    identity = ("solution", "uuid", "stage", "against")
    solution: str
    """Also a grouped GEMM kernel, or the fp8 model itself."""
    uuid: str
    """Of the workload."""
    workload: str
    """Its name: T=58."""
    stage: str
    against: str


class PrecisionRow(Compared):
    """A result against a reference."""

    errors: Errors
    differing: float | None = None
    """Share of e4m3 codes that differ, after requantisation."""
    block: int | None = None
    """Columns that share a scale after requantisation in the model; 0: it does not requantise."""


class BitsRow(Compared):
    """Two solutions' outputs against each other."""

    differing: float
    """Share of elements whose bits differ."""


class PrecisionReport(Report[PrecisionRow | BitsRow]):
    kind = "precision"
    script = "precision.py"
    row_types = (PrecisionRow, BitsRow)


def precision_sheets(report: PrecisionReport) -> list[Sheet]:
    """Outputs against fp32 and the fp64 models, errors by stage, outputs bit by bit."""
    rows = [row for row in report.rows if isinstance(row, PrecisionRow)]
    bits = [row for row in report.rows if isinstance(row, BitsRow)]
    probe = [row.workload for row in rows if row.workload.endswith("probe")][:1]
    outputs = [row for row in rows if row.stage == "output" and row.workload not in probe]
    stages = [row for row in rows if row.workload in probe]
    stages.sort(key=lambda row: _STAGE_ORDER[row.stage])
    sheets = []
    for against in dict.fromkeys(row.against for row in outputs):
        chosen = [row for row in outputs if row.against == against]
        sheets.append(_error_sheet(f"Output against {against}", "workload", chosen))
    if of_fp32 := [row for row in outputs if row.against == "fp32"]:
        sheets.append(_matched_sheet(of_fp32))
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
    lines: list[list[Entry]] = []
    breaks: set[int] = set()
    last = None
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


def _bits_sheet(rows: Sequence[BitsRow]) -> Sheet:
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
