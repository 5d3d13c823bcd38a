"""TensorRT-LLM's generated kernels for Blackwell: the whole layer is one call of FlashInfer."""

from inspect import signature

import torch
from flashinfer import autotune
from flashinfer.fused_moe import trtllm_fp8_block_scale_moe

from ..common.geometry import Geometry

DEEPSEEK_V3_ROUTING = 2  # RoutingMethodType.DeepSeekV3
MAJOR_K = 0  # WeightLayout.MajorK: weights as they are, [E, N, K]
TUNE_MAX_NUM_TOKENS = 16384  # the first power of two above the largest workload, T = 14107

# FlashInfer 0.7 writes into a given tensor, 0.6 returns one of its own.
_TAKES_OUTPUT = "output" in signature(trtllm_fp8_block_scale_moe).parameters
_tuned: set[torch.device] = set()  # devices whose tile sizes have been measured in this process


def _call(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """One call of the library; names and defaults hold in FlashInfer 0.6.13 to 0.7.2."""
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    result = trtllm_fp8_block_scale_moe(
        routing_logits=logits,
        routing_bias=bias,
        hidden_states=hidden,
        hidden_states_scale=hidden_scale,
        gemm1_weights=w1,
        gemm1_weights_scale=w1_scale,
        gemm2_weights=w2,
        gemm2_weights_scale=w2_scale,
        num_experts=geometry.num_experts,
        top_k=geometry.top_k,
        n_group=geometry.num_groups,
        topk_group=geometry.num_top_groups,
        intermediate_size=geometry.intermediate_size,
        local_expert_offset=offset,
        local_num_experts=geometry.num_local_experts,
        routed_scaling_factor=factor,
        routing_method_type=DEEPSEEK_V3_ROUTING,
        use_shuffled_weight=False,
        weight_layout=MAJOR_K,
        tune_max_num_tokens=TUNE_MAX_NUM_TOKENS,
        **({"output": output} if _TAKES_OUTPUT else {}),
    )
    if not _TAKES_OUTPUT:
        # a tensor, or, announced for 0.8, a list of one
        output.copy_(result if isinstance(result, torch.Tensor) else result[0])


def moe(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> None:
    """The whole layer at any geometry, T > 0; inputs and output are checked already.

    The first call on a device measures the library's tile sizes for every power of two of tokens
    (some seconds); later calls only look them up.
    """
    if output.device in _tuned:
        _call(geometry, inputs, output)
        return
    with autotune(True):
        _call(geometry, inputs, output)
    _tuned.add(output.device)
