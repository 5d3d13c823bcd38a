"""sgl-kernel's FP8 block-scaled grouped GEMMs, and the buffers around them.

Importing sgl_kernel (PyPI: sglang-kernel, up to 0.3.21 sgl-kernel) registers torch.ops.sgl_kernel;
its ops are called as they are, which is cheaper than through the package's wrappers.

The GEMMs take rows grouped by expert without padding: expert e's rows start at expert_offsets[e],
and their number is read from problem sizes on the device, so the host never waits for them. What
lies in the buffers past the last row is never read.
"""

from collections.abc import Callable
from enum import Enum
from functools import lru_cache, wraps
from threading import get_ident

import sgl_kernel  # noqa: F401
import torch

from ..arguments import capturing
from ..geometry import Geometry, max_rows

WORKSPACE_BYTES = 90_000  # as SGLang's own layers: a few TMA descriptors per multiprocessor
SMALL_M_ROWS = 2048  # fp8_blockwise_scaled_grouped_mm takes its other kernel above

_grouped_mm = torch.ops.sgl_kernel.fp8_blockwise_scaled_grouped_mm.default
_es_grouped_mm = torch.ops.sgl_kernel.es_fp8_blockwise_scaled_grouped_mm.default


class Kernel(Enum):
    """Kernels of a grouped GEMM. The first two are one op, which goes by the height of `a`.

    `a` is a buffer whose height says nothing about the rows in it, and the op uses it for that
    choice only. So each is handed a view of the same memory of the height that asks for it.
    """

    SMALL_M = "fp8_blockwise, a.size(0) <= 2048: weights on the tensor core's M side, 32 rows on N"
    LARGE_M = "fp8_blockwise, a.size(0) > 2048: tiles of 128 rows"
    ES = "es_fp8_blockwise: each expert by its own rows, <= 32, <= 64 or more; sm_90 only"


@lru_cache
def _strides(geometry: Geometry, device: torch.device) -> torch.Tensor:
    """int64 [3, E]: H, I and 2I for every expert.

    The host waits for this copy, so they are there for calls on any stream. That is not allowed
    during the capture of a CUDA graph: the first call of a process must come before.
    """
    i = geometry.intermediate_size
    values = (geometry.hidden_size, i, 2 * i)
    return torch.tensor([[value] * geometry.num_local_experts for value in values], device=device)


class GroupedGemms:
    """Both GEMMs of the layer for T tokens: fixed-size operands, buffers, and the calls.

    x [rows, H] fp8 with x_scale [rows, H / 128] -> up_gate [rows, 2I] bf16;
    act [rows, I] fp8 with act_scale [rows, I / 128] -> y [rows, H] bf16. Scales are fp32. y has
    one row more than GEMM2 can write. expert_offsets int32 [E + 1] and the problem sizes,
    gemm1_sizes and gemm2_sizes int32 [E, 3], are the caller's to fill on the device.
    """

    def __init__(self, geometry: Geometry, num_tokens: int, device: torch.device):
        """Allocate everything, uninitialised."""
        h, i, block = geometry.hidden_size, geometry.intermediate_size, geometry.block
        experts, rows = geometry.num_local_experts, max_rows(geometry, num_tokens)

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        tall = max(rows, SMALL_M_ROWS + 1)
        self._tall_x = empty(tall, h, dtype=torch.float8_e4m3fn)
        self._tall_act = empty(tall, i, dtype=torch.float8_e4m3fn)
        self._short_x = self._tall_x[:SMALL_M_ROWS]
        self._short_act = self._tall_act[:SMALL_M_ROWS]
        self.x, self.act = self._tall_x[:rows], self._tall_act[:rows]
        self.x_scale = empty(rows, h // block, dtype=torch.float32)
        self.act_scale = empty(rows, i // block, dtype=torch.float32)
        self.up_gate = empty(rows, 2 * i, dtype=torch.bfloat16)
        self.y = empty(rows + 1, h, dtype=torch.bfloat16)
        self.expert_offsets = empty(experts + 1, dtype=torch.int32)
        self.gemm1_sizes = empty(experts, 3, dtype=torch.int32)
        self.gemm2_sizes = empty(experts, 3, dtype=torch.int32)
        self._starts = self.expert_offsets[:-1]
        self._stride_h, self._stride_i, self._stride_2i = _strides(geometry, device)
        # scratch of the op: addresses per expert of a, b, out and the scales; layouts of the scales
        self._pointers = [empty(experts, dtype=torch.int64) for _ in range(5)]
        self._layouts = [empty(experts, 5, dtype=torch.int32) for _ in range(2)]
        self._workspace = empty(WORKSPACE_BYTES, dtype=torch.uint8)

    def gemm1(self, kernel: Kernel, weights: torch.Tensor, scales: torch.Tensor) -> None:
        """up_gate = x @ weights[e].T; weights [E, 2I, H] fp8, scales [E, 2I / 128, H / 128]."""
        a = self._short_x if kernel is Kernel.SMALL_M else self._tall_x
        self._multiply(kernel, self.up_gate, a, self.x_scale, weights, scales, self._stride_h,
                       self._stride_2i, self.gemm1_sizes)  # fmt: skip

    def gemm2(self, kernel: Kernel, weights: torch.Tensor, scales: torch.Tensor) -> None:
        """y = act @ weights[e].T; weights [E, H, I] fp8, scales [E, H / 128, I / 128] fp32."""
        a = self._short_act if kernel is Kernel.SMALL_M else self._tall_act
        self._multiply(kernel, self.y, a, self.act_scale, weights, scales, self._stride_i,
                       self._stride_h, self.gemm2_sizes)  # fmt: skip

    def _multiply(self, kernel, out, a, a_scale, weights, scales, k, n, sizes) -> None:
        if kernel is Kernel.ES:
            _es_grouped_mm(out, a, weights.mT, a_scale, scales.mT, k, k, n, sizes, self._starts,
                           self._workspace)  # fmt: skip
        else:
            _grouped_mm(out, *self._pointers, a, weights.mT, a_scale, scales.mT, k, k, n,
                        *self._layouts, sizes, self._starts, self._workspace)  # fmt: skip


def reused(make: Callable) -> Callable:
    """Decorator: keep the buffers of make(geometry, num_tokens, device) for the next same call.

    Creating the dozen tensors that the ops want takes longer than the rest of a call's host work.
    The latest ones are kept, per stream and thread: calls on one stream run one after the other,
    so none sees its buffers change. A call that is captured into a CUDA graph gets buffers of its
    own, from the graph's memory: replayed, it may follow any other call, and outlive it.
    """

    @lru_cache(maxsize=1)
    def cached(geometry, num_tokens, device, *_stream_and_thread):
        return make(geometry, num_tokens, device)

    @wraps(make)
    def get(geometry: Geometry, num_tokens: int, device: torch.device):
        if capturing(device):
            return make(geometry, num_tokens, device)
        on_cuda = device.type == "cuda"
        stream = torch._C._cuda_getCurrentRawStream(device.index) if on_cuda else 0
        return cached(geometry, num_tokens, device, stream, get_ident())

    return get
