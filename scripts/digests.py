#!/usr/bin/env python3
"""Write the digests of what the sm_90a kernels compute on this GPU, for the emulator to equal.

    python scripts/digests.py            # on a Hopper GPU; writes emulator/hardware/digests.json
    python scripts/digests.py --emulated [--only TEXT]  # compares the emulator with that file

The emulator takes up to a minute for a case of the real geometry, and 3.2 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")
os.environ.setdefault("CUTE_DSL_DUMP_DIR", tempfile.mkdtemp())  # of the PTX
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PATH = ROOT / "emulator" / "hardware" / "digests.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--emulated", action="store_true", help="compare the emulator with the file"
    )
    parser.add_argument("--only", default="", help="cases whose names contain this text")
    parser.add_argument("--output", type=Path, default=PATH, help="where a GPU's digests go")
    options = parser.parse_args()

    from bundle.emulation.digests import EmulatedCase, cases, gpu_digests

    chosen = [case for case in cases() if options.only in case.name]
    if not options.emulated:
        import torch

        found = {case.name: gpu_digests(case) for case in chosen}
        device = torch.cuda.get_device_name(0)
        options.output.write_text(json.dumps({"device": device, "digests": found}, indent=1) + "\n")
        return
    known = json.loads(PATH.read_text())
    failed = False
    for case in chosen:
        start = time.perf_counter()
        expected, actual = known["digests"][case.name], EmulatedCase(case).digests()
        wrong = [name for name in expected if expected[name] != actual[name]]
        failed |= bool(wrong)
        verdict = f"differ: {', '.join(wrong)}" if wrong else f"all {len(expected)} equal"
        print(f"{case.name}: {verdict} ({time.perf_counter() - start:.1f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
