"""One element in 16 (6.25 %) is zero."""

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    output.copy_(compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor))
    output.view(-1)[::16] = 0
