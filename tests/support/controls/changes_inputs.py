"""Right, but uses the hidden states for scratch."""

import torch

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    output.copy_(compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor))
    hidden_states.view(torch.uint8).zero_()
