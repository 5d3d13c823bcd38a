"""A miniature of the bundle's operator: fp8 weights with one scale per expert, a gated sum."""

import torch


def dequantize_weights(weights, scales):
    return weights.float() * scales[:, None, None]


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor):
    if routing_logits.shape[1] != weights.shape[0]:
        raise ValueError("routing_logits: one column per expert expected")
    gates = torch.softmax(routing_logits, dim=-1) * scaling_factor
    dequantized = dequantize_weights(weights, weights_scale)
    total = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    for expert in range(weights.shape[0]):
        total += gates[:, expert, None] * (hidden_states.float() @ dequantized[expert].t())
    return total.to(torch.bfloat16)
