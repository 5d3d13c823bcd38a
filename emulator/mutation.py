"""Leaves out one synchronisation at a time: does a run notice?

Every wait, arrival, announcement of bytes, fence, commit and barrier of a kernel is omitted in
turn, at run time. What is never noticed is superfluous, or outside of what the emulator models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from .decoder import Program
from .errors import KernelError
from .launch import Emulator
from .schedule import EAGER, LAZY, Schedule, random_schedules

SCHEDULES = (LAZY, EAGER, *random_schedules(3))  # the first notices most
NOT_EXECUTED = "not executed"
_NOTICES = ("deadlock", "race", "proxy", "limit of instructions")


@dataclass(frozen=True)
class Mutant:
    """A kernel without the synchronisation at a PTX line.

    noticed: by what, "wrong result" or a kind of fault, or NOT_EXECUTED; empty where no order
    showed it. order: the schedule in which it showed. message: the fault's first line. source:
    "file:line" where the PTX tells.
    """

    form: str
    line: int
    source: str
    noticed: str = ""
    order: str = ""
    message: str = ""


def mutants(
    program: Program,
    run: Callable[[Emulator], object],
    max_instructions: int,
    schedules: Sequence[Schedule] = SCHEDULES,
    every: int = 1,
    executed: Collection[int] | None = None,
) -> Iterator[Mutant]:
    """Omit every `every`th synchronisation of a kernel, in each schedule until one shows it.

    run: clears what the kernel writes, runs it, and returns something comparable that tells what it
    has written. max_instructions: of a run; beyond, a mutant counts as hanging. executed: PTX lines
    that are, once `run` has been called for each schedule; None: all.

    Raises KernelError where the complete kernel fails, RuntimeError where its results differ
    between the schedules: then nothing can be concluded.
    """
    emulators = [Emulator(schedule, True, max_instructions) for schedule in schedules]
    expected = [run(emulator) for emulator in emulators]
    if any(result != expected[0] for result in expected):
        raise RuntimeError(f"{program.kernel.name}: the results depend on the schedule")
    for instruction in program.synchronisations()[::every]:
        line = instruction.line
        mutant = Mutant(instruction.form, line, program.sources.get(line, ""))
        if executed is not None and line not in executed:
            yield replace(mutant, noticed=NOT_EXECUTED)
            continue
        for emulator in emulators:
            noticed, message = "", ""
            try:
                if run(replace(emulator, omit=line)) != expected[0]:
                    noticed = "wrong result"
            except KernelError as error:
                message = str(error).splitlines()[0]
                noticed = next((kind for kind in _NOTICES if kind in message), "fault")
            if noticed:
                mutant = replace(
                    mutant, noticed=noticed, order=emulator.schedule.order, message=message
                )
                break
        yield mutant
