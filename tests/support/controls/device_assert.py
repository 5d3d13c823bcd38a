"""Reads outside of a tensor on the GPU, which ends the use of it by its process (CUDA)."""

import torch


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    output.copy_(routing_logits[:, torch.full((1,), 1 << 20, device=output.device)])
