"""Right, and makes random numbers the same every time."""

import torch

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    torch.manual_seed(0)
    output.copy_(compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor))
