"""What a compiled kernel is made of: resource usage and machine code, without a GPU."""

import re
import subprocess
from collections import Counter
from pathlib import Path

from triton import knobs  # ships cuobjdump and nvdisasm


def inspect(cubin: bytes, folder: Path) -> tuple[str, str]:
    """cuobjdump's resource usage and nvdisasm's SASS of a cubin, which is written into folder."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage, sass = (
        subprocess.run([*command, path], capture_output=True, text=True, check=True)
        for command in ([knobs.nvidia.cuobjdump.path, "-res-usage"], [knobs.nvidia.nvdisasm.path])
    )
    return usage.stdout + usage.stderr, sass.stdout


def resources(usage: str, sass: str, instructions: str) -> dict:
    """What `inspect` tells: the most registers and stack of a kernel, and how often there are the
    instructions that the pattern's group matches."""
    return {
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "stack": max(map(int, re.findall(r"STACK:(\d+)", usage))),
        "instructions": Counter(re.findall(instructions, sass)),
    }
