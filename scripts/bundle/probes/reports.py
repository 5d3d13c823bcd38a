"""The data behind the reports: what was measured on which machine, one file per kind and machine.

docs/data/<kind>-<hardware>.json holds one run of a script. Rows keep measured values only; ratios,
shares and percentages are worked out when they are shown (report_tables.py).
"""

from __future__ import annotations

import re
from functools import cached_property
from math import prod
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import ValidationError

from ..comparison.floor import GPUS, Gpu
from ..files import write_whole
from ..machine import Model, Provenance
from ..paths import ROOT, BadInput

DATA = ROOT / "docs" / "data"


class Row(Model):
    """One measurement, or why there is none. Subclasses name the fields that identify it."""

    identity: ClassVar[tuple[str, ...]]
    error: str | None = None

    @property
    def key(self) -> tuple:
        return tuple(getattr(self, name) for name in self.identity)


class Report(Model):
    """A run's rows; subclasses give `kind` and the type of `rows`."""

    kind: ClassVar[str]
    script: ClassVar[str]
    provenance: Provenance
    planned: int
    """Rows of the whole run; more than there are if it was interrupted."""
    rows: list[Row] = []

    @property
    def missing(self) -> int:
        return max(0, self.planned - len(self.rows))


# Stage by stage --------------------------------------------------------------------------------


class KernelTime(Model):
    """All launches of one kernel in one call of a solution."""

    name: str
    stage: str
    launches: float
    us: float
    """Median over the calls of the time in which no earlier kernel was still running."""


class StageRow(Row):
    """One solution on one workload; times in microseconds, medians."""

    identity = ("solution", "workload")
    solution: str
    workload: str
    """Its name: T=58."""
    seq_len: int
    active_experts: int
    pairs: int
    end_to_end_us: float | None = None
    """By CUDA events around the call, host launch time included, cold L2."""
    stages: dict[str, float] = {}
    """By stage; stages in one kernel are one entry, joined by ` + `."""
    kernels: list[KernelTime] = []

    @property
    def sum_us(self) -> float:
        return sum(self.stages.values())

    @property
    def gap_us(self) -> float:
        """Time in which no kernel ran: launch latency and host work."""
        return self.end_to_end_us - self.sum_us


class StageReport(Report):
    kind = "stages"
    script = "stages.py"
    rows: list[StageRow] = []


# Whole layer -----------------------------------------------------------------------------------


class LayerRow(Row):
    """One solution on one workload; times in microseconds."""

    identity = ("solution", "uuid")
    solution: str
    uuid: str
    """Of the workload."""
    workload: str
    """Its name: T=58, or uniform T=128."""
    routing: str
    """What the tokens do: `workload`, or one of cases.ROUTINGS."""
    seq_len: int
    active_experts: int = 0
    pairs: int = 0
    largest_load: int = 0
    """Rows of the local expert that has most."""
    relative_error: float | None = None
    """L2, of some tokens, against the reference."""
    cold_us: float | None = None
    """Median with a cold L2 cache, launches hidden."""
    spread_us: float | None = None
    """Of those, between the quartiles."""
    hidden: bool = True
    """False for a solution that waits for the GPU: its times contain the host's work."""
    sustained_us: float | None = None
    """Mean of calls without pause."""
    sm_mhz: float | None = None
    watts: float | None = None
    """Meanwhile."""
    graph_us: float | None = None
    """Median of a CUDA graph's replays, cold L2 cache."""
    not_captured: str | None = None
    """Why there is none."""
    first_launch_us: float | None = None
    """Of the host until the first kernel is launched, on an idle GPU, under the profiler."""
    return_us: float | None = None
    """Of the host until the call returns, on an idle GPU."""


class LayerReport(Report):
    kind = "layer"
    script = "layer.py"
    rows: list[LayerRow] = []


# Grouped GEMM ----------------------------------------------------------------------------------


class GemmRow(Row):
    """One kernel on one grouped GEMM: rows_per_expert[e] x K times K x N for each expert e."""

    identity = ("kernel", "case")
    kernel: str
    case: str
    """E=4 m=64 N=4096 K=7168 in the sweep; GEMM1 T=58 or GEMM2 T=58 for a real layer."""
    rows_per_expert: list[int]
    n: int
    k: int
    us: float | None = None
    """Median, cold L2, without the host's launch time."""
    relative_error: float | None = None
    """L2 norm of the error over that of the fp32 result, on some rows of the largest expert."""

    @property
    def is_sweep(self) -> bool:
        return self.case.startswith("E=")

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


