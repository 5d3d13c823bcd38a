"""The numbers of a comparison: solutions against each other on the workloads of one definition.

No rendering here; see render.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from ..dataset.workload_table import DEFINITION, table_path
from ..trace_model import PASSED
from .compatibility import (
    ABSENT,
    ComparisonError,
    by_environment,
    recorded,
    refuse_mixture,
    workload_sets,
)
from .floor import REGIMES, Gpu, MoeGeometry, Rates, Routing, regime_of
from .routings import load_routings
from .spread import Measured
from .table import (
    COMMON,
    MISSING,
    Accuracy,
    Cell,
    Column,
    Comparison,
    Provenance,
    Record,
    Row,
    Scope,
)
from .traces import BUNDLE, KERNELS, Environment, TraceRecord, scalars_of


def nothing_known(hardware: str) -> Gpu | None:  # noqa: ARG001
    """No floors."""
    return None


def compare(
    records: Sequence[TraceRecord],
    *,
    root: Path,
    definition: str | None = None,
    solutions: Sequence[str] | None = None,
    baseline: str | None = None,
    mix: bool = False,
    rates: Rates = nothing_known,
    skipped_lines: int = 0,
) -> list[Comparison]:
    """Compare the solutions of each definition in `records`, sorted by definition.

    root: the bundle, for the table of what the MoE workloads' routing does.
    definition, solutions: take only these (solutions also gives the order of the columns).
    baseline: solution, or column label where environments are mixed, to which ratios are taken.
    mix: accept several GPUs, library or harness versions (one column per solution and
        environment) and several sets of workloads.
    rates: what each GPU reaches, for the floors.
    skipped_lines: how many lines of the files could not be read, to be told in the report.
    Raises ComparisonError for unknown names and for what only `mix` would accept.
    """
    by_definition: dict[str, list[TraceRecord]] = defaultdict(list)
    for record in records:
        by_definition[record.definition].append(record)
    names = sorted(by_definition)
    if definition is not None:
        if definition not in by_definition:
            raise ComparisonError(
                f"no trace of definition {definition}; there are: {', '.join(names)}"
            )
        names = [definition]
    if solutions:
        available = {record.solution for name in names for record in by_definition[name]}
        if unknown := [name for name in solutions if name not in available]:
            raise ComparisonError(
                f"no trace of solution {', '.join(unknown)}; "
                f"there are: {', '.join(sorted(available))}"
            )
    compared = []
    for name in names:
        chosen = [r for r in by_definition[name] if not solutions or r.solution in solutions]
        if chosen:
            compared.append(
                _compare_one(name, chosen, root, solutions, baseline, mix, rates, skipped_lines)
            )
    return compared


def _compare_one(
    definition: str,
    records: list[TraceRecord],
    root: Path,
    solutions: Sequence[str] | None,
    baseline: str | None,
    mix: bool,
    rates: Rates,
    skipped_lines: int,
) -> Comparison:
    geometry = MoeGeometry.of_definition(definition)
    notes = []
    routings = load_routings(root) if definition == DEFINITION else {}

    environments = by_environment(records)
    differing = {
        name: by_value
        for name, by_value in environments.items()
        if len(recorded(name, by_value)) > 1
    }
    sets = workload_sets(records, routings)
    if not mix:
        refuse_mixture(definition, differing | ({"workloads": sets} if len(sets) > 1 else {}))
    elif len(sets) > 1:
        notes.append(f"Mixed sets of workloads: {'; '.join(sets)}.")
    hardware = sorted(environments["hardware"])
    how = sorted({record.note(KERNELS) for record in records} - {ABSENT})
    simulated = bool(how)
    notes += [f"{kernels}: their times here mean nothing, and nobody is first." for kernels in how]

    latest = _latest(records, list(differing))
    pairs = {(record.solution, record.emulated) for record in latest.values() if record.emulated}
    if pairs:
        names = ", ".join(
            f"{solution} ({architecture})" for solution, architecture in sorted(pairs)
        )
        notes.append(f"Emulated, not run on a GPU: {names}.")
    runs = _runs(records, list(differing), latest)
    columns = _columns(latest, list(differing), solutions)
    if baseline is not None:
        baseline = _find_baseline(baseline, definition, list(columns.values()))
    floors, floor_notes = _floors(geometry, hardware, nothing_known if simulated else rates)
    notes += [] if simulated else floor_notes

    workloads = {}
    cells: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (variant, uuid), record in latest.items():
        workloads[uuid] = record.workload
        cells[uuid][columns[variant].label] = _cell(record, runs[variant, uuid])
    rows = []
    for uuid, workload in workloads.items():
        routing = routings.get(uuid)
        seq_len = workload.axes.get("seq_len")
        complete = {
            column.label: _with_floor(
                cells[uuid].get(column.label, Cell(MISSING)),
                floors[column.environment["hardware"]],
                routing,
            )
            for column in columns.values()
        }
        rows.append(
            Row(
                uuid=uuid,
                label={},
                axes=dict(workload.axes),
                scalars=scalars_of(workload),
                routing=routing,
                regime=regime_of(seq_len) if geometry and seq_len is not None else None,
                cells=_untimed(complete) if simulated else _judged(complete, baseline),
            )
        )
    rows = _labelled(rows)
    if any(floors.values()) and (without := sum(row.routing is None for row in rows)):
        notes.append(f"No floor for {without} workload(s) that are not in {table_path(root).name}.")

    labels = [column.label for column in columns.values()]
    times = sorted(record.timestamp for record in latest.values())
    return Comparison(
        definition=definition,
        baseline=baseline,
        provenance=Provenance(
            environment={name: sorted(values) for name, values in environments.items()},
            first=times[0].isoformat(timespec="seconds"),
            last=times[-1].isoformat(timespec="seconds"),
            traces=len(latest),
            superseded=len(records) - len(latest),
            skipped_lines=skipped_lines,
        ),
        columns=list(columns.values()),
        rows=rows,
        scopes=_scopes(rows, labels),
        records={label: Record.of([row.cells[label] for row in rows]) for label in labels},
        notes=notes,
        simulated=simulated,
    )


def _latest(
    records: Iterable[TraceRecord], differing: Sequence[str]
) -> dict[tuple[tuple[str, ...], str], TraceRecord]:
    """The latest record of each variant (see _Variants) and workload."""
    latest: dict[tuple[tuple[str, ...], str], TraceRecord] = {}
    variants = _Variants(differing)
    for record in records:
        key = variants[record.solution, record.where], record.workload.uuid
        if key not in latest or record.timestamp >= latest[key].timestamp:
            latest[key] = record
    return latest


def _runs(
    records: Iterable[TraceRecord],
    differing: Sequence[str],
    latest: dict[tuple[tuple[str, ...], str], TraceRecord],
) -> dict[tuple[tuple[str, ...], str], list[TraceRecord]]:
    """All records of each variant and workload that were made by the latest one's commit."""
    runs: dict[tuple[tuple[str, ...], str], list[TraceRecord]] = defaultdict(list)
    variants = _Variants(differing)
    for record in records:
        key = variants[record.solution, record.where], record.workload.uuid
        if record.note(BUNDLE) == latest[key].note(BUNDLE):
            runs[key].append(record)
    return runs


