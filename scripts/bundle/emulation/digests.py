"""Digests of everything that v1's, v2's and v3's sm_90a kernels write, on a GPU and emulated.

A case is a configuration of the kernels at one size with random inputs, drawn from a seed by NumPy:
random e4m3 codes, so that the sums are not exact and every truncation shows. All memory that a call
writes starts as bytes 0xff. Where every digest of a case is the same on both, the emulator equals
the GPU bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import cutlass.cute as cute
import numpy as np
from cutlass import Float32, Int32
from cutlass.cute.runtime import make_ptr

from emulator import Buffers, EmulatedFunction, Emulator
from solutions.common.cutedsl.config import (
    CONFIGS,
    CONFIGS_100,
    Candidate,
    GemmConfig,
    candidates_for,
    only,
)
from solutions.common.cutedsl.layer import MoeLayer
from solutions.common.cutedsl.operands import INPUT_DTYPES, scratch_size
from solutions.common.cutedsl.padded_operands import BLOCK, POINTERS
from solutions.common.cutedsl.sm90 import padded_gemm as sm90
from solutions.common.cutedsl.sm100 import padded_gemm as sm100
from solutions.common.geometry import DEEPSEEK_V3_EP8, Geometry

OFFSET, FACTOR = 64, 2.5
EMULATED_SMS = 8  # blocks that share the work; the results do not depend on it
WRITTEN = ("scratch", "output", "c")  # the arrays that start as bytes 0xff
_SCHEDULING = {"counters"}  # how far the blocks' shared counters come depends on their number

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """kernel: of num_sms, has `compile`. arrays: by name, in the order of the arguments.

    numbers: the arguments behind the arrays. written: gives the parts of the arrays that are
    compared, by name.
    """

    name: str
    kernel: Callable
    arrays: Callable[[], Arrays]
    numbers: tuple
    written: Callable[[Arrays], Arrays]
    real: bool


def _codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random e4m3 codes but for NaN."""
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[(codes & 127) == 127] = 0
    return codes


def _scales(rng: np.random.Generator, size: float, *shape: int) -> np.ndarray:
    return (rng.uniform(0.5, 1.5, shape) * size).astype(np.float32)


def _unwritten(size: int) -> np.ndarray:
    return np.full(size, 0xFF, np.uint8)


