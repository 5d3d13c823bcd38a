"""Is there a `wgmma.fence` between each use of a register and the wgmma that accumulates in it?

PTX asks for one, before the first wgmma, too; between wgmmas it needs none. wgmma reads and writes
its accumulators in order here, so a run would not show that one is missing: the paths through the
kernel's basic blocks do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..ptx import Instruction

_REGISTER = re.compile(r"%\w+")


def unfenced(
    blocks: Sequence[Sequence[Instruction]], successors: Sequence[Sequence[int]], omitted: int = 0
) -> int | None:
    """PTX line of a wgmma that some path reaches without a fence behind a use of its accumulators.

    successors: blocks that may follow each. omitted: line of a fence that is left out.
    """
    accumulators = {
        name: 1 << number
        for number, name in enumerate(
            dict.fromkeys(name for block in blocks for i in block for name in _accumulators(i))
        )
    }
    steps = [_steps(block, accumulators, omitted) for block in blocks]
    used: list[int | None] = [None] * len(blocks)  # since the last fence, before each block
    used[0] = (1 << len(accumulators)) - 1
    waiting = [0]
    while waiting:
        number = waiting.pop()
        state = used[number] or 0
        for line, fences, mask in steps[number]:
            if fences:
                state = 0
            elif line:
                if state & mask:
                    return line
            else:
                state |= mask
        for successor in successors[number]:
            before = used[successor]
            if before is None or state & ~before:
                used[successor] = (before or 0) | state
                waiting.append(successor)
    return None


def _accumulators(instruction: Instruction) -> list[str]:
    is_wgmma = instruction.form.startswith("wgmma.mma_async")
    return _REGISTER.findall(instruction.operands[0]) if is_wgmma else []


def _steps(block: Sequence[Instruction], accumulators: dict[str, int], omitted: int) -> list:
    """(line of a wgmma or 0, whether it is a fence, registers), of what matters in a block."""
    steps = []
    for i in block:
        if i.form.startswith("wgmma.fence"):
            if i.line != omitted:
                steps.append((0, True, 0))
            continue
        names = _accumulators(i)
        line = i.line if names else 0
        if not names:
            names = [name for operand in i.operands for name in _REGISTER.findall(operand)]
        mask = sum({accumulators.get(name, 0) for name in names})
        if mask:
            steps.append((line, False, mask))
    return steps
