"""TensorRT-LLM's kernels for Hopper through FlashInfer: routing, one preparing kernel, the layer.

`cutlass_fused_moe` takes bf16 activations and quantises them itself, 1 x 128, which rounds them to
e4m3 a second time; the weights stay fp8 with their 128 x 128 scales. Its grouped GEMMs are
DeepGEMM's, compiled by nvcc at the first call of each tile configuration (2 s each) and kept in
~/.tensorrt_llm.
"""

import torch
import triton
import triton.language as tl
from flashinfer.fused_moe import cutlass_fused_moe, fused_topk_deepseek
from flashinfer.jit.fused_moe import gen_cutlass_fused_moe_sm90_module

from ..common.geometry import Geometry
from ..common.triton_stages.launch import Launcher


def require_module() -> None:
    """Raise RuntimeError if FlashInfer would have to compile its whole Hopper module first.

    That is 182 sources in FlashInfer 0.6.13, an estimated 20 minutes on 16 cores.
    """
    module = gen_cutlass_fused_moe_sm90_module()
    if not module.is_compiled:
        raise RuntimeError(
            f"FlashInfer's module {module.name} is not built: "
            "run python scripts/build_flashinfer_sm90.py"
        )


@triton.jit(do_not_specialize=["num_tokens", "local_expert_offset"])
def prepare_kernel(
    hidden_ptr,  # fp8 [T, H]
    hidden_scale_ptr,  # fp32 [H / BLOCK, T]
    topk_ids_ptr,  # in and out: int32 [T, TOP_K]
    dequantized_ptr,  # out: bf16 [T, H]
    num_tokens,
    local_expert_offset,
    H: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Dequantise a token's activations; renumber its experts so that the local ones come first."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * NUM_BLOCKS + tl.arange(0, NUM_BLOCKS)
    scale = tl.load(hidden_scale_ptr + block * num_tokens + token, mask=block < H // BLOCK)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    hidden = tl.load(hidden_ptr + token * H + column, mask=column < H).to(tl.float32)
    dequantized = (hidden * scale[:, None]).to(tl.bfloat16)
    tl.store(dequantized_ptr + token * H + column, dequantized, mask=column < H)
    if tl.program_id(1) == 0:
        ids_ptr = topk_ids_ptr + token * TOP_K + tl.arange(0, TOP_K)
        expert = tl.load(ids_ptr) - local_expert_offset
        tl.store(ids_ptr, tl.where(expert < 0, expert + NUM_EXPERTS, expert))


_prepare = Launcher(
    prepare_kernel,
    hidden_ptr=torch.float8_e4m3fn,
    hidden_scale_ptr=torch.float32,
    topk_ids_ptr=torch.int32,
    dequantized_ptr=torch.bfloat16,
)


def moe(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """The whole layer at any geometry, T > 0; inputs and output are checked already.

    The library knows the local experts as a multiple of their number (ep_rank). Any offset will
    do, as the experts are renumbered (id - offset) modulo num_experts: rank 0 has the local ones.
    """
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    (num_tokens, h), top_k, device = hidden.shape, geometry.top_k, hidden.device
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=device)
    ids = torch.empty((num_tokens, top_k), dtype=torch.int32, device=device)
    fused_topk_deepseek(
        scores=logits,
        bias=bias,
        n_group=geometry.num_groups,
        topk_group=geometry.num_top_groups,
        topk=top_k,
        routed_scaling_factor=factor,
        topk_values=weights,
        topk_indices=ids,
        skip_check=True,  # 20 us of Python; shapes and device are those that it allows
    )
    x = torch.empty((num_tokens, h), dtype=torch.bfloat16, device=device)
    num_blocks = 8  # of 128 activations, per program
    _prepare(
        (num_tokens, triton.cdiv(h, num_blocks * geometry.block), 1),
        (hidden, hidden_scale, ids, x, num_tokens, offset),
        (h, geometry.num_experts, top_k, geometry.block, num_blocks),
        num_warps=4,
    )
    cutlass_fused_moe(
        input=x,
        token_selected_experts=ids,
        token_final_scales=weights,
        fc1_expert_weights=w1,
        fc2_expert_weights=w2,
        output_dtype=torch.bfloat16,
        quant_scales=[w1_scale, w2_scale],
        ep_size=geometry.num_experts // geometry.num_local_experts,
        ep_rank=0,
        output=output,
        use_deepseek_fp8_block_scale=True,
    )
