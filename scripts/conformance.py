#!/usr/bin/env python3
"""Run NVIDIA's own sm_100a examples on the emulator: programs known to be right on a B200.

    python scripts/conformance.py CUTLASS/examples/python/CuTeDSL   # or $CUTLASS_EXAMPLES
    python scripts/conformance.py FOLDER --only masked --anchors

Each is compared with NumPy in fp64; bf16's rounding is the error to expect. --anchors also compiles
the bundle's own sm_100a kernels and names what anchors each of their forms of tcgen05, TMA and
mbarrier instructions: the first example that executes it, or else a case of the sm_90a kernels that
executes it and whose every result is an H100's (emulator/hardware/digests.json). Nothing is
fetched; the examples are not part of the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=os.environ.get("CUTLASS_EXAMPLES"))
    parser.add_argument("--only", default="", help="examples whose names contain this text")
    parser.add_argument("--anchors", action="store_true", help="also of the bundle's own forms")
    parser.add_argument("--hopper", action="store_true", help="print what sm_90a cases execute")
    options = parser.parse_args()
    if options.hopper:
        print(json.dumps(forms_on_hopper()))
        return 0
    if options.folder is None or not (Path(options.folder) / "cute/blackwell").is_dir():
        parser.error(
            f"folder: expected CUTLASS's examples/python/CuTeDSL, which holds cute/blackwell, "
            f"got {options.folder}"
        )
    os.environ.update(CUTE_DSL_ARCH="sm_100a", CUTE_DSL_DUMP_DIR=tempfile.mkdtemp())

    from bundle.emulation.cutlass_examples import EXAMPLES, own_forms, run_example

    anchors: dict[str, str] = {}
    failed = 0
    print("| example | configuration | asynchronous forms | error | seconds |")
    print("|---|---|--:|--:|--:|")
    for example in EXAMPLES:
        if options.only not in example.name:
            continue
        result = run_example(example, Path(options.folder))
        failed += not result.passed
        outcome = result.refused or f"{result.error:.1e}"
        print(f"| {example.name} | {example.shape} | {len(result.forms)} | {outcome} | "
              f"{result.seconds:.1f} |", flush=True)  # fmt: skip
        if result.passed:
            for form in result.forms:
                anchors.setdefault(form, f"{example.name}, {example.shape}")
    if options.anchors:
        print("\n| form | anchored by |\n|---|---|")
        on_hopper = json.loads(
            subprocess.run(
                [sys.executable, __file__, "--hopper"], stdout=subprocess.PIPE, check=True
            ).stdout
        )  # the architecture is one for a process
        for form in own_forms():
            print(f"| `{form}` | {anchors.get(form) or on_hopper.get(form, '**none**')} |")
    return int(failed > 0)


def forms_on_hopper() -> dict[str, str]:
    """Asynchronous forms that small cases of the sm_90a kernels execute, with the first of them;
    those cases whose digests are the GPU's."""
    os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=tempfile.mkdtemp())
    from bundle.emulation.cutlass_examples import executed_forms
    from bundle.emulation.digests import EmulatedCase, cases

    known = json.loads((ROOT / "emulator/hardware/digests.json").read_text())
    found: dict[str, str] = {}
    for case in cases():
        if case.real:
            continue
        emulated = EmulatedCase(case)
        if emulated.digests() == known["digests"][case.name]:
            for form in executed_forms(emulated.function.runs):
                found.setdefault(form, f"sm_90a: {case.name}, equal to an {known['device']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
