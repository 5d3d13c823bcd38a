"""Right in the first half of the rows, and nothing in the others."""

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    rows = output.shape[0] // 2
    result = compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor)
    output[:rows].copy_(result[:rows])
