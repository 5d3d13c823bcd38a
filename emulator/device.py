"""A GPU that PyTorch and CuTe DSL believe in, in this process: its kernels run on the emulator.

What a solution asks of its device is answered for tensors on the CPU, and what it compiles with
`cute.compile` becomes an `EmulatedFunction`. Nothing else of CUDA is there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .build import runtime
from .compiled import EmulatedFunction
from .launch import Emulator


@dataclass(frozen=True)
class Architecture:
    """capability: the compute capability of the GPUs that have it."""

    name: str
    capability: tuple[int, int]


ARCHITECTURES = {
    name: Architecture(name, capability)
    for name, capability in (("sm_90a", (9, 0)), ("sm_100a", (10, 0)))
}
# Persistent kernels start a block on each. More share the work among more warps that wait.
MULTIPROCESSORS = 8
TVM_FFI = "--enable-tvm-ffi"


class _Allocations(TorchDispatchMode):
    """The memory of all tensors that PyTorch makes while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def add(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()  # kept: the memory is not given out again
            self.storages[storage.data_ptr()] = storage

    def ranges(self) -> list[tuple[int, int]]:
        return [(first, first + storage.nbytes()) for first, storage in self.storages.items()]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self.add(leaf)
        return result


class _Compiler:
    """In place of cute.compile: whatever is asked for, the PTX is kept and TVM-FFI is not used."""

    def __init__(self, original, ranges: Callable[[], list], emulator: Emulator):
        import cutlass.cute as cute

        self._compile = original[cute.KeepPTX]
        self._ranges, self._emulator = ranges, emulator

    def __getitem__(self, _decorators) -> _Compiler:
        return self

    def __call__(self, function, *examples, options: str = "", **keywords) -> EmulatedFunction:
        compiled = self._compile(
            function, *examples, options=options.replace(TVM_FFI, ""), **keywords
        )
        return EmulatedFunction(compiled, examples, self._ranges, self._emulator)


class EmulatedDevice:
    """Use it as a context manager, or `install` it for the rest of the process.

    CuTe DSL reads the architecture when it is imported, so that must not have happened before.
    """

    def __init__(self, architecture: str, emulator: Emulator | None = None):
        """architecture: a key of ARCHITECTURES. Raises ValueError for another, and CompilerMissing
        where the runtime cannot be compiled."""
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
            )
        self.architecture = ARCHITECTURES[architecture]
        self._emulator = emulator or Emulator()
        self._allocations: _Allocations | None = None
        self._replaced: list[tuple[Any, str, Any]] = []
        runtime()

    def install(self) -> None:
        os.environ["CUTE_DSL_ARCH"] = self.architecture.name
        os.environ.setdefault("CUTE_DSL_DUMP_DIR", tempfile.mkdtemp())  # of the PTX
        import cutlass.cute as cute
        import torch._dynamo  # replaces torch.manual_seed when it is first imported, as modes do

        major, minor = self.architecture.capability
        properties = SimpleNamespace(
            name=f"emulated {self.architecture.name}",
            multi_processor_count=MULTIPROCESSORS,
            major=major,
            minor=minor,
        )
        for owner, name, value in (
            (torch.cuda, "emulated", True),  # which solutions ask for
            (torch.cuda, "get_device_properties", lambda *_: properties),
            (torch.cuda, "get_device_capability", lambda *_: (major, minor)),
            (torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0)),
            (torch._C, "_cuda_getCurrentRawStream", lambda *_: 0),
            (cute, "compile", _Compiler(cute.compile, self._ranges, self._emulator)),
        ):
            self._replaced.append((owner, name, getattr(owner, name, None)))
            setattr(owner, name, value)

    def remove(self) -> None:
        for owner, name, value in reversed(self._replaced):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self._replaced.clear()

    def __enter__(self) -> EmulatedDevice:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _ranges(self) -> list[tuple[int, int]]:
        if self._allocations is None:
            raise RuntimeError("a kernel was launched outside of a function that `running` gave")
        return self._allocations.ranges()

    def running(self, function: Callable) -> Callable:
        """`function`, whose kernels may access its arguments and the tensors it makes."""

        @wraps(function)
        def run(*arguments):
            self._allocations = _Allocations()
            for argument in arguments:
                self._allocations.add(argument)
            try:
                with self._allocations:
                    return function(*arguments)
            finally:
                self._allocations = None

        return run
