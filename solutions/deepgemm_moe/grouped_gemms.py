"""DeepGEMM's FP8 block-scaled grouped GEMM, on rows grouped by expert with gaps between them.

In its contiguous layout by prefix sums, each expert begins at a multiple of the tile's height, and
an int32 [E] on the device says where its rows end, so the host never waits for their number. What
lies between the experts, and past the last one, is read and written, but mixes with nothing: a row
of the result depends on the same row of the operand alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import deep_gemm
import torch

_lock = Lock()


@contextmanager
def settings(row_alignment: int) -> Iterator[None]:
    """DeepGEMM with tiles of row_alignment rows and programmatic dependent launch.

    Both are settings of the process, and its compiler knows no threads: one caller at a time, and
    the next one, who may be somebody else, finds them as they were.
    """
    with _lock:
        pdl = deep_gemm.get_pdl()
        alignment = deep_gemm.get_mk_alignment_for_contiguous_layout()
        deep_gemm.set_pdl(True)
        deep_gemm.set_mk_alignment_for_contiguous_layout(row_alignment)
        try:
            yield
        finally:
            deep_gemm.set_pdl(pdl)
            deep_gemm.set_mk_alignment_for_contiguous_layout(alignment)


def grouped_gemm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weights: torch.Tensor,
    weight_scale: torch.Tensor,
    y: torch.Tensor,
    expert_ends: torch.Tensor,
    expected_rows: int,
) -> None:
    """y = x @ weights[e].T for the rows of each expert e; to be called within `settings`.

    x [rows, K] fp8, x_scale [K / 128, rows] fp32, weights [E, N, K] fp8, weight_scale
    [E, N / 128, K / 128] fp32, y [rows, N] bf16, expert_ends int32 [E]. expected_rows: of an expert
    on average; it decides between tiles of unlike width, never about correctness.
    """
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
        (x, x_scale.T),
        (weights, weight_scale),
        y,
        expert_ends,
        use_psum_layout=True,
        ensure_zero_padding=False,
        expected_m_for_psum_layout=expected_rows,
    )
