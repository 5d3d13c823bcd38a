"""Leaves the output as it is."""


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    pass
