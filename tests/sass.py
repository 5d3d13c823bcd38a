"""What a compiled kernel is made of: resource usage and machine code, without a GPU."""

import subprocess
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
