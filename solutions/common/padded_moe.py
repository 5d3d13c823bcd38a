"""MoE layer in separate stages, around a grouped GEMM that takes a padded batch.

route -> gather -> pad, GEMM1, extract -> SwiGLU + requantisation -> pad, GEMM2, extract -> combine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from .geometry import Geometry, max_rows
from .triton_stages.combine import combine
from .triton_stages.routing import route, routing_buffers
from .triton_stages.swiglu import swiglu_quantize
from .workspace import Workspace

ROW_MULTIPLE = 4  # of a padded expert: a scale per row, and TMA wants strides of 16 bytes


def padded_rows(most_rows: int) -> int:
    """max_m: rows of a padded expert, where the largest one has most_rows (may be 0)."""
    return max(1, -(-most_rows // ROW_MULTIPLE)) * ROW_MULTIPLE


class Padding(Protocol):
    """Brings rows grouped by expert into a padded batch, and back.

    expert_offsets: int32 [E + 1] on the device. num_tokens: as many rows an expert may have.
    max_rows: at least the number of rows, known on the host. What lies past an expert's rows, and
    in flat tensors past the last row, is undefined.
    """

    rows: int  # of flat tensors; at least the number of rows, and at least 1

    def __init__(self, expert_offsets: torch.Tensor, num_tokens: int, max_rows: int): ...

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """[rows, K] -> [E, max_m, K]."""

    def pad_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """[rows, K / 128] -> [K / 128, E, max_m]."""

    def extract(self, padded: torch.Tensor) -> torch.Tensor:
        """[E, max_m, N] -> [rows, N]."""


# gemm(a, a_scale, b, b_scale, expert_offsets) -> c, as in cutedsl/padded_operands.py
Gemm = Callable[..., torch.Tensor]


def padded_moe(
    geometry: Geometry, inputs: tuple, output: torch.Tensor, make_padding: type[Padding], gemm: Gemm
) -> None:
    """The whole layer at any geometry, T > 0; inputs and output are checked already."""
    logits, bias, hidden, hidden_scale, w1, w1_scale, w2, w2_scale, offset, factor = inputs
    num_tokens, i = hidden.shape[0], geometry.intermediate_size
    workspace = Workspace(*routing_buffers(geometry, num_tokens))
    memory, _ = workspace.allocate(hidden.device)
    routing = route(geometry, logits, bias, offset, factor, workspace.tensors(memory))
    padding = make_padding(routing.expert_offsets, num_tokens, max_rows(geometry, num_tokens))

    def grouped_gemm(x, x_scale, w, w_scale):
        padded, scale = padding.pad(x), padding.pad_scale(x_scale)
        return padding.extract(gemm(padded, scale, w, w_scale, routing.expert_offsets))

    # past the last row, row_token is undefined: any token will do
    tokens = routing.row_token[: padding.rows].clamp(0, num_tokens - 1)
    up_gate = grouped_gemm(hidden[tokens], hidden_scale.t()[tokens], w1, w1_scale)
    act = torch.empty(padding.rows, i, dtype=hidden.dtype, device=hidden.device)
    act_scale = torch.empty(padding.rows, i // geometry.block, device=hidden.device)
    swiglu_quantize(
        geometry, padding.rows, up_gate, routing.expert_offsets, act, act_scale, pdl=False
    )
    y = grouped_gemm(act, act_scale, w2, w2_scale)
    combine(y, routing.token_rows, geometry.top_k, output, row_weight=routing.row_weight)
