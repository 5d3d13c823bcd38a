"""Calls captured into CUDA graphs, as serving engines do: one per number of tokens, in one pool.

torch_moe and the padding of v1 wait for the device, so they refuse a capture.
"""

import pytest
import torch
from every_solution import NAMES, run_of
from real_layer import real_inputs, run_real

from solutions.torch_moe import main as torch_moe

# These ask the device how many rows each expert has, and a capture cannot wait for the answer.
WAITING = {"torch_moe", "cutedsl_moe_fp8_v1"}
SIZES = (901, 80, 58)  # engines capture the largest first
TOLERANCE = 0.05


def check(outputs: dict, expected: dict) -> None:
    for seq_len, output in outputs.items():
        difference = (output.double() - expected[seq_len]).norm() / expected[seq_len].norm()
        assert difference < TOLERANCE, f"T = {seq_len}: relative error {difference:.4f}"
        output.fill_(float("nan"))


@pytest.fixture(scope="module")
def cases():
    """Arguments and what is right, by number of tokens."""
    arguments = {seq_len: real_inputs(seq_len) for seq_len in (*SIZES, 7)}
    expected = {
        seq_len: run_real(torch_moe.run, given).double() for seq_len, given in arguments.items()
    }
    return arguments, expected


def poison_free_memory() -> None:
    """What torch allocates next holds NaN, or -1."""
    torch.cuda.synchronize()
    for size in (28, 26, 24, 22, 20, 12):
        blocks = [torch.full((1 << size,), 0xFF, dtype=torch.uint8, device="cuda")] * 8
        del blocks
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in NAMES if name not in WAITING])
@pytest.mark.parametrize("stream", ["torch's", "a side stream", "the warm-up's"])
def test_captured(name, stream, cases):
    run, (arguments, expected) = run_of(name), cases
    side = None if stream == "torch's" else torch.cuda.Stream()
    warm_up = side if stream == "the warm-up's" else torch.cuda.Stream()
    outputs = {size: torch.full_like(expected[size], torch.nan, dtype=torch.bfloat16)
               for size in SIZES}  # fmt: skip

    def call(seq_len):
        run(*arguments[seq_len].values(), outputs[seq_len])

    def capture(seq_len, pool):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=side):
            call(seq_len)
        return graph

    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for seq_len in SIZES:
            call(seq_len)
    torch.cuda.synchronize()
    check(outputs, expected)

    pool = torch.cuda.graph_pool_handle()
    old = [capture(seq_len, pool) for seq_len in SIZES]
    graphs = {seq_len: capture(seq_len, pool) for seq_len in SIZES}  # never replayed before these
    del old
    poison_free_memory()
    for order in (SIZES, SIZES[::-1], (80, 901, 58)):
        for seq_len in order:
            graphs[seq_len].replay()
            run_real(run, arguments[7])  # eager calls in between
        with torch.cuda.stream(warm_up):
            run_real(run, arguments[58])
        torch.cuda.synchronize()
        check(outputs, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(WAITING))
def test_a_capture_of_what_waits_is_refused(name, cases):
    """By name, before anything is captured; afterwards all goes on."""
    run, (arguments, expected) = run_of(name), cases
    run_real(run, arguments[58])
    refused = pytest.raises(RuntimeError, match="outside the capture of a CUDA graph")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        run_real(run, arguments[58])
    check({58: run_real(run, arguments[58])}, expected)


@pytest.mark.gpu
def test_a_captured_v2_gives_the_same_bits(cases):
    """Its padded batch is another one than that of an eager call."""
    run, (arguments, _) = run_of("cutedsl_moe_fp8_v2"), cases
    for seq_len in SIZES:
        eager = run_real(run, arguments[seq_len])
        output, graph = torch.full_like(eager, torch.nan), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(*arguments[seq_len].values(), output)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(output, eager)
