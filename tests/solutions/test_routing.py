"""Routing and permutation of every solution against the definition's `route`."""

import math

import pytest
import torch
from layers import DEVICE, ROUTES

from solutions.common.geometry import DEEPSEEK_V3_EP8, max_rows
from solutions.common.triton_stages import routing
from solutions.common.triton_stages.routing import route, routing_buffers
from solutions.common.workspace import Workspace
from solutions.torch_moe import main as torch_moe

reference_route = ROUTES[DEEPSEEK_V3_EP8]
OFFSET, FACTOR = 96, 2.5


def logits_and_bias(num_tokens: int, seed: int = 0):
    """Random logits; in every third token each score occurs four times, in two groups.

    The ties are exact. A coarse grid of values would not do: sums of different scores that agree
    on paper differ by a rounding, which no two implementations need agree on.
    """
    generator = torch.Generator().manual_seed(seed)

    def fourfold(rows):
        quarter = torch.randn(rows, 4, 1, 16, generator=generator)
        return quarter.expand(rows, 4, 2, 16).reshape(rows, 128).repeat(1, 2)

    logits = torch.randn(num_tokens, 256, generator=generator)
    logits[::3] = fourfold(logits[::3].shape[0])
    bias = 0.1 * fourfold(1)[0]
    return logits.to(DEVICE), bias.to(torch.bfloat16).to(DEVICE)


def put_nans(logits, seed: int) -> None:
    """Up to 11 in every fifth token."""
    generator = torch.Generator().manual_seed(seed)
    for token in range(0, len(logits), 5):
        columns = torch.randint(256, (token % 12,), generator=generator)
        logits[token, columns.to(DEVICE)] = float("nan")


def device_route(logits, bias, offset=OFFSET):
    num_tokens = logits.shape[0]
    layout = Workspace(*routing_buffers(DEEPSEEK_V3_EP8, num_tokens, 1500))
    memory, buffers = layout.allocate(logits.device)
    route(DEEPSEEK_V3_EP8, logits, bias, offset, FACTOR, buffers, 1500)
    offsets, row_token, row_weight, token_rows, counters, *_ = layout.tensors(memory.cpu())
    assert counters.tolist() == [0] * 1500
    return offsets, row_token, row_weight, token_rows


def assert_rows_are_the_references(logits, bias, offset, routed):
    """Offsets, tokens, weights and the way back: routed, the first four fields of Routing."""
    ids, weights = (t.cpu() for t in reference_route(logits, bias, FACTOR))
    offsets, row_token, row_weight, token_rows = routed
    num_tokens = logits.shape[0]
    local = (ids >= offset) & (ids < offset + 32)
    tokens, slots = local.nonzero(as_tuple=True)
    experts = ids[tokens, slots] - offset
    order = torch.argsort(experts * num_tokens + tokens)
    rows = tokens.numel()
    counts = torch.bincount(experts, minlength=32)
    assert torch.equal(offsets.diff().long(), counts) and offsets[0] == 0
    assert torch.equal(row_token[:rows].long(), tokens[order])
    torch.testing.assert_close(
        row_weight[:rows], weights[tokens, slots][order], rtol=1e-5, atol=1e-7, equal_nan=True
    )
    for listed in token_rows.tolist():
        mine = [row for row in listed if row >= 0]
        assert listed == sorted(mine) + [-1] * (8 - len(mine))
    back = token_rows[token_rows >= 0].long()
    assert torch.equal(back.sort().values, torch.arange(rows))
    owner = torch.arange(num_tokens)[:, None].expand(-1, 8)[token_rows >= 0]
    assert torch.equal(row_token[back].long(), owner)


@pytest.mark.parametrize("num_tokens", [1, 8, 80, 257, 10_000])
def test_rows_are_the_references(num_tokens, monkeypatch):
    """At every block size."""
    if num_tokens == 10_000 and DEVICE == "cpu":  # the interpreter pays by the program
        monkeypatch.setattr(routing, "blocks_for", lambda _: routing.Blocks(1024, 8, 64))
    logits, bias = logits_and_bias(num_tokens)
    assert_rows_are_the_references(logits, bias, OFFSET, device_route(logits, bias))


@pytest.mark.parametrize("offset", [0, 99, 224])
def test_nan_logits(offset, monkeypatch):
    monkeypatch.setattr(routing, "blocks_for", lambda _: routing.Blocks(8, 8, 64))
    logits, bias = logits_and_bias(61)
    put_nans(logits, seed=offset)
    assert_rows_are_the_references(logits, bias, offset, device_route(logits, bias, offset))


