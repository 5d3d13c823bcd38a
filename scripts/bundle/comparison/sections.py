"""Traces of several machines: a section for each set of figures that may stand in one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from packaging.version import InvalidVersion, Version

from ..hardware import UNKNOWN
from .compatibility import ABSENT, ComparisonError, by_environment, recorded
from .figures import compare, nothing_known
from .floor import Rates
from .table import Comparison
from .traces import HARNESS, LAYOUT_0_1, LAYOUT_BY_AUTHOR, TraceRecord

THIS_MACHINE = "Measured on a GPU or CPU of this machine's kind."
EVENTS = "means of CUDA events"
MEDIANS = "medians by CUPTI"
FIRST_WITH_MEDIANS = Version("0.1.3.dev0")


def timing(record: TraceRecord) -> str:
    """How the harness that made a trace measures a GPU: its figures of one kind are not those of
    the other, whatever the solution. UNKNOWN where no harness is named.
    """
    harness = record.environment[HARNESS]
    if harness in (LAYOUT_0_1, LAYOUT_BY_AUTHOR):
        return EVENTS if harness == LAYOUT_0_1 else MEDIANS
    try:
        return MEDIANS if Version(harness) >= FIRST_WITH_MEDIANS else EVENTS
    except InvalidVersion:
        return UNKNOWN


def split(
    records: Sequence[TraceRecord], mix: bool, here: Callable[[], str | None]
) -> list[list[TraceRecord]]:
    """The records of each section; those of the hardware that `here` tells first, then the newest.

    A section has one GPU and, where traces of a GPU differ in anything else that is recorded, one
    harness, driver and version of each library. With `mix` it has one way of timing only.
    """
    if mix:
        return _grouped(records, timing)
    sections = []
    for group in _grouped(records, _hardware):
        environments = by_environment(group)
        differing = [name for name, by in environments.items() if len(recorded(name, by)) > 1]
        sections += _grouped(group, partial(_values, differing))
    if len(sections) == 1:
        return sections
    first = here()
    newest = [max(record.timestamp for record in section) for section in sections]
    order = sorted(
        range(len(sections)),
        key=lambda i: (
            sections[i][0].environment["hardware"] != first,
            -newest[i].timestamp(),
        ),
    )
    return [sections[i] for i in order]


def _hardware(record: TraceRecord) -> str:
    return record.environment["hardware"]


def _values(names: Sequence[str], record: TraceRecord) -> tuple[str, ...]:
    environment = record.environment
    return tuple(environment.get(name, ABSENT) for name in names)


def _grouped(
    records: Sequence[TraceRecord], key: Callable[[TraceRecord], object]
) -> list[list[TraceRecord]]:
    groups: dict[object, list[TraceRecord]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return list(groups.values())


def compare_sections(
    records: Sequence[TraceRecord],
    *,
    root: Path,
    here: Callable[[], str | None] = lambda: None,
    definition: str | None = None,
    solutions: Sequence[str] | None = None,
    baseline: str | None = None,
    mix: bool = False,
    rates: Rates = nothing_known,
    skipped_lines: int = 0,
) -> list[Comparison]:
    """As `compare`, in sections; `here` tells this machine's hardware as traces name it, and is
    asked only if there are several.

    A baseline that a section lacks is left out there, with a note; in all of them, it is an error.
    """
    known = {record.definition for record in records}
    if definition is not None and definition not in known:
        raise ComparisonError(
            f"no trace of definition {definition}; there are: {', '.join(sorted(known))}"
        )
    chosen = [r for r in records if definition is None or r.definition == definition]
    available = {record.solution for record in chosen}
    if unknown := [name for name in solutions or () if name not in available]:
        raise ComparisonError(
            f"no trace of solution {', '.join(unknown)}; there are: {', '.join(sorted(available))}"
        )
    comparisons = []
    sections = split([r for r in chosen if not solutions or r.solution in solutions], mix, here)
    lacking = [baseline and not _has(section, baseline) for section in sections]
    for section, lacks in zip(sections, lacking, strict=True):
        own = {record.solution for record in section}
        left_out = lacks and not all(lacking)
        for comparison in compare(
            section,
            root=root,
            solutions=[name for name in solutions or () if name in own],
            baseline=None if left_out else baseline,
            mix=mix,
            rates=rates,
            skipped_lines=skipped_lines,
        ):
            notes = list(comparison.notes)
            if left_out:
                notes.insert(0, f"No ratios: {baseline} was not measured here.")
            if len(sections) > 1 and not mix and section[0].environment["hardware"] == here():
                notes.insert(0, THIS_MACHINE)
            comparisons.append(replace(comparison, notes=notes))
    return comparisons


def _has(section: Sequence[TraceRecord], baseline: str) -> bool:
    """baseline: a solution, or the label of a column, which begins with one."""
    return baseline.split(" @ ", maxsplit=1)[0] in {record.solution for record in section}