# ---------------------------------------------------------------------------------------- v3
def _layer_inputs(
    geometry: Geometry, num_tokens: int, popular: dict[int, float] | None = None
) -> Arrays:
    """popular: how much the tokens prefer these local experts, the others of which have no rows;
    without it, all have some."""
    g, t, b = geometry, num_tokens, BLOCK
    e, h, i = g.num_local_experts, g.hidden_size, g.intermediate_size
    rng = np.random.default_rng(20261125)
    logits = rng.standard_normal((t, g.num_experts)).astype(np.float32)
    if popular is None:
        logits[:, OFFSET : OFFSET + e] += 1.0  # so that most tokens have local experts
    else:
        logits[:, OFFSET : OFFSET + e] -= 20.0
        for expert, more in popular.items():
            logits[:, OFFSET + expert] += 20.0 + more
    bias = (rng.standard_normal(g.num_experts) * 0.1).astype(np.float32)
    return {
        "routing_logits": logits,
        "routing_bias": (bias.view(np.uint32) >> 16).astype(np.uint16),
        "hidden_states": _codes(rng, t, h),
        "hidden_states_scale": _scales(rng, 1, h // b, t),
        "gemm1_weights": _codes(rng, e, 2 * i, h),
        "gemm1_weights_scale": _scales(rng, 1e-4, e, 2 * i // b, h // b),
        "gemm2_weights": _codes(rng, e, h, i),
        "gemm2_weights_scale": _scales(rng, 1e-3, e, h // b, i // b),
    }


def _layer_case(
    what: str,
    candidates: tuple[Candidate, ...],
    num_tokens: int,
    geometry: Geometry,
    backend: int = 90,
    popular: dict[int, float] | None = None,
) -> Case:
    real = geometry == DEEPSEEK_V3_EP8
    groups = MoeLayer(geometry, candidates, EMULATED_SMS, backend).scratch(num_tokens)

    def arrays() -> Arrays:
        return _layer_inputs(geometry, num_tokens, popular) | {
            "scratch": _unwritten(scratch_size(groups)),
            "output": _unwritten(num_tokens * geometry.hidden_size * 2),
        }

    def written(arrays: Arrays) -> Arrays:
        parts, start = {"output": arrays["output"]}, 0
        for group in groups:
            named: Any = group  # a NamedTuple of buffers, each group of a type of its own
            for name, buffer in zip(named._fields, named, strict=True):
                if name not in _SCHEDULING:
                    parts[name] = arrays["scratch"][start : start + buffer.size()]
                start += buffer.size()
        return parts

    size = "real" if real else "small"
    return Case(
        f"v3 {what}, {size}, T={num_tokens}",
        lambda num_sms: MoeLayer(geometry, candidates, num_sms, backend),
        arrays,
        (num_tokens, OFFSET, FACTOR),
        written,
        real,
    )


# ----------------------------------------------------------------------------------- v1, v2
def _padded_case(
    index: int, experts: int, max_m: int, n: int, k: int, real: bool, module: ModuleType = sm90
) -> Case:
    def arrays() -> Arrays:
        rng = np.random.default_rng(20261125)
        rows = rng.integers(0, max_m + 1, experts)
        rows[0], rows[1] = max_m, 0
        offsets = np.full(33, rows.sum(), np.int32)
        offsets[: experts + 1] = np.concatenate([[0], np.cumsum(rows)])
        return {
            "a": _codes(rng, experts, max_m, k),
            "a_scale": _scales(rng, 1, k // BLOCK, experts, max_m),
            "b": _codes(rng, experts, n, k),
            "b_scale": _scales(rng, 1e-4, experts, n // BLOCK, k // BLOCK),
            "offsets": offsets,
            "c": _unwritten(experts * max_m * n * 2),
        }

    def written(arrays: Arrays) -> Arrays:
        rows = np.diff(arrays["offsets"][: experts + 1])
        c = arrays["c"].view(np.uint16).reshape(experts, max_m, n)
        return {"c": np.concatenate([c[e, : rows[e]].ravel() for e in range(experts)])}

    return Case(
        f"padded GEMM tile {index}, {'real' if real else 'small'}, N={n} K={k}",
        lambda num_sms: module.PaddedGemmKernel(module.TILES[index], num_sms),
        arrays,
        (experts, max_m, n, k),
        written,
        real,
    )


def cases() -> list[Case]:
    """All of sm_90a: each configuration of v3 alone, the choice among them, v1's and v2's tiles."""
    swap_ab = replace(DEEPSEEK_V3_EP8, hidden_size=512, intermediate_size=256)
    wide = replace(DEEPSEEK_V3_EP8, intermediate_size=256)  # tokens on M need this hidden_size
    layers = [
        (f"configuration {number}", only(config), num_tokens, geometry)
        for number, config in enumerate(CONFIGS, 1)
        for num_tokens, geometry in (
            (40, swap_ab if config.swap_ab else wide),
            (7, DEEPSEEK_V3_EP8),
        )
    ]
    return [
        *(_layer_case(*layer) for layer in layers),
        _layer_case("choice", candidates_for(60), 60, wide),
        *(_padded_case(index, 3, 140, 384, 512, False) for index in range(len(sm90.TILES))),
        _padded_case(3, 32, 4, 4096, 7168, True),
        _padded_case(3, 32, 4, 7168, 2048, True),
    ]


def small_cases(backend: int) -> list[Case]:
    """For mutants: every configuration of sm_90a or sm_100a (backend 90 or 100) at a size that is
    small, but fills the ring of slots more than once per block."""
    few = {3: 5.0, 9: 6.0, 20: 2.0}  # experts with rows; with many the race checker takes long
    short = replace(DEEPSEEK_V3_EP8, hidden_size=1024, intermediate_size=256)
    wide = replace(DEEPSEEK_V3_EP8, intermediate_size=256)  # gathered tokens need this hidden_size
    pairs = replace(wide, intermediate_size=128)
    module = sm90 if backend == 90 else sm100
    configs = CONFIGS if backend == 90 else CONFIGS_100

    def size(config: GemmConfig) -> tuple:
        """Tokens, geometry and what `_layer_case` takes behind it."""
        if config.paired:  # two of the experts have two tiles of 64 rows
            return 90, pairs, backend, few
        if config.swap_ab and config.cluster == 1:
            return 24, short, backend
        return 24, wide, backend, few

    return [
        *(
            _layer_case(f"configuration {number}", only(config), *size(config))
            for number, config in enumerate(configs, 1)
        ),
        _layer_case("choice", candidates_for(60, backend), 24, wide, backend, few),
        *(
            # a tile whose rows a warpgroup skips comes around the ring, too
            _padded_case(i, 3, 140, 384, BLOCK * (tile.num_stages + 4), False, module)
            for i, tile in enumerate(module.TILES)
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------------- both devices
def _digests(case: Case, arrays: Arrays) -> dict[str, str]:
    return {
        name: hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()[:16]
        for name, part in case.written(arrays).items()
    }


class EmulatedCase:
    """A case compiled for the emulator, to be run in any number of ways."""

    def __init__(self, case: Case, num_sms: int = EMULATED_SMS, line_info: bool = False):
        """line_info: errors name the line of the CuTe DSL program; compiling takes longer."""
        self._case, self._buffers = case, Buffers()
        self._given = case.arrays()
        self._arrays = {name: self._buffers.array(array) for name, array in self._given.items()}
        dtypes = INPUT_DTYPES if "scratch" in self._arrays else POINTERS
        pointers = [make_ptr(dtype, 16, cute.AddressSpace.gmem) for dtype in dtypes]
        pointers += [pointers[0]] * (len(self._arrays) - len(pointers))  # of any type
        numbers = [Float32(x) if isinstance(x, float) else Int32(x) for x in case.numbers]
        self.function = EmulatedFunction(
            case.kernel(num_sms).compile(cute.KeepPTX, cute.GenerateLineInfo(line_info)),
            [*pointers, *numbers, pointers[0]],  # the stream's handle is passed as an address
            lambda: self._buffers.ranges,
        )

    def digests(self, emulator: Emulator | None = None) -> dict[str, str]:
        """Of each written array, by name; raises KernelError as the emulator does."""
        for name, given in self._given.items():
            if name in WRITTEN:
                self._arrays[name][...] = given
        self.function.emulator = emulator or Emulator()
        addresses = (array.ctypes.data for array in self._arrays.values())
        self.function(*addresses, *self._case.numbers, 0)
        return _digests(self._case, self._arrays)


def gpu_digests(case: Case) -> dict[str, str]:
    """The same on the current CUDA device."""
    import torch

    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    function = case.kernel(num_sms).compile(options="--enable-tvm-ffi")
    arrays = case.arrays()
    tensors = {
        name: torch.from_numpy(array.reshape(-1).view(np.uint8)).cuda()
        for name, array in arrays.items()
    }
    function(
        *(tensor.data_ptr() for tensor in tensors.values()), *case.numbers,
        torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip
    torch.cuda.synchronize()
    results = {
        name: tensors[name].cpu().numpy().view(array.dtype).reshape(array.shape)
        for name, array in arrays.items()
    }
    return _digests(case, results)
