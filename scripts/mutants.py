#!/usr/bin/env python3
"""Leave out each synchronisation of the CuTe DSL kernels in turn; does the emulator notice?

    python scripts/mutants.py --only "tile 0"                # of sm_90a
    python scripts/mutants.py --arch sm_100a --output FILE   # all kernels: an hour or more

Prints a table per kernel and every omission that nothing showed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=("sm_90a", "sm_100a"), default="sm_90a")
    parser.add_argument("--only", default="", help="cases whose names contain this text")
    parser.add_argument("--every", type=int, default=1, help="take every Nth omission only")
    parser.add_argument("--output", type=Path, help="append a JSON line per omission")
    options = parser.parse_args()
    os.environ.update(CUTE_DSL_ARCH=options.arch, CUTE_DSL_DUMP_DIR=tempfile.mkdtemp())

    from bundle.emulation.digests import small_cases
    from bundle.emulation.mutants import mutants_of

    from emulator.mutation import NOT_EXECUTED

    for case in small_cases(100 if options.arch == "sm_100a" else 90):
        if options.only not in case.name:
            continue
        start, missed = time.perf_counter(), []
        table: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for kernel, mutant in mutants_of(case, options.every):
            table[mutant.form][mutant.noticed or "missed"] += 1
            if not mutant.noticed:
                missed.append(mutant)
            if options.output:
                with options.output.open("a") as file:
                    facts = {"arch": options.arch, "case": case.name, "kernel": kernel}
                    file.write(json.dumps(facts | asdict(mutant)) + "\n")
        total = sum(counts.total() for counts in table.values())
        idle = sum(counts[NOT_EXECUTED] for counts in table.values())
        print(f"{options.arch} {case.name}: {total - idle - len(missed)} of {total} noticed, "
              f"{idle} {NOT_EXECUTED} ({time.perf_counter() - start:.0f} s)")  # fmt: skip
        for form, counts in sorted(table.items()):
            print(f"  {form}: {', '.join(f'{n} {how}' for how, n in counts.most_common())}")
        for mutant in missed:
            print(f"  missed: {mutant.form}, PTX line {mutant.line} {mutant.source}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
