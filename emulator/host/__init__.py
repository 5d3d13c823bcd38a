"""Runs the host code of what cute.compile gave, with a stand-in for the CUDA runtime.

So grids, clusters, parameters and the TMA descriptors are those of the real launch.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..build import compile_library
from ..errors import EmulatorError
from ..launch import Emulator, KernelRun, LaunchConfig, Module

_MAX_KERNELS, _MAX_PARAMETERS, _MAX_LAUNCHES = 64, 64, 64  # of mock_cuda.c
_numbers = itertools.count()


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 2048),
        ("num_parameters", ctypes.c_int),
        ("sizes", ctypes.c_int * _MAX_PARAMETERS),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("overlaps", ctypes.c_uint),
        ("shared", ctypes.c_ulong),
        ("parameters", ctypes.c_ubyte * 8192),
    ]


class HostProgram:
    """A compiled launching function, without TVM-FFI and with its PTX kept, ready to be called.

    `compiled` comes from `cute.compile[cute.KeepPTX](...)`.
    """

    def __init__(self, compiled):
        ptx = compiled.artifacts.PTX
        self.module = Module(ptx if isinstance(ptx, str) else ptx.decode())
        name = f"kernel{next(_numbers)}"
        with tempfile.TemporaryDirectory() as folder:
            self._library, header = _link(compiled, Path(folder), name)
        self._describe_kernels()
        entry = re.search(r"void (_mlir_\w+_ciface_\w+)\(", header)
        if entry is None:
            raise EmulatorError(f"{name}: its header declares no _mlir_..._ciface_... function")
        self._entry = getattr(self._library, entry[1])
        self._handle = ctypes.c_void_p()
        place, result = ctypes.pointer(self._handle), ctypes.c_int(-1)
        device = ctypes.c_int32(0)
        self._call(f"_mlir_{name}_cuda_init", place, result)
        self._call(f"_mlir_{name}_cuda_load_to_device", place, device, result)

    def _call(self, name: str, *values) -> None:
        """Values by their addresses; the last one is the result."""
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        getattr(self._library, name)(addresses)
        if values[-1].value:
            raise EmulatorError(f"{name} failed with {values[-1].value}")

    def _describe_kernels(self) -> None:
        kernels = (_Kernel * _MAX_KERNELS).in_dll(self._library, "kernels")
        for native, kernel in zip(kernels, self.module.kernels.values(), strict=False):
            native.name = kernel.name.encode()
            native.num_parameters = len(kernel.parameters)
            native.sizes[: len(kernel.parameters)] = [p.size for p in kernel.parameters]
        ctypes.c_int.in_dll(self._library, "num_kernels").value = len(self.module.kernels)

    def launches(self, arguments: Sequence) -> list[LaunchConfig]:
        """What the host code launches for these ctypes values; the last is the stream's handle."""
        count = ctypes.c_int.in_dll(self._library, "num_launches")
        count.value = 0
        result = ctypes.c_int(-1)
        values = [*arguments, result]
        self._entry((ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)), len(values))
        if result.value:
            raise EmulatorError(f"the host code failed with {result.value}")
        launches = (_Launch * _MAX_LAUNCHES).in_dll(self._library, "launches")
        return [self._config(launch) for launch in launches[: count.value]]

    def _config(self, launch: _Launch) -> LaunchConfig:
        kernel = list(self.module.kernels.values())[launch.kernel]
        parameters, packed = bytearray(kernel.parameter_bytes), bytes(launch.parameters)
        for parameter in kernel.parameters:
            end = parameter.offset + parameter.size
            parameters[parameter.offset : end] = packed[: parameter.size]
            packed = packed[parameter.size :]
        return LaunchConfig(
            kernel.name, tuple(launch.grid), tuple(launch.block), tuple(launch.cluster),
            launch.shared, bytes(parameters), bool(launch.overlaps),
        )  # fmt: skip


def _link(compiled, folder: Path, name: str) -> tuple[ctypes.CDLL, str]:
    """The host code with the stand-in, and its header."""
    compiled.export_to_c(file_path=str(folder), file_name=name, function_prefix=name)
    library = folder / f"{name}.so"
    # symbolic: the DSL has loaded the real functions under the same names
    compile_library(
        library,
        [Path(__file__).parent / "mock_cuda.c", folder / f"{name}.o"],
        ("-shared", "-fPIC", "-w", "-Wl,-Bsymbolic"),
    )
    return ctypes.CDLL(str(library)), (folder / f"{name}.h").read_text()


def emulated_launch(
    program: HostProgram,
    arguments: Sequence,
    ranges: list[tuple[int, int]],
    emulator: Emulator | None = None,
) -> list[KernelRun]:
    """Call the host code and run what it launches, in one stream.

    arguments: ctypes values, the stream's handle last. ranges: buffers that kernels may access, see
    `Buffers`. Raises KernelError at the first fault, race or deadlock.
    """
    emulator = emulator or Emulator()
    return emulator.run_stream(program.module, program.launches(arguments), ranges)
