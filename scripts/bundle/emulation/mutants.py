"""The mutation test of a case's kernels."""

from __future__ import annotations

from collections.abc import Iterator

from emulator import Emulator, Mutant, mutants

from .digests import Case, EmulatedCase

_PATIENCE = 4  # a mutant may take this many times the instructions of the complete kernels
_FEW_SMS = 2  # so that a block comes around its ring of slots several times


def mutants_of(case: Case, every: int = 1) -> Iterator[tuple[str, Mutant]]:
    """(kernel, mutant) of every `every`th synchronisation of the case's kernels."""
    compiled = EmulatedCase(case, _FEW_SMS, line_info=True)
    compiled.digests(Emulator())
    runs = compiled.function.runs
    limit = _PATIENCE * max(run.instructions for run in runs) + 1_000_000
    executed: set[int] = set()

    def run(emulator: Emulator) -> dict[str, str]:
        digests = compiled.digests(emulator)
        if emulator.omit is None:  # a mutant may run what the complete kernels do not
            executed.update(*(run.lines for run in compiled.function.runs))
        return digests

    for kernel in dict.fromkeys(run.config.kernel for run in runs):
        program = compiled.function.program(kernel)
        for mutant in mutants(program, run, limit, every=every, executed=executed):
            yield kernel, mutant
