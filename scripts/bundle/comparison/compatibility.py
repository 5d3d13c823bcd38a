"""Which traces may stand in one table: environments, sets of workloads, refusal of mixtures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from ..hardware import UNKNOWN
from ..paths import BadInput
from .floor import Routing
from .traces import DRIVER, HARNESS, LAYOUT_0_1, Environment, TraceRecord

ABSENT = "absent"  # the value of what a trace's environment does not name
RELEASES_0_1 = ("0.1.0", "0.1.1", "0.1.2")  # those that LAYOUT_0_1 stands for


class ComparisonError(BadInput):
    """The traces cannot be compared as asked; the message names what differs or lacks."""


def recorded(name: str, values: Iterable[str]) -> list[str]:
    """The values of hardware, harness, driver or a library that say something: a library may be
    absent, but a driver is only not named, as in the harness's own traces."""
    values = list(values)
    silent = {UNKNOWN, ABSENT} if name == DRIVER else {UNKNOWN}
    if name == HARNESS and any(value.startswith(RELEASES_0_1) for value in values):
        silent.add(LAYOUT_0_1)  # older traces of the same releases
    return [value for value in values if value not in silent]


def by_environment(records: Iterable[TraceRecord]) -> dict[str, dict[str, list[TraceRecord]]]:
    """For hardware, harness, driver and each library: the records by value, ABSENT included."""
    by_place: dict[Environment, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_place[record.where].append(record)
    names = dict.fromkeys(name for where in by_place for name in where.facts)
    by_value: dict[str, dict[str, list[TraceRecord]]] = {name: defaultdict(list) for name in names}
    for where, own in by_place.items():
        for name in names:
            by_value[name][where.facts.get(name, ABSENT)] += own
    return by_value


def workload_sets(
    records: Sequence[TraceRecord], routings: dict[str, Routing]
) -> dict[str, list[TraceRecord]]:
    """The records by set of workloads, each set under a description.

    Official workloads and replicas are never one set. Else solutions that share a workload were
    measured on one set, and so were those that share the official set, however little of it.
    """

    def kind(record: TraceRecord) -> str | None:
        routing = routings.get(record.workload.uuid)
        return routing.workload_set if routing else None

    by_kind: dict[str | None, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_kind[kind(record)].append(record)
    mixed = len(by_kind.keys() - {None}) > 1
    described = {}
    for group in by_kind.values() if mixed else _connected(records, kind):
        uuids = {record.workload.uuid for record in group}
        kinds = {kind(record) for record in group} - {None}
        name = kinds.pop() if kinds else f"workloads such as {min(uuids)}"
        described[f"{len(uuids)} {name}"] = group
    return described


def _connected(
    records: Iterable[TraceRecord], kind: Callable[[TraceRecord], str | None]
) -> list[list[TraceRecord]]:
    """The records by groups of solutions that share workloads, or kinds of them."""
    by_solution: dict[str, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_solution[record.solution].append(record)
    connected: list[tuple[set[str], list[TraceRecord]]] = []
    for group in by_solution.values():
        links = {record.workload.uuid for record in group}
        links |= {kind(record) for record in group} - {None}
        apart, joined = [], group
        for other_links, other_group in connected:
            if links & other_links:
                links, joined = links | other_links, other_group + joined
            else:
                apart.append((other_links, other_group))
        connected = [*apart, (links, joined)]
    return [group for _, group in connected]


def refuse_mixture(definition: str, mixtures: dict[str, dict[str, list[TraceRecord]]]) -> None:
    """Raise ComparisonError with all that differs, and in which files, if anything does."""
    lines = []
    for name, by_value in mixtures.items():
        lines.append(f"  {name}:")
        for value, records in by_value.items():
            lines.append(f"    {value}: {len(records)} trace(s), in")
            first = {record.path: record for record in reversed(records)}
            lines += [f"      {path}, line {record.line}" for path, record in first.items()]
    if lines:
        raise ComparisonError(
            f"{definition}: these traces do not compare (--mix compares them nevertheless):\n"
            + "\n".join(lines)
        )
