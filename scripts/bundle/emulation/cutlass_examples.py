"""CUTLASS's sm_100a CuTe DSL examples, at small sizes: GEMMs (e4m3 operands, fp32 sums, bf16
results) and what shows one instruction each."""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cuda.bindings.driver as cuda
import cutlass.cute as cute
import numpy as np
import torch
from cutlass import BFloat16, Float8E4M3FN, Float32, Int32
from cutlass.cute.runtime import make_fake_tensor

from emulator import (
    LAZY,
    Buffers,
    Emulator,
    EmulatorError,
    HostProgram,
    KernelRun,
    emulated_launch,
)

LARGEST_ERROR = 2e-3  # relative; 1.7e-3 is bf16's rounding
BLOCK = 128  # columns or rows of a scale
# what the semantics of a kernel's asynchronous part depends on
ASYNCHRONOUS = re.compile(r"tcgen05\.|cp\.async|mbarrier\.|fence\.|barrier\.cluster|mapa|st\.async")
_RESULT = np.uint16(0x7FC0)  # a bf16 NaN


@dataclass(frozen=True)
class Example:
    """module: below cute/blackwell/kernel. extra: arguments of the kernel's class behind the tile
    and the cluster. operands: makes the arrays and the expected result."""

    module: str
    kernel: str
    operands: Callable
    paired: bool
    tile: tuple[int, int]
    cluster: tuple[int, int]
    extra: tuple = ()
    persistent: bool = True

    @property
    def name(self) -> str:
        return self.module.rpartition("/")[2]

    @property
    def shape(self) -> str:
        ctas = 2 if self.paired else 1
        tile, cluster = ("x".join(map(str, shape)) for shape in (self.tile, self.cluster))
        return f"{ctas} CTA, tile {tile}, cluster {cluster}"

    def compile(self, folder: Path, fakes: list):
        kernel = getattr(_module(folder / "cute/blackwell/kernel" / self.module), self.kernel)(
            Float32, self.paired, self.tile, self.cluster, *self.extra
        )
        clusters = [MAX_CLUSTERS] if self.persistent else []
        return cute.compile[cute.KeepPTX](kernel, *fakes, *clusters, cuda.CUstream(0))


@dataclass(frozen=True)
class Primitive:
    """module: below experimental/primitives; its `host` launches from one tensor to another.

    extra: the constants behind the tensors (and the stream, which `host` takes if `takes_stream`).
    """

    module: str
    shape: str
    operands: Callable
    extra: tuple
    takes_stream: bool = False

    @property
    def name(self) -> str:
        return self.module.rpartition("/")[2]

    def compile(self, folder: Path, fakes: list):
        host = _module(folder / "experimental/primitives" / self.module).host

        def launch(source, target, stream):
            host(source, target, *([stream] if self.takes_stream else []), *self.extra)

        @cute.jit
        def with_stream(source: cute.Tensor, target: cute.Tensor, stream: cuda.CUstream):
            launch(source, target, stream)

        return cute.compile[cute.KeepPTX](with_stream, *fakes, cuda.CUstream(0))


@dataclass(frozen=True)
class Result:
    """error: relative L2. refused: why the emulator did not run it. forms: asynchronous ones that
    were executed."""

    error: float = float("nan")
    seconds: float = 0.0
    forms: tuple[str, ...] = ()
    refused: str = ""

    @property
    def passed(self) -> bool:
        return not self.refused and self.error < LARGEST_ERROR


@dataclass(frozen=True)
class Operands:
    """arguments: (array, type, shape, strides) in the kernel's order. compared: mask of the result
    (of shape groups, M, N) that the kernel defines. result: number of its argument."""

    arguments: tuple
    expected: np.ndarray
    compared: np.ndarray
    result: int = 2


# ---------------------------------------------------------------------------------- operands
def _codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[(codes & 127) == 127] = 0
    return codes


def _values(codes: np.ndarray) -> np.ndarray:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()


def _matrix(codes: np.ndarray, kind) -> tuple:
    """An array (groups, rows, columns) as CUTLASS's (rows, columns, groups)."""
    groups, rows, columns = codes.shape
    return codes, kind, (rows, columns, groups), (columns, 1, rows * columns)