@pytest.mark.parametrize("kind", ["random", "near ties"])
def test_picks_of_many_tokens(kind, monkeypatch):
    """Five million on a GPU: where biased scores nearly tie, sigmoid's last bit decides."""
    on_gpu = DEVICE == "cuda"
    size, rounds = (200_000, 25) if on_gpu else (1000, 1)
    if not on_gpu:  # the interpreter pays by the program
        monkeypatch.setattr(routing, "blocks_for", lambda _: routing.Blocks(1024, 8, 64))
    generator = torch.Generator(DEVICE).manual_seed(7)
    layout = Workspace(*routing_buffers(DEEPSEEK_V3_EP8, size))
    local = torch.arange(32, device=DEVICE)
    for number in range(rounds):
        offset = number % 8 * 32
        logits = torch.randn(size, 256, generator=generator, device=DEVICE)
        bias = 0.01 * torch.randn(256, generator=generator, device=DEVICE)
        if kind == "near ties":
            logits = logits.round()  # -4 to 4, mostly -2 to 2
            # differences of scores, off by their rounding to bf16
            steps = torch.randint(-2, 3, (256,), generator=generator, device=DEVICE)
            bias = 1.0 / (1.0 + torch.exp(-steps.float())) - 0.5
        bias = bias.to(torch.bfloat16)
        memory, buffers = layout.allocate(logits.device)
        route(DEEPSEEK_V3_EP8, logits, bias, offset, FACTOR, buffers)
        picked = layout.tensors(memory)[-2]
        ids, _ = reference_route(logits, bias, FACTOR)
        expected = (ids[:, :, None] == local + offset).any(1)
        actual = (picked[:, None] >> local & 1).bool()
        wrong = (actual != expected).any(1).sum().item()
        if on_gpu:
            assert wrong == 0, f"round {number}: {wrong} of {size} tokens"
        else:  # NumPy's exponential is not torch's
            assert wrong < size // 100


@pytest.fixture(scope="module")
def cutedsl_route():
    """The CuTe DSL routing alone: (logits, bias, offset) -> the first four fields of Routing."""
    pytest.importorskip("cutlass")
    import cuda.bindings.driver as cuda
    import cutlass.cute as cute
    from cutlass import BFloat16, Float32, Int32, Int64, Uint8

    from solutions.common.cutedsl.compilation import compile_launch
    from solutions.common.cutedsl.operands import Inputs, scratch_at, scratch_size
    from solutions.common.cutedsl.routing import RoutePermute
    from solutions.common.cutedsl.tile_scheduler import COUNTERS

    kernels = RoutePermute(DEEPSEEK_V3_EP8)

    @cute.jit
    def launch(
        logits: cute.Pointer, bias: cute.Pointer, scratch: cute.Pointer, num_tokens: Int32,
        offset: Int32, factor: Float32, stream: cuda.CUstream,
    ):  # fmt: skip
        inputs = Inputs(logits, bias, *[logits] * 6)  # the others are not read
        rows, own = scratch_at(scratch, kernels.scratch(Int64(num_tokens)))
        kernels(inputs, rows, own, num_tokens, offset, factor, stream)

    compiled = compile_launch(
        launch, (Float32, BFloat16, Uint8), (Int32(1), Int32(0), Float32(1.0)), (),
        "--enable-tvm-ffi",
    )  # fmt: skip

    def route(logits, bias, offset):
        num_tokens = logits.shape[0]
        groups = kernels.scratch(num_tokens)
        memory = torch.full((scratch_size(groups),), 0x7F, dtype=torch.uint8, device=logits.device)
        compiled(
            logits.data_ptr(), bias.data_ptr(), memory.data_ptr(), num_tokens, offset, FACTOR,
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        tensors, place = [], 0
        for buffer in groups[0]:
            dtype = torch.float32 if buffer.dtype is Float32 else torch.int32
            words = memory.cpu()[place : place + buffer.size()].view(dtype)
            tensors.append(words[: math.prod(buffer.shape)].view(buffer.shape))
            place += buffer.size()
        *routed, counters = tensors
        assert counters.tolist() == [0] * COUNTERS
        return routed

    return route


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 96, 99, 224])
@pytest.mark.parametrize("num_tokens", [1, 8, 80, 128, 129, 257, 10_000])
def test_cutedsl_rows_are_the_references(num_tokens, offset, cutedsl_route):
    """With ties and NaN."""
    logits, bias = logits_and_bias(num_tokens)
    put_nans(logits, seed=offset)
    routed = cutedsl_route(logits, bias, offset)
    assert_rows_are_the_references(logits, bias, offset, routed)
    for again, first in zip(cutedsl_route(logits, bias, offset), routed, strict=True):
        assert torch.equal(again.view(torch.int32), first.view(torch.int32))


def test_torch_moe_routes_like_the_reference():
    logits, bias = logits_and_bias(10_000)
    ids, weights = torch_moe.route(logits, bias, FACTOR, DEEPSEEK_V3_EP8)
    expected_ids, expected_weights = reference_route(logits, bias, FACTOR)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)


def test_no_local_expert_anywhere():
    logits, bias = logits_and_bias(20)
    logits[:, 96:128] = -30.0
    offsets, _, _, token_rows = device_route(logits, bias)
    assert not offsets.any() and (token_rows == -1).all()


def test_most_rows_there_can_be():
    """Every token keeps all its eight experts in the local group."""
    logits, bias = logits_and_bias(20)
    logits[:, :96], logits[:, 96:128], logits[:, 128:] = -30.0, 30.0, -30.0
    offsets, _, _, token_rows = device_route(logits, bias)
    assert offsets[-1] == max_rows(DEEPSEEK_V3_EP8, 20) == 160
    assert (token_rows >= 0).all()
