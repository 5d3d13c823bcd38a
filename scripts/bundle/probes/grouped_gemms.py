"""FP8 block-scaled grouped GEMM kernels behind one interface, to compare them with each other.

y[r] = a[r] @ b[e].T for the rows r of expert e, with one scale per row and 128 columns of a, and
one per 128 x 128 block of b. To add a kernel, write a factory and list it in KERNELS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F

from ..dataset.manifest import Requires
from .problem import BLOCK, FP8, Launch, Problem


@dataclass(frozen=True)
class Kernel:
    """A kernel, what it needs, and how to prepare its launch on a problem."""

    name: str
    requires: Requires
    make: Callable[[Problem], Launch]
    extract: Callable[[Problem, torch.Tensor], torch.Tensor] = lambda _, result: result
    """The rows [rows, N] bf16 of what a launch returns; not part of its time."""
    compile_ahead: Callable[[Sequence[Problem]], None] | None = None
    """Compiles for all problems in parallel, where that takes long."""


# PyTorch ---------------------------------------------------------------------------------------


def torch_gemm(problem: Problem) -> Launch:
    """What torch_moe does: one expert after the other, dequantised and multiplied in fp32."""
    from solutions.torch_moe.main import dequantize

    y = torch.empty(problem.rows, problem.n, dtype=torch.bfloat16, device=problem.a.device)
    ends = [*accumulate(problem.rows_per_expert)]

    def launch() -> torch.Tensor:
        for expert, (end, count) in enumerate(zip(ends, problem.rows_per_expert, strict=True)):
            if count:
                rows = slice(end - count, end)
                a = dequantize(problem.a[rows], problem.a_scale[rows], BLOCK)
                b = dequantize(problem.b[expert], problem.b_scale[expert], BLOCK)
                y[rows] = F.linear(a, b)
        return y

    return launch


# sgl-kernel ------------------------------------------------------------------------------------


def sgl(problem: Problem) -> Launch:
    """fp8_blockwise_scaled_grouped_mm, one launch for all experts."""
    experts, n, k = problem.b.shape

    def scratch(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=problem.a.device)

    pointers = [scratch(torch.int64, experts) for _ in range(5)]
    layouts = [scratch(torch.int32, experts, 5) for _ in range(2)]
    stride_k, stride_n = (scratch(torch.int64, experts).fill_(size) for size in (k, n))
    y, sizes, workspace = _sgl_buffers(problem)
    operation = torch.ops.sgl_kernel.fp8_blockwise_scaled_grouped_mm.default

    def launch() -> torch.Tensor:
        operation(
            y, *pointers, problem.a, problem.b.transpose(1, 2), problem.a_scale,
            problem.b_scale.transpose(1, 2), stride_k, stride_k, stride_n, *layouts, sizes,
            problem.offsets[:-1], workspace,
        )  # fmt: skip
        return y

    return launch


def sgl_es(problem: Problem) -> Launch:
    """es_fp8_blockwise_scaled_grouped_mm: experts sorted by size, a launch for each class."""
    _, n, k = problem.b.shape
    stride_k, stride_n = (
        torch.full((len(problem.rows_per_expert),), size, device=problem.a.device)
        for size in (k, n)
    )
    y, sizes, workspace = _sgl_buffers(problem)
    operation = torch.ops.sgl_kernel.es_fp8_blockwise_scaled_grouped_mm.default

    def launch() -> torch.Tensor:
        operation(
            y, problem.a, problem.b.transpose(1, 2), problem.a_scale,
            problem.b_scale.transpose(1, 2), stride_k, stride_k, stride_n, sizes,
            problem.offsets[:-1], workspace,
        )  # fmt: skip
        return y

    return launch


def _sgl_buffers(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, the sizes (m, n, k) of each expert's GEMM, and SGLang's size of workspace."""
    import sgl_kernel  # noqa: F401  registers the operations

    device = problem.a.device
    y = torch.empty(problem.rows, problem.n, dtype=torch.bfloat16, device=device)
    sizes = torch.tensor(
        [(m, problem.n, problem.k) for m in problem.rows_per_expert],
        dtype=torch.int32,
        device=device,
    )
    return y, sizes, torch.empty(90_000, dtype=torch.uint8, device=device)


# Triton ----------------------------------------------------------------------------------------

# The kernel takes a constant number of experts; one that has no rows costs nothing.
TRITON_EXPERTS = 32


