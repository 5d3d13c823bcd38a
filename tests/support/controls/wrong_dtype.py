"""fp32 instead of bf16."""

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor):
    return compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor)
