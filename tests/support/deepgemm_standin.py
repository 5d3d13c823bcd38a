"""DeepGEMM in PyTorch, for machines without a GPU; CPU tensors only.

The functions and their parameters are those of sgl-deep-gemm 0.1.5. What the real GEMM requires of
layouts is asserted, and what it makes of the gaps between the experts is NaN.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import torch

HAS_DEEP_GEMM = torch.cuda.is_available() and find_spec("deep_gemm") is not None

_state = {"pdl": False, "alignment": 128}
calls = []  # parameters of each GEMM, and the settings then


def m_grouped_fp8_gemm_nt_contiguous(a, b, d, grouped_layout, recipe=None, recipe_a=None,
                                     recipe_b=None, compiled_dims="nk", disable_ue8m0_cast=False,
                                     use_psum_layout=False, ensure_zero_padding=True,
                                     expected_m_for_psum_layout=None):  # fmt: skip
    calls.append(
        {"a": a, "b": b, "d": d, "grouped_layout": grouped_layout,
         "expected_m": expected_m_for_psum_layout, **_state}
    )  # fmt: skip
    (x, x_scale), (weights, weight_scale) = a, b
    (rows, k), (experts, n, _) = x.shape, weights.shape
    assert use_psum_layout and grouped_layout.dtype == torch.int32
    assert grouped_layout.shape == (experts,) and grouped_layout.is_contiguous()
    assert x.dtype == weights.dtype == torch.float8_e4m3fn and d.dtype == torch.bfloat16
    assert x.is_contiguous() and weights.is_contiguous() and d.is_contiguous()
    assert weights.shape == (experts, n, k) and d.shape == (rows, n)
    assert x_scale.dtype == weight_scale.dtype == torch.float32
    # already as TMA wants them, so that no kernel has to bring them there
    assert x_scale.shape == (rows, k // 128) and x_scale.stride() == (1, rows) and rows % 4 == 0
    assert weight_scale.shape == (experts, n // 128, k // 128) and weight_scale.is_contiguous()
    assert expected_m_for_psum_layout > 0

    d.fill_(float("nan"))
    end = 0
    for expert, new_end in enumerate(grouped_layout.tolist()):
        start = -(-end // _state["alignment"]) * _state["alignment"]
        end = new_end
        assert start <= end <= rows
        mine = slice(start, end)
        y = torch.zeros(end - start, n)
        for block in range(k // 128):
            columns = slice(block * 128, (block + 1) * 128)
            scale = weight_scale[expert, :, block].repeat_interleave(128)
            product = x[mine, columns].float() @ weights[expert, :, columns].float().T
            y += product * x_scale[mine, block, None] * scale
        d[mine] = y.bfloat16()


def install() -> None:
    """Make `import deep_gemm` work where the package is missing, or without a GPU."""
    if HAS_DEEP_GEMM or "deep_gemm" in sys.modules:
        return
    module = ModuleType("deep_gemm")
    module.__spec__ = ModuleSpec("deep_gemm", loader=None)
    module.__version__ = "stand-in"
    module.m_grouped_fp8_gemm_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
    module.get_pdl = lambda: _state["pdl"]
    module.set_pdl = lambda value: _state.update(pdl=value)
    module.get_mk_alignment_for_contiguous_layout = lambda: _state["alignment"]
    module.set_mk_alignment_for_contiguous_layout = lambda value: _state.update(alignment=value)
    sys.modules["deep_gemm"] = module
