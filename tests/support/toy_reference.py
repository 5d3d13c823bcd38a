"""The definition on toy geometry: its own reference source with smaller constants."""

import torch
from bundle.dataset.workload_table import DEFINITION
from flashinfer_bench.data import Definition, load_json_file

CONSTANTS = {
    "NUM_EXPERTS": (256, 32),
    "NUM_LOCAL_EXPERTS": (32, 8),
    "NUM_GROUPS": (8, 4),
    "TOPK_GROUPS": (4, 2),
    "TOP_K": (8, 4),
    "HIDDEN_SIZE": (7168, 256),
    "INTERMEDIATE_SIZE": (2048, 256),
}
AXES = {
    "num_experts": 32,
    "num_local_experts": 8,
    "hidden_size": 256,
    "intermediate_size": 256,
    "gemm1_out_size": 512,
    "num_hidden_blocks": 2,
    "num_intermediate_blocks": 2,
    "num_gemm1_out_blocks": 4,
}
FP8 = torch.float8_e4m3fn


def real_definition(root) -> Definition:
    return load_json_file(Definition, root / f"definitions/moe/{DEFINITION}.json")


def toy_definition(root) -> Definition:
    """32 experts in 4 groups, 8 of them local, top 4 in 2 groups, hidden and intermediate 256."""
    definition = real_definition(root)
    reference = definition.reference
    for name, (real, toy) in CONSTANTS.items():
        assert reference.count(f"\n{name} = {real}\n") == 1
        reference = reference.replace(f"\n{name} = {real}\n", f"\n{name} = {toy}\n")
    axes = {"seq_len": {"type": "var"}} | {
        name: {"type": "const", "value": value} for name, value in AXES.items()
    }
    return Definition.model_validate(
        definition.model_dump() | {"name": "toy_moe", "axes": axes, "reference": reference}
    )


def toy_inputs(seq_len: int, offset: int = 8, seed: int = 0) -> dict:
    """Arguments of the toy reference; like the harness's, scales are normal and often negative."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "routing_logits": normal(seq_len, 32),
        "routing_bias": (0.1 * normal(32)).to(torch.bfloat16),
        "hidden_states": normal(seq_len, 256).to(FP8),
        "hidden_states_scale": normal(2, seq_len),
        "gemm1_weights": normal(8, 512, 256).to(FP8),
        "gemm1_weights_scale": 0.1 * normal(8, 4, 2),
        "gemm2_weights": normal(8, 256, 256).to(FP8),
        "gemm2_weights_scale": 0.1 * normal(8, 2, 2),
        "local_expert_offset": offset,
        "routed_scaling_factor": 2.5,
    }
