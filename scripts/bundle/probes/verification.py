"""Whether solutions can be trusted: a report's rows and table. runs/verification.py finds it."""

from __future__ import annotations

from pydantic import Field

from ..sheets import FAILED, Entry, Heading, Sheet, number_entry
from .store import Report, Row


class VerificationRow(Row):
    """A solution with which nothing was wrong on one workload; what was is a failed row."""

    identity = ("solution", "uuid")
    solution: str
    uuid: str
    """Of the workload."""
    workload: str
    """Its name."""
    calls: int
    """Checked, each after another change of the inputs."""
    inputs: list[str] = Field(default_factory=list)
    """Those that were changed in turn."""
    matched_ratio: float
    """The least share of elements within the tolerances."""
    seen_us: float
    """Of a call, by the clock of the process that verifies."""
    claimed_us: float
    """Of a call, by the clock of the solution's process."""
    seconds: float
    """That the verification took, compiling included."""


class VerificationReport(Report[VerificationRow]):
    kind = "verification"
    script = "verify.py"
    row_types = (VerificationRow,)


def verification_sheets(report: VerificationReport) -> list[Sheet]:
    """The verdict on each solution and workload, what was found first."""
    headings = [
        Heading("solution", left=True),
        Heading("workload", left=True),
        Heading("verdict", left=True),
        Heading("calls checked"),
        Heading("matched"),
        Heading("seen", "us per call"),
        Heading("claimed", "us per call"),
        Heading("took, s"),
    ]
    nothing = Entry("")
    names = {row.uuid: row.workload for row in report.rows}
    rows = []
    for failed in report.failed:
        solution, uuid = map(str, failed.key)
        found = [Entry(solution), Entry(names.get(uuid, uuid)), Entry(failed.reason, FAILED)]
        rows.append(found + [nothing] * 5)
    rows += [
        [
            Entry(row.solution),
            Entry(row.workload),
            Entry("nothing found"),
            Entry(str(row.calls)),
            number_entry(row.matched_ratio, ".4f"),
            number_entry(row.seen_us, ".1f"),
            number_entry(row.claimed_us, ".1f"),
            number_entry(row.seconds, ".1f"),
        ]
        for row in sorted(report.rows, key=lambda row: (row.solution, row.workload, row.uuid))
    ]
    return [Sheet("Verification: inputs changed in turn, clocks, processes", headings, rows)]
