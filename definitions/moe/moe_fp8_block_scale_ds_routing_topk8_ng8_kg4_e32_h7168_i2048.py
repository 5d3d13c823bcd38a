"""Reference of DeepSeek-V3's MoE layer, fp8 with block scales, on one expert-parallel rank.

Routing ("noaux_tc" in DeepSeek-V3's model code; arXiv 2412.19437, section 2.1.2) ranks experts by
sigmoid(logit) + bias, keeps the best 8 inside the best 4 of 8 groups, and weights these 8 by the
sigmoid alone. The rank owns the experts [local_expert_offset, local_expert_offset + 32) and
computes their share of the output.

fp32 throughout, with no requantisation between the two GEMMs, and the same bits in every run on
one device. The cost is, on purpose, that of a plain implementation: it dequantises all local
experts to fp32 first, then visits those that were hit.
"""

import torch

NUM_EXPERTS = 256
NUM_LOCAL_EXPERTS = 32
NUM_GROUPS = 8
TOPK_GROUPS = 4
TOP_K = 8
HIDDEN_SIZE = 7168
INTERMEDIATE_SIZE = 2048
BLOCK_SIZE = 128  # edge of a weight block; columns per activation scale


def check_arguments(tensors, local_expert_offset, routed_scaling_factor):
    """Raises ValueError naming the first argument of wrong type, dtype, shape, device or range.

    tensors: dict of the tensor arguments by name. Their values are not looked at: NaN and Inf
    propagate as arithmetic has it.
    """
    logits = tensors["routing_logits"]
    seq_len = logits.shape[0] if getattr(logits, "ndim", None) == 2 else "seq_len"
    hidden_blocks = HIDDEN_SIZE // BLOCK_SIZE
    intermediate_blocks = INTERMEDIATE_SIZE // BLOCK_SIZE
    fp8 = torch.float8_e4m3fn
    expected = {
        "routing_logits": ((seq_len, NUM_EXPERTS), torch.float32),
        "routing_bias": ((NUM_EXPERTS,), torch.bfloat16),
        "hidden_states": ((seq_len, HIDDEN_SIZE), fp8),
        "hidden_states_scale": ((hidden_blocks, seq_len), torch.float32),
        "gemm1_weights": ((NUM_LOCAL_EXPERTS, 2 * INTERMEDIATE_SIZE, HIDDEN_SIZE), fp8),
        "gemm1_weights_scale": (
            (NUM_LOCAL_EXPERTS, 2 * intermediate_blocks, hidden_blocks),
            torch.float32,
        ),
        "gemm2_weights": ((NUM_LOCAL_EXPERTS, HIDDEN_SIZE, INTERMEDIATE_SIZE), fp8),
        "gemm2_weights_scale": (
            (NUM_LOCAL_EXPERTS, hidden_blocks, intermediate_blocks),
            torch.float32,
        ),
    }
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"{name}: expected device {logits.device}, got {tensor.device}")

    last = NUM_EXPERTS - NUM_LOCAL_EXPERTS
    if not isinstance(local_expert_offset, int) or not 0 <= local_expert_offset <= last:
        raise ValueError(
            f"local_expert_offset: expected an int in [0, {last}], got {local_expert_offset!r}"
        )
    if not isinstance(routed_scaling_factor, (int, float)):
        raise ValueError(
            f"routed_scaling_factor: expected a number, got {type(routed_scaling_factor).__name__}"
        )


def route(routing_logits, routing_bias, routed_scaling_factor):
    """Grouped top-k routing; of equal scores the lowest expert or group index wins.

    routing_logits: [T, NUM_EXPERTS] fp32; routing_bias: [NUM_EXPERTS] bf16.
    Returns topk_ids [T, TOP_K] int64, best first, and their weights [T, TOP_K] fp32, the sum of
    which is routed_scaling_factor.
    """
    scores = torch.sigmoid(routing_logits)
    ranking = scores + routing_bias.to(torch.float32)

    by_group = ranking.unflatten(1, (NUM_GROUPS, NUM_EXPERTS // NUM_GROUPS))
    group_scores = by_group.topk(2, dim=2).values.sum(dim=2)
    best_groups = group_scores.sort(dim=1, descending=True, stable=True).indices[:, :TOPK_GROUPS]
    dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best_groups, False)
    ranking = by_group.masked_fill(dropped.unsqueeze(2), float("-inf")).flatten(1)

    topk_ids = ranking.sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
    chosen = scores.gather(1, topk_ids)
    topk_weights = chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20) * routed_scaling_factor
    return topk_ids, topk_weights


def dequantize_weights(weights, scales):
    """weights [E, N, K] fp8 times scales [E, N / BLOCK_SIZE, K / BLOCK_SIZE] fp32, one per block.

    Returns [E, N, K] fp32.
    """
    values = weights.to(torch.float32)
    row_scales = scales.repeat_interleave(BLOCK_SIZE, dim=1)
    full_scales = row_scales.repeat_interleave(BLOCK_SIZE, dim=2)
    return values * full_scales


@torch.no_grad()
def run(
    routing_logits,
    routing_bias,
    hidden_states,
    hidden_states_scale,
    gemm1_weights,
    gemm1_weights_scale,
    gemm2_weights,
    gemm2_weights_scale,
    local_expert_offset,
    routed_scaling_factor,
):
    """Returns this rank's share of the layer's output, [T, HIDDEN_SIZE] bf16.

    check_arguments has the shapes and dtypes. local_expert_offset: int, also one that straddles
    two groups; routed_scaling_factor: number. The result is zero where no local expert was hit.
    """
    check_arguments(
        {
            "routing_logits": routing_logits,
            "routing_bias": routing_bias,
            "hidden_states": hidden_states,
            "hidden_states_scale": hidden_states_scale,
            "gemm1_weights": gemm1_weights,
            "gemm1_weights_scale": gemm1_weights_scale,
            "gemm2_weights": gemm2_weights,
            "gemm2_weights_scale": gemm2_weights_scale,
        },
        local_expert_offset,
        routed_scaling_factor,
    )
    seq_len, device = routing_logits.shape[0], routing_logits.device

    topk_ids, topk_weights = route(routing_logits, routing_bias, routed_scaling_factor)
    expert_weights = torch.zeros(seq_len, NUM_EXPERTS, dtype=torch.float32, device=device)
    expert_weights.scatter_(1, topk_ids, topk_weights)

    token_scales = hidden_states_scale.t().repeat_interleave(BLOCK_SIZE, dim=1)
    hidden = hidden_states.to(torch.float32) * token_scales
    gemm1 = dequantize_weights(gemm1_weights, gemm1_weights_scale)
    gemm2 = dequantize_weights(gemm2_weights, gemm2_weights_scale)

    output = torch.zeros(seq_len, HIDDEN_SIZE, dtype=torch.float32, device=device)
    for local_expert in range(NUM_LOCAL_EXPERTS):
        expert = local_expert_offset + local_expert
        hit = (topk_ids == expert).any(dim=1)
        if not hit.any():
            continue
        tokens = hit.nonzero().squeeze(1)
        # Each token occurs once in `tokens`, so index_add_ adds in one fixed order.
        up, gate = (hidden.index_select(0, tokens) @ gemm1[local_expert].t()).chunk(2, dim=1)
        activated = torch.nn.functional.silu(gate) * up
        weight = expert_weights[:, expert].index_select(0, tokens).unsqueeze(1)
        output.index_add_(0, tokens, (activated @ gemm2[local_expert].t()) * weight)
    return output.to(torch.bfloat16)
