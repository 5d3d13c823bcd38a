"""One call of a solution in a process of its own, between cudaProfilerStart and cudaProfilerStop.

What scripts/profile_call.py runs under a profiler:

    python -m bundle.probes.one_call SOLUTION UUID WARM_UP_CALLS
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cli import exit_with
from ..runs.requirements import current_device
from .cases import Arguments, named_cases, new_output, solutions_here
from .device import L2_BYTES


def main(arguments: Sequence[str]) -> None:
    name, uuid, warm_up_calls = arguments
    (solution,) = solutions_here(current_device(), [name])
    (case,) = named_cases([uuid])
    values = Arguments("cuda").of(case)
    output = new_output(values)
    for _ in range(int(warm_up_calls)):
        solution(values, output)
    torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda").zero_()  # cold, as the harness has it
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    solution(values, output)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    exit_with(main)
