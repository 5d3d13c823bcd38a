"""cutedsl_moe_fp8_v1 and _v2: two ways of padding that must give the same bits.

The padding runs on the CPU as it is; there, PyTorch takes the GEMM kernel's place. On a GPU the
kernel itself runs.
"""

from itertools import pairwise

import pytest
import torch
from layers import DEVICE, REFERENCE, assert_close, at_toy, call, inputs, routed_to

from solutions.common import padded_moe
from solutions.cutedsl_moe_fp8_v1.padding import LoopPadding
from solutions.cutedsl_moe_fp8_v2 import padding as v2_padding
from solutions.cutedsl_moe_fp8_v2.padding import IndexPadding
from solutions.torch_moe.main import dequantize

PADDINGS = {"v1": LoopPadding, "v2": IndexPadding}
paddings = pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS.keys())


def torch_gemm(a, a_scale, b, b_scale, offsets):
    """What padded_gemm computes; NaN where it leaves c undefined."""
    experts, max_m, _ = a.shape
    assert a_scale.shape == (a.shape[2] // 128, experts, max_m) and a_scale.is_contiguous()
    c = torch.full((experts, max_m, b.shape[1]), float("nan"), dtype=torch.bfloat16)
    for expert, rows in enumerate(offsets.diff().tolist()):
        if rows == 0:
            continue
        x = dequantize(a[expert, :rows], a_scale[:, expert, :rows].t(), 128)
        c[expert, :rows] = x @ dequantize(b[expert], b_scale[expert], 128).t()
    return c


def gemm():
    if DEVICE == "cpu":
        return torch_gemm
    pytest.importorskip("cutlass")
    from solutions.common.cutedsl.padded_gemm import padded_gemm

    return padded_gemm


def layer(padding):
    return at_toy(padded_moe.padded_moe, padding, gemm())


def ragged(generator: torch.Generator) -> torch.Tensor:
    """Offsets of up to 32 experts, a third of them empty, at times all of them."""

    def draw(end):
        return int(torch.randint(end, (), generator=generator))

    experts, most = 1 + draw(32), (1, 2, 7, 60)[draw(4)]
    sizes = torch.randint(most, (experts,), generator=generator)
    sizes *= torch.rand(experts, generator=generator) > 0.3
    return torch.cat([torch.zeros(1), sizes.cumsum(0)]).int().to(DEVICE)


def test_paddings_agree():
    generator = torch.Generator().manual_seed(0)
    empty = 0
    for _ in range(200):
        offsets = ragged(generator)
        rows = int(offsets[-1])
        empty += rows == 0
        loop, index = (make(offsets, rows, rows + 13) for make in PADDINGS.values())
        assert index.max_m == loop.max_m and loop.max_m % padded_moe.ROW_MULTIPLE == 0
        assert index.rows >= loop.rows >= max(1, rows)
        values = torch.randn(index.rows, 256, generator=generator).to(DEVICE)
        codes, scale = values.to(torch.float8_e4m3fn), values[:, :2].contiguous()
        padded = [p.pad(codes).float() for p in (loop, index)]
        scales = [p.pad_scale(scale) for p in (loop, index)]
        assert scales[0].shape == scales[1].shape and scales[1].is_contiguous()
        for expert, (first, end) in enumerate(pairwise(offsets.tolist())):
            size = end - first
            for batch in padded:
                assert torch.equal(batch[expert, :size], codes[first:end].float())
            for batch in scales:
                assert torch.equal(batch[:, expert, :size], scale[first:end].t())
        for p in (loop, index):
            assert torch.equal(p.extract(p.pad(values))[:rows], values[:rows])
    assert 3 < empty < 100


@pytest.mark.parametrize("seq_len, offset", [(1, 8), (5, 0), (33, 24)])
def test_right_and_equal_to_the_bit(seq_len, offset):
    arguments = inputs(seq_len, seed=seq_len, offset=offset)
    loop, index = (call(layer(padding), arguments) for padding in PADDINGS.values())
    assert_close(loop, REFERENCE(**arguments))
    assert torch.equal(loop.view(torch.int16), index.view(torch.int16))


def test_v2_waits_for_nothing_in_a_capture(monkeypatch):
    """Its batch is as high as any routing may need, which changes no bit."""
    arguments = inputs(33, seed=33, offset=24)
    eager = call(layer(IndexPadding), arguments)
    waits = recorded_waits(monkeypatch)
    monkeypatch.setattr(v2_padding, "capturing", lambda device: True)
    padded = IndexPadding(torch.tensor([0, 3, 9], dtype=torch.int32, device=DEVICE), 33, 66)
    assert padded.max_m == 36 and padded.rows == 66 and not waits
    assert torch.equal(call(layer(IndexPadding), arguments), eager)


@paddings
def test_no_local_pair(padding):
    output = call(layer(padding), inputs(5, **routed_to([], 5)))
    assert torch.equal(output, torch.zeros_like(output))


@paddings
def test_one_expert_takes_all(padding):
    arguments = inputs(20, **routed_to([11], 20))
    assert_close(call(layer(padding), arguments), REFERENCE(**arguments))


def recorded_waits(monkeypatch) -> list[str]:
    """Whatever is called from now on that waits for the device."""
    waits = []
    for name in ("item", "tolist", "nonzero", "cpu", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, name=name, original=original, **options):
            waits.append(name)
            return original(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return waits


def test_v2_waits_once(monkeypatch):
    waits = recorded_waits(monkeypatch)
    offsets = torch.tensor([0, 3, 3, 9], dtype=torch.int32, device=DEVICE)
    padding = IndexPadding(offsets, 9, 20)
    values = torch.randn(padding.rows, 128, device=DEVICE)
    padding.pad_scale(values)
    padding.extract(padding.pad(values))
    assert waits == ["item"]
