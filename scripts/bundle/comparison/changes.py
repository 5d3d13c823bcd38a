"""Before and after: the same solutions on the same workloads and hardware, from two runs."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import geometric_mean

from ..sheets import BEST, DIM, FAILED, Entry, Heading, Sheet
from .compatibility import ABSENT, ComparisonError
from .sections import timing
from .spread import ASSUMED_SPREAD, Measured
from .table import workload_name
from .traces import NOTES, TraceRecord

FASTER, SLOWER, NOISE = "faster", "slower", "noise"
BROKEN, MENDED, FAILING = "broken", "mended", "failing"

Key = tuple[str, str, str, str]  # definition, hardware, solution, uuid of the workload


@dataclass(frozen=True)
class Change:
    """One solution on one workload; a side that did not pass is None."""

    definition: str
    hardware: str
    solution: str
    workload: str
    uuid: str
    before: Measured | None
    after: Measured | None
    verdict: str

    @property
    def ratio(self) -> float | None:
        """after / before: above 1 is slower."""
        return self.after.mean_us / self.before.mean_us if self.before and self.after else None


@dataclass(frozen=True)
class Changes:
    """All that both sides have, and what only one has."""

    changes: list[Change]
    notes: list[str]

    def failures(self, slower_by: float) -> list[str]:
        """What is slower by more than this share beyond its spread, or has ceased to pass."""
        found = []
        for change in self.changes:
            name = f"{change.solution}, {change.workload} on {change.hardware}"
            if change.verdict == BROKEN:
                found.append(f"{name}: passed before, fails now")
            elif change.verdict == SLOWER and change.ratio and change.ratio > 1 + slower_by:
                found.append(f"{name}: {100 * (change.ratio - 1):+.1f} %")
        return found


def chosen(
    records: Sequence[TraceRecord], definition: str | None, solutions: Sequence[str] | None
) -> list[TraceRecord]:
    """Those of a definition and of some solutions, where they are given."""
    return [
        record
        for record in records
        if definition in (None, record.definition)
        and (not solutions or record.solution in solutions)
    ]


def compare_sides(before: Sequence[TraceRecord], after: Sequence[TraceRecord]) -> Changes:
    """Raises ComparisonError if nothing can be compared."""
    old, new = _by_key(before), _by_key(after)
    common = [key for key in old if key in new]
    if not common:
        raise ComparisonError(
            "before and after have no solution on the same workload and hardware; "
            f"before: {_described(before)}; after: {_described(after)}"
        )
    ways = {timing(record) for key in common for record in (*old[key], *new[key])}
    if len(ways) > 1:
        raise ComparisonError(f"before and after are timed differently: {', '.join(sorted(ways))}")
    changes = []
    for key in common:
        workload = new[key][0].workload
        earlier, later = (Measured.of([r.latency_us for r in side[key]]) for side in (old, new))
        name = workload_name(dict(workload.axes))
        changes.append(Change(*key[:3], name, key[3], earlier, later, verdict(earlier, later)))
    changes.sort(key=lambda change: (change.definition, change.hardware, change.solution))
    notes = _differences(old, new, common)
    if missing := len(old.keys() - new.keys()):
        notes.append(f"{missing} result(s) of before have no counterpart in after.")
    if added := len(new.keys() - old.keys()):
        notes.append(f"{added} result(s) of after have no counterpart in before.")
    if any(side and side.runs == 1 for each in changes for side in (each.before, each.after)):
        notes.append(
            f"?: one run, whose spread is unknown; {ASSUMED_SPREAD:.0%} is assumed. Run each side "
            "several times, into before/1, before/2, ..., to know it."
        )
    return Changes(changes, notes)


def verdict(before: Measured | None, after: Measured | None) -> str:
    """A change counts if the runs of the two sides do not overlap."""
    if before is None or after is None:
        return FAILING if before is after else MENDED if before is None else BROKEN
    if after.least_us > before.most_us:
        return SLOWER
    return FASTER if after.most_us < before.least_us else NOISE


def _by_key(records: Sequence[TraceRecord]) -> dict[Key, list[TraceRecord]]:
    found: dict[Key, list[TraceRecord]] = defaultdict(list)
    order = sorted(records, key=lambda record: sorted(record.workload.axes.items()))
    for record in order:
        hardware = record.environment["hardware"]
        uuid = record.workload.uuid
        found[record.definition, hardware, record.solution, uuid].append(record)
    return found


def _described(records: Sequence[TraceRecord]) -> str:
    solutions = sorted({record.solution for record in records})
    hardware = sorted({record.environment["hardware"] for record in records})
    return f"{', '.join(solutions)} on {', '.join(hardware)}"


def _differences(
    old: dict[Key, list[TraceRecord]], new: dict[Key, list[TraceRecord]], common: Sequence[Key]
) -> list[str]:
    """What else has changed than the solutions: libraries, driver, harness, clocks, commit."""

    def values(side: dict[Key, list[TraceRecord]]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for record in (record for key in common for record in side[key]):
            notes = {name: record.where.libs.get(name) for name in NOTES}
            for name, value in (record.environment | notes).items():
                found[name].add(value or ABSENT)
        return found

    before, after = values(old), values(new)
    return [
        f"{name}: {', '.join(sorted(before.get(name, {ABSENT})))} before, "
        f"{', '.join(sorted(after.get(name, {ABSENT})))} after."
        for name in dict.fromkeys([*before, *after])
        if before.get(name, {ABSENT}) != after.get(name, {ABSENT})
    ]


def change_sheets(changes: Changes) -> list[Sheet]:
    """A table of the workloads for each definition and GPU, and the means of each solution."""
    styles = {FASTER: BEST, SLOWER: FAILED, BROKEN: FAILED, FAILING: DIM, NOISE: DIM, MENDED: BEST}
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes.changes:
        groups[change.definition, change.hardware].append(change)
    sheets = []
    for (definition, hardware), group in groups.items():
        rows: list[list[Entry]] = []
        breaks, above = set(), ""
        for change in group:
            if change.solution != above:
                breaks.add(len(rows))
            sides = [each.text if each else "failed" for each in (change.before, change.after)]
            rows.append(
                [
                    Entry(change.solution if change.solution != above else ""),
                    Entry(change.workload),
                    *map(Entry, sides),
                    Entry(percent(change.ratio)),
                    Entry(change.verdict, styles[change.verdict]),
                ]
            )
            above = change.solution
        headings = [Heading("solution", left=True), Heading("workload"), Heading("before, us")]
        headings += [Heading("after, us"), Heading("change"), Heading("verdict", left=True)]
        title = f"{definition} on {hardware}"
        sheets.append(Sheet(title, headings, rows, frozenset(breaks - {0})))
        sheets.append(_means(group))
    return sheets


def changes_csv(changes: Changes) -> str:
    """One line per solution and workload; absent figures are empty."""
    out = io.StringIO()
    sides = [f"{side}_{field.name}" for side in ("before", "after") for field in fields(Measured)]
    names = ["definition", "hardware", "solution", "workload", "uuid", "verdict", "ratio", *sides]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for change in changes.changes:
        line = {name: getattr(change, name) for name in names[:7]}
        for side, measured in (("before", change.before), ("after", change.after)):
            values = asdict(measured) if measured else {}
            line |= {f"{side}_{name}": value for name, value in values.items()}
        writer.writerow(line)
    return out.getvalue()


def _means(group: Sequence[Change]) -> Sheet:
    """Per solution the geometric mean of the changes, and how many have which verdict."""
    verdicts = (FASTER, NOISE, SLOWER, BROKEN, MENDED, FAILING)
    seen = [name for name in verdicts if any(change.verdict == name for change in group)]
    rows = []
    for solution in dict.fromkeys(change.solution for change in group):
        own = [change for change in group if change.solution == solution]
        ratios = [change.ratio for change in own if change.ratio is not None]
        counts = [sum(change.verdict == name for change in own) for name in seen]
        mean = geometric_mean(ratios) if ratios else None
        rows.append([Entry(text) for text in (solution, percent(mean), *map(str, counts))])
    headings = [Heading("solution", left=True), Heading("mean change"), *map(Heading, seen)]
    return Sheet("Geometric mean change of latency", headings, rows)


def percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"
