"""What `deepgemm_moe` hands to DeepGEMM, and the gaps between the experts there.

On the CPU the GEMM is deepgemm_standin.py's, on a GPU the package's.
"""

import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import deep_gemm
import deepgemm_standin
import pytest
import torch
from deepgemm_standin import HAS_DEEP_GEMM
from layers import DEVICE, REFERENCE, TOY, assert_close, call, inputs, routed_to, with_deep_gemm

from solutions.common.geometry import DEEPSEEK_V3_EP8, max_aligned_rows
from solutions.common.triton_stages.routing import route, routing_buffers
from solutions.common.workspace import Workspace
from solutions.deepgemm_moe import grouped_gemms
from solutions.deepgemm_moe.main import row_alignment_for

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="looks into the stand-in's calls")
needs_package = pytest.mark.skipif(not HAS_DEEP_GEMM, reason="needs a GPU and deep_gemm")
alignments = pytest.mark.parametrize("row_alignment", [16, 32, 64, 128])


@on_cpu
@alignments
def test_operands_of_the_gemms(row_alignment):
    deepgemm_standin.calls.clear()
    arguments = inputs(9)
    call(with_deep_gemm(row_alignment), arguments)
    gemm1, gemm2 = deepgemm_standin.calls
    rows = max_aligned_rows(TOY, 9, row_alignment)
    h, i = TOY.hidden_size, TOY.intermediate_size
    for given, weights, n, k in (
        (gemm1, "gemm1_weights", 2 * i, h),
        (gemm2, "gemm2_weights", h, i),
    ):
        assert given["a"][0].shape == (rows, k) and given["d"].shape == (rows, n)
        # the weights as they are: nothing is prepared for the library
        assert given["b"][0].data_ptr() == arguments[weights].data_ptr()
        assert given["b"][1].data_ptr() == arguments[weights + "_scale"].data_ptr()
        assert given["pdl"] and given["alignment"] == row_alignment
        assert given["expected_m"] == -(-9 * TOY.top_k // TOY.num_experts)
    assert gemm1["grouped_layout"].data_ptr() == gemm2["grouped_layout"].data_ptr()


def test_experts_begin_at_multiples():
    """Rows as without gaps, each expert's moved as a whole to the next multiple."""
    num_tokens, row_alignment = 30, 4
    arguments = inputs(num_tokens)

    def routed(rows: int):
        workspace = Workspace(*routing_buffers(TOY, num_tokens, row_alignment=rows))
        buffers = workspace.tensors(workspace.allocate(torch.device(DEVICE))[0])
        logits, bias = arguments["routing_logits"], arguments["routing_bias"]
        return route(TOY, logits, bias, 8, 2.5, buffers, row_alignment=rows)

    plain, spread = routed(1), routed(row_alignment)
    counts = plain.expert_offsets.diff()
    ends = spread.expert_offsets[1:]
    starts = ends - counts
    assert (
        counts.max() > row_alignment
        and spread.expert_offsets[0] == 0
        and (starts % row_alignment == 0).all()
    )
    previous = spread.expert_offsets[:-1]
    assert torch.equal(starts, (previous + row_alignment - 1) // row_alignment * row_alignment)
    assert ends[-1] <= max_aligned_rows(TOY, num_tokens, row_alignment)
    for expert in range(TOY.num_local_experts):
        theirs = slice(plain.expert_offsets[expert], plain.expert_offsets[expert + 1])
        ours = slice(starts[expert], ends[expert])
        assert torch.equal(plain.row_token[theirs], spread.row_token[ours])
        assert torch.equal(plain.row_weight[theirs], spread.row_weight[ours])
    shift = torch.repeat_interleave(starts - plain.expert_offsets[:-1], counts)
    rows = plain.token_rows
    expected = torch.where(rows >= 0, rows + shift[rows.clamp_min(0).long()], -1)
    assert torch.equal(spread.token_rows, expected.int())


@pytest.mark.parametrize("num_tokens", [1, 3, 5, 64, 65, 128, 129, 14107])
@alignments
def test_buffers_hold_the_worst_case(num_tokens, row_alignment):
    """No distribution of the pairs over the experts needs more rows than there are."""
    g = DEEPSEEK_V3_EP8
    pairs = num_tokens * g.top_k
    rows = max_aligned_rows(g, num_tokens, row_alignment)
    assert rows % row_alignment == 0 and rows >= pairs
    for active in range(g.top_k, min(g.num_local_experts, pairs) + 1):
        # as many experts as possible get one row more than whole tiles
        counts = [1] * active
        left, step = pairs - active, row_alignment
        for expert in range(active):
            extra = min(left // step * step, (num_tokens - 1) // step * step)
            counts[expert] += extra
            left -= extra
        counts[0] += min(left, num_tokens - counts[0])
        assert sum(-(-c // row_alignment) * row_alignment for c in counts) <= rows


@alignments
def test_gaps_do_not_leak(row_alignment):
    """NaN tokens, whose rows the next call finds in its gaps if it gets the same memory."""
    dirty, clean = inputs(9, seed=1), inputs(9, seed=2)
    dirty["hidden_states_scale"][:] = float("nan")
    layer = with_deep_gemm(row_alignment)
    call(layer, dirty)
    assert_close(call(layer, clean), REFERENCE(**clean))


def test_experts_of_more_than_a_tile():
    arguments = inputs(70, **routed_to([9, 11], 70))
    assert_close(call(with_deep_gemm(64), arguments), REFERENCE(**arguments))


def test_tiles_grow_with_the_tokens():
    chosen = [row_alignment_for(num_tokens) for num_tokens in range(1, 20_000)]
    assert chosen == sorted(chosen) and set(chosen) == {16, 32, 64, 128}


def test_settings_are_put_back():
    before = deep_gemm.get_pdl(), deep_gemm.get_mk_alignment_for_contiguous_layout()
    with pytest.raises(ZeroDivisionError), grouped_gemms.settings(64):
        assert deep_gemm.get_pdl() and deep_gemm.get_mk_alignment_for_contiguous_layout() == 64
        raise ZeroDivisionError
    assert before == (deep_gemm.get_pdl(), deep_gemm.get_mk_alignment_for_contiguous_layout())


def test_settings_are_one_threads_at_a_time():
    inside, leave = Event(), Event()

    def first():
        with grouped_gemms.settings(64):
            inside.set()
            assert leave.wait(60)
            return deep_gemm.get_mk_alignment_for_contiguous_layout()

    def second():
        assert inside.wait(60)
        leave.set()
        with grouped_gemms.settings(128):
            return deep_gemm.get_mk_alignment_for_contiguous_layout()

    with ThreadPoolExecutor(2) as pool:
        assert [task.result() for task in (pool.submit(first), pool.submit(second))] == [64, 128]


@needs_package
@pytest.mark.gpu
def test_stand_in_has_the_packages_parameters():
    ours = inspect.signature(deepgemm_standin.m_grouped_fp8_gemm_nt_contiguous)
    theirs = inspect.signature(deep_gemm.m_grouped_fp8_gemm_nt_contiguous)
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]
