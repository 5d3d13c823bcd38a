"""Small PTX kernels for the emulator's tests."""

from __future__ import annotations

import struct

import numpy as np

from emulator import Buffers, Emulator, KernelRun, LaunchConfig, Module

HEADER = ".version 8.8\n.target {target}\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %rs<16>;
    .reg .b32 %r<128>;
    .reg .b64 %rd<32>;
"""


def module(body: str, pointers: int, threads: int = 32, target: str = "sm_90a") -> Module:
    """A module with one kernel `k`; its parameters are pointers, already in %rd0, %rd1, ..."""
    names = [f"p{i}" for i in range(pointers)]
    parameters = ",\n".join(f"\t.param .u64 {name}" for name in names)
    loads = "\n".join(f"    ld.param.b64 %rd{i}, [{name}];" for i, name in enumerate(names))
    return Module(
        f"{HEADER.format(target=target)}.extern .shared .align 1024 .b8 smem[];\n"
        f".visible .entry k(\n{parameters}\n)\n.reqntid {threads}, 1, 1\n"
        f"{{\n{REGISTERS}{loads}\n{body}\n    ret;\n}}\n"
    )


def launch(
    kernel: Module,
    arrays: list[np.ndarray],
    buffers: Buffers,
    emulator: Emulator | None = None,
    threads: int = 32,
    grid: int = 1,
    cluster: int = 1,
) -> KernelRun:
    """Run `k` with the arrays' addresses as its parameters."""
    parameters = b"".join(struct.pack("<Q", array.ctypes.data) for array in arrays)
    config = LaunchConfig("k", (grid, 1, 1), (threads, 1, 1), (cluster, 1, 1), 65536, parameters)
    return (emulator or Emulator()).run(kernel, config, buffers.ranges)
