"""Takes the process with it."""

import os


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    os._exit(3)
