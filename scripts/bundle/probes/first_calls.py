"""The first calls of a solution in a process of its own.

What scripts/footprint.py runs for each solution:

    python -m bundle.probes.first_calls SOLUTION RESULT UUID...

writes a JSON list with an object for each workload, in their order, to the file RESULT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cli import exit_with
from ..runs.requirements import current_device
from .cases import Arguments, named_cases, new_output, solutions_here


def main(arguments: Sequence[str]) -> None:
    name, result, *uuids = arguments
    maker, kept = Arguments("cuda"), 0
    solution, rows = None, []
    for uuid in uuids:
        (case,) = named_cases([uuid])
        values = maker.of(case)
        output = new_output(values)
        torch.cuda.synchronize()
        before = Reading.now()
        start = time.perf_counter()
        if solution is None:
            (solution,) = solutions_here(current_device(), [name])
        returned = solution(values, output)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        after = Reading.now()
        new_bytes = 0 if returned is output else returned.nbytes
        memory = taken(before, after, kept, new_bytes)
        kept = memory["kept_bytes"]
        rows.append({"uuid": case.uuid, "first_call_s": seconds, **memory})
        if returned.isnan().any():
            raise ValueError(f"{case.name}: output: expected numbers, got NaN")
        del values, output, returned
    Path(result).write_text(json.dumps(rows), "utf-8")


@dataclass(frozen=True)
class Reading:
    """Bytes of the GPU's memory at one moment."""

    allocated: int
    peak: int
    reserved: int
    free: int

    @classmethod
    def now(cls) -> Reading:
        """Its peak is that since the last reading."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        free, _ = torch.cuda.mem_get_info()
        return cls(torch.cuda.memory_allocated(), peak, torch.cuda.memory_reserved(), free)


def taken(before: Reading, after: Reading, kept: int, output: int) -> dict[str, int]:
    """Bytes that a call took.

    kept: what earlier calls have kept: it is this one's, too. output: of one that the solution has
    made itself.
    """
    beside = before.allocated - kept + output
    others = before.free - after.free - (after.reserved - before.reserved)
    return {
        "peak_bytes": after.peak - beside,
        "kept_bytes": after.allocated - beside,
        "others_bytes": max(0, others),
    }


if __name__ == "__main__":
    exit_with(main)
