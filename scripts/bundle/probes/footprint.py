"""What a solution costs besides its calls' time, first call and memory: rows and table."""

from __future__ import annotations

from ..sheets import FAILED, Entry, Heading, Sheet, number
from .store import Report, Row

MIB = 1 << 20


class FootprintRow(Row):
    """One solution's first call with one workload, in a process of its own."""

    identity = ("solution", "uuid")
    solution: str
    uuid: str
    """Of the workload."""
    workload: str
    seq_len: int
    first_call_s: float
    """Until its result is there. That of the process's first workload includes importing the
    solution and its libraries, and compiling its kernels with empty caches."""
    again_s: float | None = None
    """The same in another process, the caches on the disk as the first has left them; None for
    workloads that are not the process's first."""
    peak_bytes: int
    """The most that PyTorch's allocator held during the call, beyond arguments and output."""
    kept_bytes: int
    """What it held of that after the call: workspaces, for the next calls."""
    others_bytes: int
    """Taken from the GPU during the call, but not by PyTorch's allocator: code, libraries' own."""


class FootprintReport(Report[FootprintRow]):
    kind = "footprint"
    script = "footprint.py"
    row_types = (FootprintRow,)


def footprint_sheets(report: FootprintReport) -> list[Sheet]:
    """One table, the solutions in the order of the run."""
    headings = [
        Heading("solution", left=True),
        Heading("workload", left=True),
        Heading("caches empty", "first call, s"),
        Heading("new process", "first call, s"),
        Heading("peak", "memory, MiB"),
        Heading("kept", "memory, MiB"),
        Heading("not PyTorch's", "memory, MiB"),
    ]
    rows = [
        [
            Entry(row.solution),
            Entry(row.workload),
            Entry(number(row.first_call_s, ",.2f")),
            Entry(number(row.again_s, ",.2f")),
            Entry(mib(row.peak_bytes)),
            Entry(mib(row.kept_bytes)),
            Entry(mib(row.others_bytes)),
        ]
        for row in report.rows
    ]
    blank = Entry("")
    for failed in report.failed:
        solution, uuid = map(str, failed.key)
        rows.append([Entry(solution), Entry(uuid), Entry(failed.reason, FAILED), *[blank] * 4])
    return [Sheet("First call and memory beyond arguments and output", headings, rows)]


def mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= MIB or not size else f"{size / MIB:.2f}"
