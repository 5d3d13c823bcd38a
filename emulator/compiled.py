"""What cute.compile gives, as a function that runs on the CPU.

It is called as on a GPU: with addresses, numbers and a stream's handle. The addresses are those of
CPU memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from .decoder import Program
from .host import HostProgram, emulated_launch
from .launch import Emulator, KernelRun
from .ptx import Kernel

_TYPES = {"Int32": ctypes.c_int32, "Int64": ctypes.c_int64, "Float32": ctypes.c_float}


class EmulatedFunction:
    """A compiled launching function whose kernels run on the emulator.

    runs: what the last call's launches did.
    """

    def __init__(
        self,
        compiled,
        examples: Sequence,
        ranges: Callable[[], list[tuple[int, int]]],
        emulator: Emulator | None = None,
    ):
        """compiled: with the PTX kept and without TVM-FFI. examples: the arguments that it was
        compiled for. ranges: gives the memory that a call's kernels may access.

        Raises TypeError for an argument of a type that it cannot pass.
        """
        self._program = HostProgram(compiled)
        self._types = [_ctype(example) for example in examples]
        self._ranges = ranges
        self.emulator = emulator or Emulator()
        self.runs: list[KernelRun] = []

    def program(self, kernel: str) -> Program:
        """A kernel as decoded; raises KeyError for a name that the PTX does not hold."""
        return self._program.module.program(kernel)

    def kernels(self) -> list[Kernel]:
        """All that the PTX holds."""
        return list(self._program.module.kernels.values())

    def __call__(self, *arguments) -> None:
        """Raises KernelError for whatever a kernel must not do."""
        values = [kind(value) for kind, value in zip(self._types, arguments, strict=True)]
        self.runs = emulated_launch(self._program, values, self._ranges(), self.emulator)


def _ctype(example) -> type:
    name = type(example).__name__
    if name in _TYPES:
        return _TYPES[name]
    if name in ("_Pointer", "CUstream"):
        return ctypes.c_void_p
    raise TypeError(f"an argument of type {name} cannot be passed to an emulated function")
