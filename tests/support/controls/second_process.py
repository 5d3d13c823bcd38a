"""Right, and leaves a process of its own behind, out of its session."""

import subprocess
import sys

from ..common.moe import compute

_child = []


def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):
    output.copy_(compute(routing_logits, hidden_states, weights, weights_scale, scaling_factor))
    if not _child:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        _child.append(subprocess.Popen(command, start_new_session=True, env={}))
