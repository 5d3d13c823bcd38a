"""Calls FlashInfer's fused MoE as an engine does: python engine_call.py SEQ_LEN RESULT_FILE

FlashInfer reads from its environment, at import, what to substitute for it.
"""

import sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFFSET = 32
EXPERT = 37  # the only local one; the pages of the others' weights are never touched


def layer_inputs(seq_len: int) -> dict:
    """The definition's inputs; every token picks EXPERT among local experts."""
    random = torch.Generator().manual_seed(seq_len)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    def weights(*shape):
        memory = torch.empty(32, *shape, dtype=torch.float8_e4m3fn, device=DEVICE)
        memory[EXPERT - OFFSET] = normal(*shape).to(torch.float8_e4m3fn)
        return memory

    logits, bias = normal(seq_len, 256), torch.zeros(256, dtype=torch.bfloat16)
    logits[:, OFFSET : OFFSET + 32] = -20.0
    logits[:, EXPERT] = 20.0
    bias[EXPERT] = 4.0  # its group's score is best
    tensors = {
        "routing_logits": logits,
        "routing_bias": bias,
        "hidden_states": normal(seq_len, 7168).to(torch.float8_e4m3fn),
        "hidden_states_scale": normal(56, seq_len).abs(),
        "gemm1_weights": weights(4096, 7168),
        "gemm1_weights_scale": 0.01 * normal(32, 32, 56),
        "gemm2_weights": weights(7168, 2048),
        "gemm2_weights_scale": 0.01 * normal(32, 56, 16),
    }
    arguments = {name: value.to(DEVICE) for name, value in tensors.items()}
    return arguments | {"local_expert_offset": OFFSET, "routed_scaling_factor": 2.5}


def main():
    if DEVICE == "cpu":
        torch.cuda.is_current_stream_capturing = lambda: False  # else it looks for a driver
    import flashinfer

    arguments = layer_inputs(int(sys.argv[1]))
    output = flashinfer.fused_moe.trtllm_fp8_block_scale_moe(
        **arguments,
        num_experts=256,
        top_k=8,
        n_group=8,
        topk_group=4,
        intermediate_size=2048,
        local_num_experts=32,
        routing_method_type=2,  # DeepSeek-V3's
    )
    torch.save(output, sys.argv[2])
    print(flashinfer.trace_apply.stats_snapshot())


if __name__ == "__main__":
    main()
