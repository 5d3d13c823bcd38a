"""What somebody asks who chooses a solution, in one table: how fast, with and without the host, how
much memory, how long until the first result, and what has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..comparison.render import matched_ratio
from ..comparison.table import MISSING, Cell, Comparison, Row, workload_name
from ..dataset.manifest import CONFIG_FILE, read_config
from ..paths import ROOT
from ..probes.footprint import FootprintReport, FootprintRow, mib
from ..probes.layer import LayerReport, LayerRow
from ..probes.store import Report
from ..sheets import BEST, FAILED, Entry, Heading, Sheet, markdown_table, number
from ..trace_model import PASSED

NOTE = (
    "harness: latency as flashinfer-bench takes it, with the host's part. GPU: its time alone, "
    "launches hidden (+: waits for the GPU, the host's part is in it). graph: replayed from a CUDA "
    "graph. Memory beyond arguments and output, at most. First call: in a new process until its "
    "result is there, with nothing compiled yet, and with caches. -: not measured, or not possible."
)


def choice_sheet(comparison: Comparison, reports: Mapping[str, Report]) -> Sheet:
    """The solutions by rank; columns of which nothing is known are left out.

    reports: of the same GPU, by kind.
    """
    layer: dict[tuple[str, str], LayerRow] = {
        (row.solution, row.uuid): row for row in getattr(reports.get(LayerReport.kind), "rows", [])
    }
    footprints: dict[str, list[FootprintRow]] = {}
    for footprint in getattr(reports.get(FootprintReport.kind), "rows", []):
        footprints.setdefault(footprint.solution, []).append(footprint)
    ends = _ends(comparison, {uuid for _, uuid in layer})
    headings = [
        Heading("solution", left=True),
        Heading("passed"),
        Heading("matched at least"),
        Heading("first on"),
        Heading("beyond noise"),
        Heading("speed-up"),
    ]
    for row in ends:
        group = f"{workload_name(row.label)}, us"
        headings += [Heading(name, group) for name in ("harness", "GPU", "graph")]
    headings += [Heading("memory, MiB"), Heading("nothing compiled", "first call, s")]
    headings += [Heading("with caches", "first call, s"), Heading("needs", left=True)]
    scores = comparison.scopes[0].scores
    best = max((score.speedup_geometric.value or 0.0 for score in scores.values()), default=0.0)
    lines = []
    for column in comparison.columns:
        name, score = column.solution, scores[column.label]
        mean = score.speedup_geometric.value
        line = [
            Entry(column.label),
            Entry(f"{score.passed}/{score.total}", FAILED if score.passed < score.total else ""),
            matched_ratio(comparison.records[column.label]),
            Entry(f"{score.wins}"),
            Entry(f"{score.clear_wins}"),
            Entry(number(mean, ",.1f"), BEST if mean and mean == best else ""),
        ]
        for row in ends:
            line += _times(row.cells[column.label], row, layer, name)
        line += [*_footprint(footprints.get(name, [])), Entry(needs(name))]
        lines.append(line)
    known = [i for i in range(len(headings)) if any(line[i].text != "-" for line in lines)]
    return Sheet(
        "Which one to take",
        [headings[i] for i in known],
        [[line[i] for i in known] for line in lines],
    )


def choice_markdown(comparison: Comparison, reports: Mapping[str, Report]) -> str:
    """The table and what its figures are, for the README."""
    hardware = ", ".join(comparison.provenance.environment["hardware"])
    table = markdown_table(choice_sheet(comparison, reports))
    notes = " ".join(filter(None, [NOTE, unmeasured(comparison, reports)]))
    return "\n".join([*table, "", f"<sub>{hardware}. {notes}</sub>"])


def unmeasured(comparison: Comparison, reports: Mapping[str, Report]) -> str:
    """What the table lacks on this GPU, and the commands that measure it; empty if nothing."""
    in_layer = {row.uuid for row in getattr(reports.get(LayerReport.kind), "rows", [])}
    missing = []
    if not any(row.uuid in in_layer for row in comparison.rows):
        missing.append(("GPU time and graph", "layer"))
    if not getattr(reports.get(FootprintReport.kind), "rows", []):
        missing.append(("memory and first call", "footprint"))
    if not missing or comparison.simulated:
        return ""
    names = ", ".join(name for name, _ in missing)
    commands = " && ".join(f"python scripts/{script}.py" for _, script in missing)
    return f"Not measured on it yet: {names}; `{commands}` does."


def _ends(comparison: Comparison, in_layer: set[str]) -> list[Row]:
    """The smallest and the largest workload, of those whose GPU times are known if there are."""
    rows = [row for row in comparison.rows if row.uuid in in_layer] or comparison.rows
    return [rows[0], rows[-1]] if len(rows) > 1 else rows


def _times(
    cell: Cell, row: Row, layer: dict[tuple[str, str], LayerRow], solution: str
) -> list[Entry]:
    """In the harness, on the GPU alone, in a graph; the least of each in the row is marked."""
    known = [found for (_, uuid), found in layer.items() if uuid == row.uuid]
    mine = layer.get((solution, row.uuid))
    cold, graph = (mine.cold_us, mine.graph_us) if mine else (None, None)
    least_cold = min((found.cold_us for found in known), default=None)
    least_graph = min((f.graph_us for f in known if f.graph_us is not None), default=None)
    harness = Entry(number(cell.latency_us, ",.1f"), BEST if cell.winner else "")
    if cell.status != PASSED:
        harness = Entry("failed" if cell.status != MISSING else MISSING, FAILED)
    waits = "+" if mine and not mine.hidden else ""
    return [
        harness,
        Entry(number(cold, ",.1f") + waits, BEST if mine and cold == least_cold else ""),
        Entry(number(graph, ",.1f"), BEST if graph is not None and graph == least_graph else ""),
    ]


def _footprint(rows: list[FootprintRow]) -> list[Entry]:
    """The most memory of any workload, and the first call of the process."""
    if not rows:
        return [Entry("-")] * 3
    most = max(row.peak_bytes + row.others_bytes for row in rows)
    first = next((row for row in rows if row.again_s is not None), rows[0])
    again = number(first.again_s, ",.1f")
    return [Entry(mib(most)), Entry(number(first.first_call_s, ",.1f")), Entry(again)]


def needs(solution: str) -> str:
    """The modules of a solution of this bundle."""
    folder = ROOT / "solutions" / solution
    if not (folder / CONFIG_FILE).exists():
        return "-"
    return ", ".join(read_config(folder).requires.modules) or "PyTorch"
