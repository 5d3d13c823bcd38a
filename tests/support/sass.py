"""What a compiled kernel is made of: resource usage and machine code, without a GPU."""

import hashlib
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

from triton import knobs  # ships cuobjdump and nvdisasm


def inspect(cubin: bytes, folder: Path) -> tuple[str, str]:
    """cuobjdump's resource usage and nvdisasm's SASS of a cubin, which is written into folder."""
    usage = usage_of(cubin, folder)
    return usage, _said(knobs.nvidia.nvdisasm.path, folder / "kernel.cubin")


def usage_of(cubin: bytes, folder: Path) -> str:
    """cuobjdump's resource usage alone, a fraction of the work."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return _said(knobs.nvidia.cuobjdump.path, "-res-usage", path)


def _said(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def resources(usage: str, sass: str, instructions: str) -> dict:
    """What `inspect` tells: the most registers and stack of a kernel, and how often there are the
    instructions that the pattern's group matches."""
    return {
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "stack": max(map(int, re.findall(r"STACK:(\d+)", usage))),
        "instructions": Counter(re.findall(instructions, sass)),
    }


def loops_around(sass: str, instruction: str) -> list[str]:
    """The innermost loops that hold the instruction, in nvdisasm's text; "" if one is in no loop.

    A loop reaches from a label to the last branch back to it. Waits that must be repeated are at
    the end of the code, and their branches back are around all of the loops.
    """
    lines = sass.splitlines()
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
    branches = [
        (labels[target[1]], i)
        for i, line in enumerate(lines)
        if (target := re.search(r"\bBRA.*`\((\.L_x_\d+)\)", line))
    ]
    loops: dict[tuple[int, int], str] = {}
    for place, line in enumerate(lines):
        if re.search(rf"\b{instruction}\b", line):
            around = [(end - start, start, end) for start, end in branches if start < place < end]
            _, start, end = min(around, default=(0, 0, -1))
            loops[start, end] = "\n".join(lines[start : end + 1])
    return list(loops.values())


def fingerprints(cubin: bytes, usage: str) -> dict[str, str]:
    """Of each CuTe DSL kernel of a cubin, by the name of its Python function, with a number from
    the second of a name on: how many registers it takes, how many bytes of machine code it has, and
    their SHA-256.

    The bytes are those of the ELF section .text.<kernel>. What names the kernel's class, its module
    or its arguments' types, as the symbol does, is not among them.
    """
    registers = {
        symbol: int(count) for symbol, count in re.findall(r"Function (\S+?):?\s+REG:(\d+)", usage)
    }
    found = {}
    for section, code in _sections(cubin):
        if section.startswith(".text."):
            symbol = section.removeprefix(".text.")
            name = re.match(r"kernel_cutlass_(\w+?)_(?:solutions|bundle)", symbol)
            assert name, f"not a CuTe DSL kernel: {symbol}"
            digest = hashlib.sha256(code).hexdigest()
            same = sum(function.split()[0] == name[1] for function in found)
            function = f"{name[1]} {same + 1}" if same else name[1]
            found[function] = f"{registers[symbol]} registers, {len(code)} bytes, {digest}"
    assert found, "no machine code in the cubin"
    return found


def _sections(elf: bytes):
    """(name, content) of each section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, kind, _, _, offset, length, *_ in headers:
        start = strings + name
        if kind != 8:  # SHT_NOBITS has no content
            yield elf[start : elf.index(0, start)].decode(), elf[offset : offset + length]