class TritonGemm:
    """GEMM2 of triton_fused_moe_v3 with all combine weights 1; N must be a multiple of 256."""

    def __init__(self) -> None:
        from triton import knobs

        from solutions.common.triton_stages.launch import Launcher
        from solutions.triton_fused_moe_v3.grouped_gemm import gemm2_weighted_kernel
        from solutions.triton_fused_moe_v3.tiles import tiles_for

        self.kernel = gemm2_weighted_kernel
        self.interpreted = knobs.runtime.interpret
        self.tiles_for = tiles_for
        self.pointers = {
            "act_ptr": FP8,
            "act_scale_ptr": torch.float32,
            "w_scale_ptr": torch.float32,
            "expert_offsets_ptr": torch.int32,
            "row_weight_ptr": torch.float32,
            "y_ptr": torch.bfloat16,
        }
        self.launcher = Launcher(self.kernel, **self.pointers)

    def tile(self, problem: Problem):
        """The tile that the solution takes for as many rows per expert."""
        return self.tiles_for(problem.like_tokens, problem.a.device).gemm2

    def constants(self, problem: Problem) -> tuple:
        tile = self.tile(problem)
        shape = (problem.n, problem.k, TRITON_EXPERTS, BLOCK)
        return (*shape, tile.block_t, tile.swap_ab, tile.num_stages, False)

    def descriptor(self, problem: Problem):
        from triton.tools.tensor_descriptor import TensorDescriptor

        experts, n, k = problem.b.shape
        return TensorDescriptor(problem.b, [experts * n, k], [k, 1], [BLOCK, BLOCK])

    def make(self, problem: Problem) -> Launch:
        if len(problem.rows_per_expert) > TRITON_EXPERTS or problem.n % (2 * BLOCK):
            raise ValueError(
                f"problem: expected at most {TRITON_EXPERTS} experts and N a multiple of "
                f"{2 * BLOCK}, got {len(problem.rows_per_expert)} and {problem.n}"
            )
        device, rows, tile = problem.a.device, problem.rows, self.tile(problem)
        offsets = problem.offsets.new_full((TRITON_EXPERTS + 1,), rows)
        offsets[: len(problem.offsets)] = problem.offsets
        a_scale = problem.a_scale.t().contiguous()
        weight = torch.ones(rows, device=device)
        y = torch.empty(rows, problem.n, dtype=torch.bfloat16, device=device)
        tiles = sum(-(-m // tile.block_t) for m in problem.rows_per_expert)
        grid = (min(self.sms(device) * tile.programs_per_sm, tiles * problem.n // 256), 1, 1)
        arguments = (
            problem.a, a_scale, self.descriptor(problem), problem.b_scale, offsets, weight, y, rows,
        )  # fmt: skip
        constants = self.constants(problem)

        def launch() -> torch.Tensor:
            self.launcher(grid, arguments, constants, num_warps=tile.num_warps, launch_pdl=False)
            return y

        return launch

    @staticmethod
    def sms(device: torch.device) -> int:
        if device.type == "cpu":
            return 1
        return torch.cuda.get_device_properties(device).multi_processor_count

    def compile_ahead(self, problems: Sequence[Problem]) -> None:
        if self.interpreted:
            return
        import triton

        different = {(self.constants(p), self.tile(p).num_warps): p for p in problems}
        with ThreadPoolExecutor(8) as executor, triton.AsyncCompileMode(executor):
            for (constants, num_warps), problem in different.items():
                arguments = [
                    self.pointers.get(name, self.descriptor(problem) if name == "w" else 1)
                    for name in self.kernel.arg_names[:8]
                ]
                self.kernel.warmup(
                    *arguments, *constants, grid=(1, 1, 1), num_warps=num_warps, launch_pdl=False
                )


# CuTe DSL --------------------------------------------------------------------------------------


def _batch(problem: Problem) -> list[int]:
    """Rows of each expert in a batch padded to the tallest."""
    most = -(-max(problem.rows_per_expert) // 4) * 4  # TMA: strides of 16 bytes, a scale has 4
    return [most] * len(problem.rows_per_expert)


def cutedsl_padded(problem: Problem) -> Launch:
    """The kernel of cutedsl_moe_fp8_v1 and _v2; padding is not part of its time."""
    from solutions.common.cutedsl.padded_gemm import padded_gemm

    experts, _, k = problem.b.shape
    a, a_scale = problem.spread(_batch(problem))
    padded = a.view(experts, -1, k)
    padded_scale = a_scale.t().contiguous().view(k // BLOCK, experts, -1)
    offsets = problem.offsets
    return lambda: padded_gemm(padded, padded_scale, problem.b, problem.b_scale, offsets)


def cutedsl_rows(problem: Problem, padded: torch.Tensor) -> torch.Tensor:
    return padded.flatten(0, 1)[problem.places(_batch(problem))]


def cutedsl_v3(problem: Problem) -> Launch:
    """The persistent kernel of cutedsl_moe_fp8_v3 with GEMM2's tiles only."""
    from ..probes.kernels.cutedsl_v3_gemm import cutedsl_v3

    return cutedsl_v3(problem)


# Solutions whose GEMMs are not among the kernels, and why.
NOT_ALONE = {
    "flashinfer_moe": "its GEMMs on sm_90, TensorRT-LLM's, are reached through cutlass_fused_moe "
    "only, which routes rows, multiplies twice and combines in one call"
}


def kernels() -> list[Kernel]:
    """All kernels, also those that cannot run here."""
    sgl_requires = Requires(
        compute_capabilities=[90, 100],
        modules=["sgl_kernel"],
        install="pip install sglang-kernel==0.4.4 'torch==2.11.*'",
    )
    sm_90 = {"compute_capabilities": [90]}
    triton_requires = Requires(
        compute_capabilities=[90, 100], cpu=True, modules=["triton"], install="pip install triton"
    )
    cutedsl_requires = Requires(
        compute_capabilities=[90],
        modules=["cutlass", "tvm_ffi"],
        install='pip install "nvidia-cutlass-dsl>=4.8" apache-tvm-ffi',
    )
    triton_gemm = TritonGemm()
    return [
        Kernel("torch_gemm", Requires(cpu=True), torch_gemm),
        Kernel("sgl_grouped_mm", sgl_requires, sgl),
        Kernel("sgl_es_grouped_mm", sgl_requires.model_copy(update=sm_90), sgl_es),
        Kernel(
            "triton_v3_gemm",
            triton_requires,
            triton_gemm.make,
            compile_ahead=triton_gemm.compile_ahead,
        ),
        Kernel("cutedsl_padded_gemm", cutedsl_requires, cutedsl_padded, cutedsl_rows),
        Kernel("cutedsl_v3_gemm", cutedsl_requires, cutedsl_v3),
    ]