class _Variants(dict[tuple[str, Environment], tuple[str, ...]]):
    """Of what ran where: solution, emulated architecture (empty if none), values of the differing
    environment."""

    def __init__(self, differing: Sequence[str]) -> None:
        self.differing = differing

    def __missing__(self, key: tuple[str, Environment]) -> tuple[str, ...]:
        solution, where = key
        values = (where.facts.get(name, ABSENT) for name in self.differing)
        self[key] = solution, where.emulated or "", *values
        return self[key]


def _columns(
    latest: dict[tuple[tuple[str, ...], str], TraceRecord],
    differing: Sequence[str],
    solutions: Sequence[str] | None,
) -> dict[tuple[str, ...], Column]:
    """One column per variant, in the order of `solutions` or else by rank.

    First is what passed most workloads, and of those, what has the least geometric mean latency.
    """
    variants: dict[tuple[str, ...], TraceRecord] = {}
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (variant, _), record in latest.items():
        variants[variant] = record
        if record.latency_ms is not None:
            times[variant].append(record.latency_ms)
    given = {name: position for position, name in enumerate(solutions or ())}

    def rank(variant: tuple[str, ...]) -> tuple:
        own = times[variant]
        return given.get(variant[0], 0), -len(own), geometric_mean(own) if own else 0.0, variant

    architectures: dict[str, set[str]] = defaultdict(set)
    for solution, emulated, *_ in variants:
        architectures[solution].add(emulated)
    columns = {}
    for variant in sorted(variants, key=rank):
        solution, emulated, *values = variant
        facets = [f"{emulated} emulated"] if emulated and len(architectures[solution]) > 1 else []
        facets += [
            value if name == "hardware" else f"{name} {value}"
            for name, value in zip(differing, values, strict=True)
        ]
        label = f"{solution} @ {', '.join(facets)}" if facets else solution
        columns[variant] = Column(label, solution, variants[variant].environment)
    return columns


def _find_baseline(name: str, definition: str, columns: list[Column]) -> str:
    """The label of the column that `name` means."""
    matches = [column.label for column in columns if name in (column.label, column.solution)]
    if len(matches) == 1:
        return matches[0]
    problem = "matches several columns" if matches else "is not among the solutions"
    available = ", ".join(matches or [column.label for column in columns])
    raise ComparisonError(f"{definition}: baseline {name} {problem}: {available}")


# Cells -----------------------------------------------------------------------------------------


def _cell(record: TraceRecord, runs: Sequence[TraceRecord]) -> Cell:
    """What the trace itself says, and the runs that it is the latest of."""
    cell = Cell(
        status=record.status,
        timestamp=record.timestamp.isoformat(),
        source=f"{record.path}:{record.line}",
    )
    absolute, relative = record.max_absolute_error, record.max_relative_error
    if absolute is not None and relative is not None:
        cell = replace(cell, accuracy=Accuracy(record.matched_ratio, absolute, relative))
    latency, reference = record.latency_ms, record.reference_ms
    if latency is not None and reference is not None:
        cell = replace(
            cell,
            latency_us=record.latency_us,
            reference_us=reference * 1e3 or None,
            speedup=reference / latency or None,
            spread=Measured.of([run.latency_us for run in runs if run.passed]),
        )
    return cell


