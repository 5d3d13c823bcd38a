"""Never returns."""

import time


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    time.sleep(3600)
