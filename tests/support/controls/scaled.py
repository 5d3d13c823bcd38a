"""5 % too large."""

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    output.copy_(
        1.05 * compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor)
    )