def _floors(
    geometry: MoeGeometry | None, hardware: list[str], rates: Rates
) -> tuple[dict[str, Callable[[Routing], float] | None], list[str]]:
    """Per hardware name the floor in us of a routing, None if unknown; and notes on them."""
    floors: dict[str, Callable[[Routing], float] | None] = dict.fromkeys(hardware)
    notes: list[str] = []
    if geometry is None:
        return floors, notes
    for name in hardware:
        gpu = rates(name)
        if gpu is None:
            notes.append(
                f"No roofline floor: the rates of {name} are not known here. Measure them there "
                "with `python scripts/roofline.py`, or give --bandwidth-tbs and --fp8-tflops."
            )
            continue
        notes.append(
            f"Floor on {name}: {gpu.bandwidth_tbs:g} TB/s, {gpu.fp8_tflops:g} TFLOP/s "
            f"dense FP8 ({gpu.source})."
        )
        floors[name] = _floor_function(geometry, gpu)
    return floors, notes


def _floor_function(geometry: MoeGeometry, gpu: Gpu) -> Callable[[Routing], float]:
    return lambda routing: geometry.floor_us(gpu, routing.active_experts, routing.pairs)


def _with_floor(
    cell: Cell, floor: Callable[[Routing], float] | None, routing: Routing | None
) -> Cell:
    if floor is None or routing is None:
        return cell
    floor_us = floor(routing)
    if cell.latency_us is None:
        return replace(cell, floor_us=floor_us)
    return replace(
        cell,
        floor_us=floor_us,
        over_floor_us=cell.latency_us - floor_us,
        floor_ratio=cell.latency_us / floor_us,
    )


def _judged(cells: dict[str, Cell], baseline: str | None) -> dict[str, Cell]:
    """The cells of a row with their ratio to the baseline and the fastest marked."""
    latencies = [cell.latency_us for cell in cells.values() if cell.latency_us is not None]
    fastest = min(latencies, default=None)
    against = cells[baseline].latency_us if baseline else None
    return {
        label: cell
        if cell.latency_us is None
        else replace(
            cell,
            winner=len(cells) > 1 and cell.latency_us == fastest,
            clear=_is_clear(cell, [other for other in cells.values() if other is not cell]),
            baseline_ratio=cell.latency_us / against if against else None,
        )
        for label, cell in cells.items()
    }


def _untimed(cells: dict[str, Cell]) -> dict[str, Cell]:
    """The cells of a row of simulated kernels: no speed-up, no winner."""
    return {label: replace(cell, speedup=None, spread=None) for label, cell in cells.items()}


def _is_clear(cell: Cell, others: Sequence[Cell]) -> bool:
    """Whether all runs of the cell are faster than all of the others; False without another."""
    spreads = [other.spread for other in others if other.spread]
    return (
        cell.spread is not None
        and bool(others)
        and all(cell.spread.most_us < spread.least_us for spread in spreads)
    )


def _labelled(rows: list[Row]) -> list[Row]:
    """Name and sort the rows: by seq_len if they have one, then the other axes and scalars.

    A scalar input is part of the name if it is an integer (an offset, a window) or varies; the
    start of the uuid is if all that leaves two rows alike.
    """
    axes = list(dict.fromkeys(name for row in rows for name in row.axes))
    axes.sort(key=lambda name: name != "seq_len")
    scalars = [
        name
        for name in dict.fromkeys(name for row in rows for name in row.scalars)
        if len({row.scalars.get(name) for row in rows}) > 1
        or all(type(row.scalars.get(name)) is int for row in rows)
    ]
    names = [(name, "axes") for name in axes] + [(name, "scalars") for name in scalars]
    labelled = [
        replace(row, label={name: getattr(row, kind).get(name) for name, kind in names})
        for row in rows
    ]
    if len({tuple(row.label.values()) for row in labelled}) < len(labelled):
        labelled = [replace(row, label={**row.label, "uuid": row.uuid[:8]}) for row in labelled]
    labelled.sort(
        key=lambda row: [*((value is None, value or 0) for value in row.label.values()), row.uuid]
    )
    return labelled


def _scopes(rows: list[Row], labels: list[str]) -> list[Scope]:
    """All workloads, each regime that has some, and the common ones where a cell is lacking."""
    scopes = [Scope.of("all", rows, labels)]
    for regime, *_ in REGIMES:
        if inside := [row for row in rows if row.regime == regime]:
            scopes.append(Scope.of(regime, inside, labels))
    passing = [label for label in labels if scopes[0].scores[label].passed]
    if any(scopes[0].scores[label].passed < len(rows) for label in passing):
        common = [
            row for row in rows if all(row.cells[label].status == PASSED for label in passing)
        ]
        if common:
            scopes.append(Scope.of(COMMON, common, passing))
    return scopes