def _transposed(array: np.ndarray, kind) -> tuple:
    """An array (groups, columns, rows) as CUTLASS's (rows, columns, groups)."""
    groups, columns, rows = array.shape
    return array, kind, (rows, columns, groups), (1, rows, rows * columns)


def dense(rng: np.random.Generator) -> Operands:
    m, n, k = 512, 512, 384
    a, b = _codes(rng, 1, m, k), _codes(rng, 1, n, k)
    c = np.full((1, m, n), _RESULT)
    arguments = _matrix(a, Float8E4M3FN), _matrix(b, Float8E4M3FN), _matrix(c, BFloat16)
    return Operands(arguments, _values(a) @ _values(b).transpose(0, 2, 1), np.ones(c.shape, bool))


def _scaled(rng: np.random.Generator, a_groups: int, groups: int) -> tuple[tuple, Callable]:
    """Arguments A, B, C, SFA, SFB of a blockwise GEMM, and A[i] @ B[j] scaled, of any i and j."""
    m, n, k = 512, 256, 512
    a, b = _codes(rng, a_groups, m, k), _codes(rng, groups, n, k)
    c = np.full((a_groups, m, n), _RESULT)
    a_scale = rng.standard_normal((a_groups, k // BLOCK, m)).astype(np.float32)
    b_scale = rng.standard_normal((groups, n // BLOCK, k // BLOCK)).astype(np.float32)
    x = _values(a) * a_scale.transpose(0, 2, 1).repeat(BLOCK, 2)
    w = _values(b) * b_scale.repeat(BLOCK, 1).repeat(BLOCK, 2)
    arguments = (
        _matrix(a, Float8E4M3FN), _matrix(b, Float8E4M3FN), _matrix(c, BFloat16),
        _transposed(a_scale, Float32), _matrix(b_scale, Float32),
    )  # fmt: skip
    return arguments, lambda i, j: x[i] @ w[j].T


def blockwise(rng: np.random.Generator) -> Operands:
    arguments, product = _scaled(rng, 2, 2)
    expected = np.stack([product(i, i) for i in range(2)])
    return Operands(arguments, expected, np.ones(expected.shape, bool))


def contiguous(rng: np.random.Generator) -> Operands:
    arguments, product = _scaled(rng, 1, 3)
    group = np.repeat(np.array([2, 0], np.int32), 256)
    expected = np.stack([product(0, g)[row] for row, g in enumerate(group)])[None]
    groups = (group, Int32, group.shape, (1,))
    return Operands((*arguments, groups), expected, np.ones(expected.shape, bool))


def masked(rng: np.random.Generator) -> Operands:
    arguments, product = _scaled(rng, 3, 3)
    # the example reads one entry past the groups, and does not use it
    rows = np.array([512, 16, 256, 0], np.int32)
    expected = np.stack([product(i, i) for i in range(3)])
    compared = np.zeros(expected.shape, bool)
    for i, count in enumerate(rows[:3]):
        compared[i, :count] = True
    return Operands((*arguments, (rows, Int32, (3,), (1,))), expected, compared)


def _plain(array: np.ndarray, kind) -> tuple:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return array, kind, array.shape, strides


def transposed(rng: np.random.Generator) -> Operands:
    """fp32 [128, 64] to bf16 [64, 128]."""
    source = rng.standard_normal((128, 64)).astype(np.float32)
    target = np.full((64, 128), _RESULT)
    return Operands((_plain(source, Float32), _plain(target, BFloat16)), source.T.astype(float),
                    np.ones(target.shape, bool), result=1)  # fmt: skip


def copied(rng: np.random.Generator) -> Operands:
    """fp32 [2048]."""
    source = rng.standard_normal(2048).astype(np.float32)
    target = np.full(2048, np.nan, np.float32)
    return Operands((_plain(source, Float32), _plain(target, Float32)), source.astype(float),
                    np.ones(target.shape, bool), result=1)  # fmt: skip


def _blockwise(module: str, kernel: str, operands: Callable) -> list[Example]:
    return [
        Example(f"blockwise_gemm/{module}", kernel, operands, *config)
        for config in (
            (False, (128, 128), (1, 1)),
            (True, (256, 128), (2, 1)),
        )
    ]


_DENSE = "dense_gemm/dense_gemm"
EXAMPLES: list[Example | Primitive] = [
    *_blockwise("blockwise_gemm", "BlockwiseGemmKernel", blockwise),
    *_blockwise("contiguous_grouped_gemm", "BlockwiseContiguousGroupedGemmKernel", contiguous),
    *_blockwise("masked_grouped_gemm", "BlockwiseMaskedGroupedGemmKernel", masked),
    *(
        Example(f"{_DENSE}_persistent", "PersistentDenseGemmKernel", dense, *config, (True,))
        for config in (
            (False, (128, 128), (1, 1)),
            (False, (128, 32), (1, 1)),
            (False, (128, 64), (1, 2)),
            (False, (128, 96), (1, 1)),
            (False, (128, 160), (1, 1)),
            (False, (128, 192), (1, 1)),
            (False, (128, 224), (1, 1)),
            (False, (128, 256), (2, 2)),
            (True, (256, 256), (2, 1)),
            (True, (256, 128), (4, 1)),
            (True, (256, 64), (2, 2)),
        )
    ),
    Example(f"{_DENSE}_persistent_prefetch", "PersistentDenseGemmKernel", dense,
            True, (256, 128), (2, 1), (True,)),
    Example(_DENSE, "DenseGemmKernel", dense, False, (128, 128), (1, 1), (True,), False),
    Example(_DENSE, "DenseGemmKernel", dense, True, (256, 128), (2, 2), (True,), False),
    Example(f"{_DENSE}_software_pipeline", "DenseGemmKernel", dense,
            False, (128, 128), (1, 1), (True,), False),
    Primitive("tcgen05/tmem_ld_to_stmatrix_transpose", "bf16", transposed, (BFloat16,), True),
    Primitive("cp_async_shared_global", "128 threads", copied, (128, 4)),
]  # fmt: skip
MAX_CLUSTERS = 2  # at once: persistent kernels take several tiles each


# --------------------------------------------------------------------------------- execution
class _Tensor(ctypes.Structure):  # of a static layout; the rest is not read
    _fields_ = [("data", ctypes.c_void_p), ("rest", ctypes.c_int64 * 16)]


def _module(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.name)
    finally:
        sys.path.remove(str(path.parent))


def run_example(example: Example | Primitive, folder: Path) -> Result:
    """folder: CUTLASS's examples/python/CuTeDSL. Late operations, with the race checker.

    An EmulatorError is told in the result; whatever else the example raises goes on.
    """
    operands = example.operands(np.random.default_rng(20261125))
    fakes = [
        make_fake_tensor(kind, shape, strides, assumed_align=16)
        for _, kind, shape, strides in operands.arguments
    ]
    buffers = Buffers()
    arrays = [buffers.array(argument[0]) for argument in operands.arguments]
    start = time.perf_counter()
    try:
        host = HostProgram(example.compile(folder, fakes))
        arguments = [*(_Tensor(array.ctypes.data) for array in arrays), ctypes.c_void_p(0)]
        runs = emulated_launch(host, arguments, buffers.ranges, Emulator(LAZY, race=True))
    except EmulatorError as error:
        return Result(refused=str(error).splitlines()[0].rpartition("_0: ")[2])
    seconds = time.perf_counter() - start
    result = arrays[operands.result]
    if result.dtype == np.uint16:  # bf16
        result = (result.astype(np.uint32) << 16).view(np.float32)
    wrong = (result.astype(np.float64) - operands.expected)[operands.compared]
    relative = np.linalg.norm(wrong) / np.linalg.norm(operands.expected[operands.compared])
    return Result(float(relative), seconds, executed_forms(runs))


def executed_forms(runs: Iterable[KernelRun]) -> tuple[str, ...]:
    """The asynchronous ones."""
    counts = sum((run.counts for run in runs), start=Counter())
    return _asynchronous(form for form, n in counts.items() if n)


def _asynchronous(forms: Iterable[str]) -> tuple[str, ...]:
    """Without the collector's qualifier, which is the default (PTX ISA, tcgen05.mma)."""
    names = {form.removesuffix(".collector::a::discard") for form in forms}
    return tuple(sorted(name for name in names if ASYNCHRONOUS.match(name)))


def own_forms() -> tuple[str, ...]:
    """The asynchronous forms in the bundle's sm_100a kernels."""
    from .digests import EmulatedCase, small_cases

    return _asynchronous(
        instruction.form
        for case in small_cases(100)
        for kernel in EmulatedCase(case).function.kernels()
        for instruction in kernel.instructions
    )
