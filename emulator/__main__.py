"""Run one CuTe DSL kernel of the bundle on the emulator.

    python -m emulator                             # the kernels and sizes there are
    python -m emulator "configuration 1, small"    # counts of instructions, bytes, bank conflicts
    python -m emulator "tile 0, small" --schedule random --seed 3 --race
    python -m emulator "tile 0, small" --omit 261  # without the synchronisation of this PTX line

An error names the warp, the PTX line and the line of the CuTe DSL program that it comes from.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from .decoder import Program
from .errors import EmulatorError
from .launch import Emulator, KernelRun
from .schedule import Schedule

ROOT = Path(__file__).resolve().parents[1]
MOST_FORMS = 20
MOST_LINES = 5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("kernel", nargs="?", help="text that the name of a kernel and its size contains")
    add("--schedule", choices=("eager", "lazy", "random"), default="eager")
    add("--seed", type=int, default=1, help="of the random schedule (%(default)s)")
    add("--race", action="store_true", help="check that accesses are ordered")
    add("--omit", type=int, metavar="LINE", help="leave out the synchronisation of this PTX line")
    return parser.parse_args()


def report(run: KernelRun, program: Program) -> None:
    config = run.config
    print(f"{config.kernel}: grid {config.grid}, block {config.block}, cluster {config.cluster}")
    print(f"  {run.seconds:.2f} s, {run.instructions} instructions of warps, "
          f"{run.multiply_adds} multiply-adds of tensor cores")  # fmt: skip
    for name, value in run.counters.items():
        if name.endswith("bytes") and value:
            print(f"  {value:>12} {name.replace('_', ' ')}")
    print(f"  {run.bank_conflicts.total():>12} bank conflicts")
    for line, times in run.bank_conflicts.most_common(MOST_LINES):
        print(
            f"  {times:>12}   at PTX line {line}, {program.sources.get(line, 'of no source line')}"
        )
    for form, times in run.counts.most_common(MOST_FORMS):
        print(f"  {times:>12} {form}")


def main() -> int:
    arguments = parse_arguments()
    os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # read when CuTe DSL is imported
    os.environ.setdefault("CUTE_DSL_DUMP_DIR", tempfile.mkdtemp(prefix="emulator_"))
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    from bundle.emulation.digests import EmulatedCase, cases

    chosen = [case for case in cases() if (arguments.kernel or "") in case.name]
    if arguments.kernel is None or len(chosen) != 1:
        names = "\n".join(f"  {case.name}" for case in chosen or cases())
        print(f"expected a text that only one of these contains:\n{names}", file=sys.stderr)
        return 2
    case = EmulatedCase(chosen[0], line_info=True)
    schedule = Schedule(arguments.schedule, arguments.seed)
    try:
        digests = case.digests(
            Emulator(schedule, arguments.race, omit=arguments.omit, bank_conflicts=True)
        )
    except EmulatorError as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"the PTX is in {os.environ['CUTE_DSL_DUMP_DIR']}", file=sys.stderr)
        return 1
    for run in case.function.runs:
        report(run, case.function.program(run.config.kernel))
    print("digests:", ", ".join(f"{name} {digest}" for name, digest in digests.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