class GemmReport(Report):
    kind = "gemm"
    script = "gemm.py"
    rows: list[GemmRow] = []


# Precision -------------------------------------------------------------------------------------


class Errors(Model):
    """Distance of a result from a reference, both taken as real numbers."""

    cosine: float
    relative_l2: float
    max_absolute: float
    max_relative: float
    matched: dict[str, float]
    """Share of elements within either tolerance, by `atol / rtol`."""


class PrecisionRow(Row):
    """One result against one reference, or two solutions' outputs against each other."""

    identity = ("solution", "workload", "stage", "against")
    solution: str
    """Also a grouped GEMM kernel, or the fp8 model itself."""
    workload: str
    stage: str
    against: str
    errors: Errors | None = None
    differing: float | None = None
    """Share of elements whose bits (after requantisation: e4m3 codes) differ."""
    block: int | None = None
    """Columns that share a scale after requantisation in the model; 0: it does not requantise."""


class PrecisionReport(Report):
    kind = "precision"
    script = "precision.py"
    rows: list[PrecisionRow] = []


# Roofline --------------------------------------------------------------------------------------


class RateRow(Row):
    """One measured rate of the GPU."""

    identity = ("name",)
    name: str
    us: float | None = None
    bytes: int = 0
    flop: int = 0

    @property
    def tbs(self) -> float:
        """1e12 bytes per second."""
        return self.bytes / self.us / 1e6

    @property
    def tflops(self) -> float:
        """1e12 FLOP per second."""
        return self.flop / self.us / 1e6


class RooflineReport(Report):
    kind = "roofline"
    script = "roofline.py"
    rows: list[RateRow] = []

    @cached_property
    def bandwidth_tbs(self) -> float:
        """The best rate of reading."""
        return max(row.tbs for row in self.rows if row.us and row.bytes)

    @cached_property
    def fp8_tflops(self) -> float:
        return max(row.tflops for row in self.rows if row.us and row.flop)

    @property
    def is_complete(self) -> bool:
        """A bandwidth and an FP8 rate are there."""
        measured = [row for row in self.rows if row.us]
        return any(row.bytes for row in measured) and any(row.flop for row in measured)


KINDS = (LayerReport, StageReport, GemmReport, PrecisionReport, RooflineReport)
AnyReport = TypeVar("AnyReport", bound=Report)


# Files -----------------------------------------------------------------------------------------


def report_path(folder: Path, kind: type[Report], hardware: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    return folder / f"{kind.kind}-{slug}.json"


def save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, report.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def load(kind: type[AnyReport], path: Path) -> AnyReport:
    """Read one file; BadInput names the file and the first key that is wrong."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: {key or kind.kind}: {first['msg']}") from None


def load_all(kind: type[AnyReport], folder: Path) -> list[AnyReport]:
    """The reports of one kind, of all machines."""
    return [load(kind, path) for path in sorted(folder.glob(f"{kind.kind}-*.json"))]


def resumed(report: AnyReport, path: Path) -> AnyReport:
    """`report` with the rows that `path` has, failed ones left out.

    Raises BadInput if those were measured in another environment: one table, one machine.
    """
    if not path.exists():
        return report
    old = load(type(report), path)
    ours, theirs = report.provenance.environment, old.provenance.environment
    if differing := sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    ):
        found = [f"{name} {theirs.get(name)} (here {ours.get(name)})" for name in differing]
        raise BadInput(f"{path}: cannot be resumed here: measured with {', '.join(found)}")
    provenance = old.provenance.model_copy(update={"command": report.provenance.command})
    rows = [row for row in old.rows if row.error is None]
    return report.model_copy(update={"provenance": provenance, "rows": rows})


def rates(folder: Path, hardware: str) -> Gpu | None:
    """The GPU's bandwidth and FP8 rate: measured here if there is a report, else those known."""
    path = report_path(folder, RooflineReport, hardware)
    if path.exists() and (report := load(RooflineReport, path)).is_complete:
        source = f"measured on {report.provenance.finished:%Y-%m-%d} by scripts/roofline.py"
        return Gpu(round(report.bandwidth_tbs, 2), round(report.fp8_tflops), source)
    return GPUS.get(hardware)
