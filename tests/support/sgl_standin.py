"""sgl-kernel's ops in PyTorch, for machines without the package; CPU tensors only.

The schemas are the package's (sgl-kernel 0.3.21, sglang-kernel 0.4.2 to 0.4.4), so a call that does
not bind here does not bind there. What the ops leave unwritten is left unwritten here as well, and
an index out of range is an error instead of a wild read.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import torch

HAS_SGL_KERNEL = find_spec("sgl_kernel") is not None

SCHEMAS = (
    "moe_fused_gate(Tensor input, Tensor bias, int num_expert_group, int topk_group, int topk, "
    "int num_fused_shared_experts, float routed_scaling_factor, "
    "bool apply_routed_scaling_factor_on_output) -> (Tensor[])",
    "fp8_blockwise_scaled_grouped_mm(Tensor output, Tensor a_ptrs, Tensor b_ptrs, "
    "Tensor out_ptrs, Tensor a_scales_ptrs, Tensor b_scales_ptrs, Tensor a, Tensor b, "
    "Tensor scales_a, Tensor scales_b, Tensor stride_a, Tensor stride_b, Tensor stride_c, "
    "Tensor layout_sfa, Tensor layout_sfb, Tensor problem_sizes, Tensor expert_offsets, "
    "Tensor workspace) -> ()",
    "es_fp8_blockwise_scaled_grouped_mm(Tensor output, Tensor a, Tensor b, Tensor scales_a, "
    "Tensor scales_b, Tensor stride_a, Tensor stride_b, Tensor stride_d, Tensor problem_sizes, "
    "Tensor expert_offsets, Tensor workspace) -> ()",
    "apply_shuffle_mul_sum(Tensor input, Tensor output, Tensor permutation, Tensor? factors) -> ()",
)


def moe_fused_gate(logits, bias, groups, top_groups, top_k, shared, factor, scale_output):
    assert logits.dtype == bias.dtype == torch.float32 and shared == 0 and scale_output
    scores = logits.sigmoid()
    keys = (scores + bias).view(len(logits), groups, -1)
    best_groups = keys.topk(2).values.sum(-1).sort(descending=True, stable=True).indices
    kept = torch.zeros(keys.shape[:2], dtype=torch.bool)
    kept.scatter_(1, best_groups[:, :top_groups], True)
    keys = keys.masked_fill(~kept[:, :, None], float("-inf")).flatten(1)
    ids = keys.sort(descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    return [weights / weights.sum(1, keepdim=True) * factor, ids.int()]


def _behind(pointer: torch.Tensor, *shape: int) -> torch.Tensor:
    """The contiguous tensor that starts at a pointer, whatever the view says of its size."""
    flat = torch.empty(0, dtype=pointer.dtype).set_(pointer.untyped_storage())
    start = pointer.storage_offset()
    return flat[start : start + torch.Size(shape).numel()].view(shape)


def es_grouped_mm(out, a, b, scales_a, scales_b, stride_a, stride_b, stride_out, sizes, offsets,
                  workspace):  # fmt: skip
    experts, k, n = b.shape
    assert workspace.dtype == torch.uint8 and workspace.dim() == 1
    assert sizes.shape == (experts, 3) and offsets.shape == (experts,)
    rows = int((offsets + sizes[:, 0]).max())
    a, scales_a = _behind(a, rows, k), _behind(scales_a, rows, k // 128)
    b, scales_b = _behind(b, experts, n, k), _behind(scales_b, experts, n // 128, k // 128)
    out = _behind(out, rows, n)
    for expert, (m, *columns_and_depth) in enumerate(sizes.tolist()):
        assert columns_and_depth == [n, k]
        strides = [int(stride[expert]) for stride in (stride_a, stride_b, stride_out)]
        assert strides == [k, k, n]
        mine = slice(int(offsets[expert]), int(offsets[expert]) + m)
        x = a[mine].float() * scales_a[mine].repeat_interleave(128, 1)
        scale = scales_b[expert].repeat_interleave(128, 0).repeat_interleave(128, 1)
        out[mine] = (x @ (b[expert].float() * scale).T).to(out.dtype)


def grouped_mm(out, a_ptrs, b_ptrs, out_ptrs, a_scales_ptrs, b_scales_ptrs, a, b, scales_a,
               scales_b, stride_a, stride_b, stride_c, layout_a, layout_b, sizes, offsets,
               workspace):  # fmt: skip
    experts = len(b)
    for pointers in (a_ptrs, b_ptrs, out_ptrs, a_scales_ptrs, b_scales_ptrs):
        assert pointers.shape == (experts,) and pointers.dtype == torch.int64
        pointers.fill_(-1)  # scratch of the op
    for layout in (layout_a, layout_b):
        assert layout.shape == (experts, 5) and layout.dtype == torch.int32
        layout.fill_(-1)
    es_grouped_mm(out, a, b, scales_a, scales_b, stride_a, stride_b, stride_c, sizes, offsets,
                  workspace)  # fmt: skip


def apply_shuffle_mul_sum(rows, output, permutation, factors):
    tokens, top_k = len(output), len(permutation) // len(output)
    assert len(permutation) == tokens * top_k and factors.numel() == tokens * top_k
    assert factors.dtype == output.dtype == rows.dtype
    assert permutation.min() >= 0 and permutation.max() < len(rows)
    weighted = rows[permutation.long()].float() * factors.float()[:, None]
    output.copy_(weighted.view(tokens, top_k, -1).sum(1))


def install() -> None:
    """Make `import sgl_kernel` work where the package is not installed."""
    if HAS_SGL_KERNEL or "sgl_kernel" in sys.modules:
        return
    library = torch.library.Library("sgl_kernel", "DEF")
    functions = (moe_fused_gate, grouped_mm, es_grouped_mm, apply_shuffle_mul_sum)
    for schema, function in zip(SCHEMAS, functions, strict=True):
        library.define(schema)
        library.impl(schema.partition("(")[0], function, "CPU")
    module = ModuleType("sgl_kernel")
    module.__spec__ = ModuleSpec("sgl_kernel", loader=None)
    module.__version__ = "stand-in"
    module.library = library  # keeps the ops registered
    sys.modules["sgl_kernel"] = module
