"""MoE layer in CuTe DSL: routing, then one kernel for both GEMMs, then the combine.

No padding, no host synchronisation, compiled once for every number of tokens of a configuration.
"""

from functools import lru_cache

from ..common.checks import check_arguments
from ..common.cutedsl.layer import layer_buffers, num_counters, run_layer
from ..common.geometry import DEEPSEEK_V3_EP8
from ..common.launch import Workspace
from ..common.routing import route, routing_buffers


@lru_cache
def _workspace(num_tokens: int) -> Workspace:
    """Scratch of the layer, then of the routing."""
    return Workspace(
        *layer_buffers(DEEPSEEK_V3_EP8, num_tokens),
        *routing_buffers(DEEPSEEK_V3_EP8, num_tokens, num_counters(DEEPSEEK_V3_EP8)),
    )


def run(routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
        gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, local_expert_offset,
        routed_scaling_factor, output):
    """Entry point: shapes and dtypes are the definition's; writes output [T, H] bf16."""
    geometry = DEEPSEEK_V3_EP8
    offset, factor = int(local_expert_offset), float(routed_scaling_factor)
    check_arguments(
        geometry,
        (routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights,
         gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, output),
        offset,
    )  # fmt: skip
    num_tokens = routing_logits.shape[0]
    if num_tokens == 0:
        return
    # memory lives to the end of this function; whoever gets it next is behind us on the stream
    memory, buffers = _workspace(num_tokens).allocate(hidden_states.device)
    scratch, routing_part = buffers[:3], buffers[3:]
    routing = route(
        geometry, routing_logits, routing_bias, offset, factor, routing_part,
        num_counters(geometry), pdl=True,
    )  # fmt: skip
    run_layer(
        geometry, routing, scratch, hidden_states, hidden_states_scale, gemm1_weights,
        gemm1_weights_scale, gemm2_weights, gemm2_weights_scale, output,
    )  # fmt: skip
