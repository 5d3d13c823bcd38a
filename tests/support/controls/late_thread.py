"""Writes its output from a thread, after it has returned."""

import threading
import time

from ..common.moe import compute


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    result = compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor)

    def write():
        time.sleep(0.001)
        output.copy_(result)

    threading.Thread(target=write).start()
