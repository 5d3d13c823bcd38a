"""The toy operator in fp32, for the negative controls in tests/controls/."""

import torch


def compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor):
    gates = torch.softmax(routing_logits, dim=-1) * scaling_factor
    dequantized = weights.float() * weights_scale[:, None, None]
    outputs = torch.einsum("th,eoh->teo", hidden_states.float(), dequantized)
    return torch.einsum("te,teo->to", gates, outputs)
