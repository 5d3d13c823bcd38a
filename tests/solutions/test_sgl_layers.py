"""What the solutions on sgl-kernel hand to its ops, and the hazards of expert parallelism there.

On the CPU the ops are sgl_standin.py's, on a GPU the package's.
"""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from bundle.paths import ROOT
from layers import (
    DEVICE,
    REFERENCE,
    ROUTES,
    TOY,
    assert_close,
    call,
    inputs,
    routed_to,
    with_sgl_kernel,
)
from sgl_standin import HAS_SGL_KERNEL, SCHEMAS
from test_routing import logits_and_bias
from torch.overrides import TorchFunctionMode

from solutions.common.geometry import DEEPSEEK_V3_EP8
from solutions.common.sgl.choice import SM_90, SM_100, Choice
from solutions.common.sgl.grouped_gemms import SMALL_M_ROWS, GroupedGemms, Kernel
from solutions.sglang_fp8_blockwise_moe import main as sglang_moe
from solutions.sglang_fp8_blockwise_moe import permute as permutation
from solutions.torch_moe import main as torch_moe
from solutions.triton_fused_moe_v2 import main as triton_v2

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not HAS_SGL_KERNEL,
    reason="needs the module sgl_kernel: pip install '.[sglang]'",
)
FP8, FP32, BF16, INT32, INT64 = (
    torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32, torch.int64,
)  # fmt: skip
MAINS = {"triton_fused_moe_v2": triton_v2, "sglang_fp8_blockwise_moe": sglang_moe}
mains = pytest.mark.parametrize("main", MAINS.values(), ids=MAINS.keys())
kernels = pytest.mark.parametrize("kernel", Kernel, ids=lambda kernel: kernel.name)
# unlike TOY's, the two sizes differ, so that no operand passes for another
WIDE = replace(TOY, hidden_size=384)
E, H, I = WIDE.num_local_experts, WIDE.hidden_size, WIDE.intermediate_size


def layer_of(main, kernel=Kernel.SMALL_M):
    return with_sgl_kernel(main, Choice(float("inf"), kernel, kernel))


@contextmanager
def poisoned_memory():
    """Memory that torch.empty returns is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(4, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Recorder(TorchFunctionMode):
    """Calls of sgl_kernel's ops: (op, arguments by name).

    Not a dispatch mode: that does not see ops which the package defines for every device.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, op, types, args=(), kwargs=None):
        if getattr(op, "namespace", None) == "sgl_kernel":
            names = [argument.name for argument in op._schema.arguments]
            given = dict(zip(names, args, strict=False))
            self.calls.append((op._schema.name.partition("::")[2], given))
        return op(*args, **(kwargs or {}))


def wide_inputs(num_tokens: int) -> dict:
    """Inputs of WIDE; the routing is that of `inputs`."""
    generator = torch.Generator().manual_seed(num_tokens)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return inputs(
        num_tokens,
        hidden_states=normal(num_tokens, H).to(FP8),
        hidden_states_scale=normal(H // 128, num_tokens),
        gemm1_weights=normal(E, 2 * I, H).to(FP8),
        gemm1_weights_scale=0.1 * normal(E, 2 * I // 128, H // 128),
        gemm2_weights=normal(E, H, I).to(FP8),
        gemm2_weights_scale=0.1 * normal(E, H // 128, I // 128),
    )


def call_wide(main, kernel, arguments: dict) -> torch.Tensor:
    num_tokens = len(arguments["routing_logits"])
    output = torch.full((num_tokens, H), float("nan"), dtype=BF16, device=DEVICE)
    choice = Choice(float("inf"), kernel, kernel)
    main.moe(WIDE, tuple(arguments.values()), output, choice)
    return output


def recorded(main, kernel, num_tokens: int) -> tuple:
    arguments = wide_inputs(num_tokens)
    with Recorder() as recorder:
        call_wide(main, kernel, arguments)
    return recorder.calls, arguments


def describe(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape), tensor.stride()


# What is handed over


@mains
@kernels
def test_operands_of_the_gemms(main, kernel):
    num_tokens, rows = 3, 3 * TOY.top_k
    calls, arguments = recorded(main, kernel, num_tokens)
    prefix = "es_" if kernel is Kernel.ES else ""
    gemms = [given for op, given in calls if op == f"{prefix}fp8_blockwise_scaled_grouped_mm"]
    assert len(gemms) == sum("grouped_mm" in op for op, _ in calls) == 2
    height = SMALL_M_ROWS if kernel is Kernel.SMALL_M else SMALL_M_ROWS + 1
    weights = [arguments["gemm1_weights"], arguments["gemm2_weights"]]
    scales = [arguments["gemm1_weights_scale"], arguments["gemm2_weights_scale"]]
    starts = gemms[0]["expert_offsets"].tolist()
    for given, w, w_scale, n, k, out_rows in zip(
        gemms, weights, scales, (2 * I, H), (H, I), (rows, rows + 1), strict=True
    ):
        assert describe(given["output"]) == (BF16, (out_rows, n), (n, 1))
        assert describe(given["a"]) == (FP8, (height, k), (k, 1))
        assert describe(given["scales_a"]) == (FP32, (rows, k // 128), (k // 128, 1))
        # the weights as they are, seen as [E, K, N]
        assert describe(given["b"]) == (FP8, (E, k, n), (n * k, 1, k))
        assert given["b"].data_ptr() == w.data_ptr()
        assert describe(given["scales_b"]) == (
            FP32, (E, k // 128, n // 128), (n * k // 128**2, 1, k // 128),
        )  # fmt: skip
        assert given["scales_b"].data_ptr() == w_scale.data_ptr()
        out_stride = given["stride_d" if kernel is Kernel.ES else "stride_c"]
        for stride, value in (
            (given["stride_a"], k), (given["stride_b"], k), (out_stride, n),
        ):  # fmt: skip
            assert describe(stride) == (INT64, (E,), (1,)) and stride.tolist() == [value] * E
        assert describe(given["problem_sizes"]) == (INT32, (E, 3), (3, 1))
        assert describe(given["expert_offsets"]) == (INT32, (E,), (1,))
        assert describe(given["workspace"]) == (torch.uint8, (90_000,), (1,))
        sizes = given["problem_sizes"].tolist()
        assert [size[1:] for size in sizes] == [[n, k]] * E
        assert given["expert_offsets"].tolist() == starts
        assert [a + size[0] for a, size in zip(starts, sizes, strict=True)][:-1] == starts[1:]
        if kernel is not Kernel.ES:
            for name in ("a_ptrs", "b_ptrs", "out_ptrs", "a_scales_ptrs", "b_scales_ptrs"):
                assert describe(given[name]) == (INT64, (E,), (1,))
            for name in ("layout_sfa", "layout_sfb"):
                assert describe(given[name]) == (INT32, (E, 5), (5, 1))
    assert starts[0] == 0 and 0 < starts[-1] + gemms[0]["problem_sizes"][-1, 0] <= rows
    # an 8T buffer: memory reaches as far as rows can, whatever the height of the view
    memory = gemms[0]["a"].untyped_storage().nbytes()
    assert memory >= max(rows, height) * H


@mains
@kernels
def test_matches_torch_moe(main, kernel):
    arguments = wide_inputs(9)
    expected = torch.empty(9, H, dtype=BF16, device=DEVICE)
    torch_moe.moe(WIDE, tuple(arguments.values()), expected)
    assert_close(call_wide(main, kernel, arguments), expected)


def test_operands_of_sglangs_other_ops():
    num_tokens, rows = 3, 3 * TOY.top_k
    calls, arguments = recorded(sglang_moe, Kernel.SMALL_M, num_tokens)
    assert [op for op, _ in calls] == [
        "moe_fused_gate",
        "fp8_blockwise_scaled_grouped_mm",
        "fp8_blockwise_scaled_grouped_mm",
        "apply_shuffle_mul_sum",
    ]
    gate, _gemm1, gemm2, combine = [given for _, given in calls]
    assert gate["input"] is arguments["routing_logits"]
    assert torch.equal(gate["bias"], arguments["routing_bias"].float())
    assert [*gate.values()][2:] == [4, 2, 4, 0, 2.5, True]
    assert combine["input"].data_ptr() == gemm2["output"].data_ptr()
    assert describe(combine["input"]) == (BF16, (rows + 1, H), (H, 1))
    assert describe(combine["output"]) == (BF16, (num_tokens, H), (H, 1))
    assert describe(combine["permutation"]) == (INT32, (rows,), (1,))
    assert describe(combine["factors"]) == (BF16, (rows,), (1,))


def test_no_other_op_between_the_gemms_of_triton_v2():
    calls, _ = recorded(triton_v2, Kernel.SMALL_M, 3)
    assert [op for op, _ in calls] == ["fp8_blockwise_scaled_grouped_mm"] * 2


@kernels
def test_gemms_reach_past_the_view(kernel):
    """More rows than the small-M view is high; its kernels go by offsets and problem sizes."""
    num_tokens = 600  # up to 2400 rows
    gemms = GroupedGemms(WIDE, num_tokens, torch.device(DEVICE))
    arguments = wide_inputs(1)
    weights, scales = arguments["gemm1_weights"], arguments["gemm1_weights_scale"]
    rows = torch.tensor([0, 700, 1, 0, 1300, 33, 0, 300], device=DEVICE)
    gemms.expert_offsets.copy_(torch.cat([rows.new_zeros(1), rows.cumsum(0)]))
    gemms.gemm1_sizes.copy_(torch.tensor([[m, 2 * I, H] for m in rows.tolist()]))
    generator = torch.Generator().manual_seed(0)
    gemms.x.copy_(torch.randn(gemms.x.shape, generator=generator))
    gemms.x_scale.copy_(torch.randn(gemms.x_scale.shape, generator=generator))
    gemms.up_gate.fill_(7.0)
    gemms.gemm1(kernel, weights, scales)
    x = gemms.x.float() * gemms.x_scale.repeat_interleave(128, 1)
    start = 0
    for expert, count in enumerate(rows.tolist()):
        scale = scales[expert].repeat_interleave(128, 0).repeat_interleave(128, 1)
        expected = x[start : start + count] @ (weights[expert].float() * scale).T
        torch.testing.assert_close(
            gemms.up_gate[start : start + count].float(), expected, rtol=2e-2, atol=2e-1
        )
        start += count
    assert (gemms.up_gate[start:] == 7.0).all()


def test_choices_cover_every_size():
    for table in (SM_90, SM_100):
        limits = [choice.max_tokens for choice in table]
        assert limits == sorted(set(limits)) and limits[-1] == float("inf")
    assert all(Kernel.ES not in (choice.gemm1, choice.gemm2) for choice in SM_100)


@pytest.mark.skipif(not HAS_SGL_KERNEL, reason="needs the module sgl_kernel")
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.partition("(")[0])
def test_stand_ins_have_the_packages_schemas(schema):
    """Names and types of the arguments; which are declared as written to varies by version."""
    ours = torch._C.parse_schema(schema)
    theirs = getattr(torch.ops.sgl_kernel, ours.name).default._schema
    assert [(a.name, str(a.type)) for a in theirs.arguments] == [
        (a.name, str(a.type)) for a in ours.arguments
    ]
    assert [str(r.type) for r in theirs.returns] == [str(r.type) for r in ours.returns]


# Expert parallelism: pairs of other ranks' experts


@mains
@kernels
@pytest.mark.parametrize("seq_len", [1, 7, 33])
def test_matches_reference_from_poisoned_memory(main, kernel, seq_len):
    arguments = inputs(seq_len, seed=seq_len)
    with poisoned_memory():
        actual = call(layer_of(main, kernel), arguments)
    assert_close(actual, REFERENCE(**arguments))


@mains
@kernels
@pytest.mark.parametrize("seq_len", [1, 5])
def test_no_local_pair(main, kernel, seq_len):
    arguments = inputs(seq_len, **routed_to([], seq_len))
    with poisoned_memory():
        assert not call(layer_of(main, kernel), arguments).any()


@mains
@kernels
def test_one_hot_expert(main, kernel):
    arguments = inputs(40, **routed_to([11], 40))
    with poisoned_memory():
        actual = call(layer_of(main, kernel), arguments)
    assert_close(actual, REFERENCE(**arguments))


@mains
def test_most_rows_there_can_be(main):
    """Every pair is local, so that the buffers are full."""
    arguments = inputs(9, **routed_to(range(8, 16), 9))
    with poisoned_memory():
        actual = call(layer_of(main), arguments)
    assert_close(actual, REFERENCE(**arguments))


@mains
def test_buffers_left_dirty_by_the_last_call(main):
    """NaN rows and other offsets from the call before, in the same buffers."""
    dirty = inputs(5, seed=1)
    dirty["hidden_states_scale"][:] = float("nan")
    clean, empty = inputs(5, seed=2), inputs(5, **routed_to([], 5))
    layer = layer_of(main)
    call(layer, dirty)
    assert_close(call(layer, clean), REFERENCE(**clean))
    call(layer, dirty)
    assert not call(layer, empty).any()


@mains
def test_buffers_are_reused_and_dropped(main):
    device = inputs(1)["routing_logits"].device
    first = main.buffers_for(TOY, 3, device)
    assert first is main.buffers_for(TOY, 3, device)
    assert first is not main.buffers_for(TOY, 4, device)
    assert first is not main.buffers_for(TOY, 3, device)


def test_pairs_counted_beforehand():
    num_tokens = 257
    assert num_tokens > permutation.COUNT_ALL_TOKENS
    arguments = inputs(num_tokens)
    with poisoned_memory():
        actual = call(layer_of(sglang_moe), arguments)
    assert_close(actual, REFERENCE(**arguments))


def test_more_tokens_than_the_library_can_reach(monkeypatch):
    """They go in halves: 13 tokens, where at most 4 may be in one, in 3 + 3 + 3 + 4."""
    rows = 4 * TOY.top_k
    monkeypatch.setattr(sglang_moe, "LAST_ELEMENT", (rows + 1) * TOY.hidden_size - 1)
    assert sglang_moe.most_tokens(TOY) == 4
    arguments = inputs(13)
    with Recorder() as recorder:
        actual = call(layer_of(sglang_moe), arguments)
    combined = [given for op, given in recorder.calls if op == "apply_shuffle_mul_sum"]
    assert [len(given["output"]) for given in combined] == [3, 3, 3, 4]
    assert all(given["input"].numel() - 1 <= sglang_moe.LAST_ELEMENT for given in combined)
    assert_close(actual, REFERENCE(**arguments))


def test_last_element_at_the_real_geometry():
    tokens = sglang_moe.most_tokens(DEEPSEEK_V3_EP8)
    assert (tokens * 8 + 1) * 7168 <= 2**31 < ((tokens + 1) * 8 + 1) * 7168


# The permutation of sglang_fp8_blockwise_moe at the real geometry


reference_route = ROUTES[DEEPSEEK_V3_EP8]


def check_permutation(ids, offset: int) -> None:
    """permute's result for given picks, against plain PyTorch."""
    num_tokens, top_k = ids.shape
    pairs = num_tokens * top_k
    logits = 3 * torch.randn(num_tokens, 256, generator=torch.Generator().manual_seed(1))
    logits[num_tokens // 2] = -200.0  # all scores vanish
    logits[num_tokens // 3] -= 45.0  # and here the reference's 1e-20 counts
    logits = logits.to(DEVICE)
    blocks = -(-num_tokens // permutation.blocks_for(num_tokens).tokens)
    with poisoned_memory():
        out = permutation.Permutation(
            torch.empty(33, dtype=INT32, device=DEVICE),
            torch.empty(pairs, dtype=INT32, device=DEVICE),
            torch.empty(pairs, dtype=BF16, device=DEVICE),
            torch.empty(blocks, 32, dtype=INT32, device=DEVICE),
        )
        y = torch.empty(pairs + 1, 7168, dtype=BF16, device=DEVICE)
    pdl = DEVICE == "cuda"
    permutation.permute(DEEPSEEK_V3_EP8, ids, logits, offset, 2.5, out, y, pdl)
    expert = (ids.flatten() - offset).cpu()
    local = (expert >= 0) & (expert < 32)
    order = torch.argsort(torch.where(local, expert, 32), stable=True)[: local.sum()]
    rows = len(order)
    counts = torch.bincount(expert[local], minlength=32)
    assert out.expert_offsets[0] == 0
    assert torch.equal(out.expert_offsets.diff().long().cpu(), counts)
    expected_row = torch.full((pairs,), pairs, dtype=torch.long)
    expected_row[order] = torch.arange(rows)
    assert torch.equal(out.pair_row.long().cpu(), expected_row)
    scores = logits.sigmoid().gather(1, ids.long())
    weights = (scores / (scores.sum(1, keepdim=True) + 1e-20) * 2.5).flatten().cpu()
    kept = torch.where(local, weights, 0.0)
    # Triton's interpreter truncates to bf16, the hardware rounds
    torch.testing.assert_close(out.pair_weight.float().cpu(), kept, rtol=2**-7, atol=1e-30)
    assert not y[-1].any() and y[:-1].isnan().all()


@pytest.mark.parametrize("num_tokens", [1, 8, 80, 257, 1000])
def test_permutation(num_tokens):
    ids, _ = reference_route(*logits_and_bias(num_tokens), 2.5)
    check_permutation(ids.int(), 96)


@pytest.mark.parametrize("case", ["no local pair", "one expert", "all local"])
def test_permutation_at_the_edges(case):
    ids = torch.arange(8, dtype=INT32, device=DEVICE).repeat(20, 1)
    ids[:, 0] = {"no local pair": 0, "one expert": 97, "all local": 96}[case]
    ids[:, 1:] += 96 if case == "all local" else 0
    check_permutation(ids, 96)


@pytest.mark.gpu
def test_gate_routes_like_the_reference():
    """sgl-kernel's own moe_fused_gate, 10,000 tokens, ties included.

    Its Hopper build uses fast math: scores that differ by a rounding may change places.
    """
    logits, bias = logits_and_bias(10_000)
    weights, ids = sglang_moe._gate(logits, bias.float(), 8, 4, 8, 0, 2.5, True)
    ids, order = ids.long().sort(1)
    expected_ids, expected_weights = reference_route(logits, bias, 2.5)
    expected_ids, expected_order = expected_ids.sort(1)
    same = (ids == expected_ids).all(1)
    assert (~same).sum() <= 5
    torch.testing.assert_close(
        weights.gather(1, order)[same],
        expected_weights.gather(1, expected_order)[same],
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.skipif(HAS_SGL_KERNEL, reason="about the stand-in")
def test_missing_gate_is_named():
    """sglang-kernel 0.4.5 and later: an error at import that says what is needed."""
    script = (
        "import sgl_standin as s\n"
        "s.SCHEMAS = ('gone' + s.SCHEMAS[0].removeprefix('moe_fused_gate'), *s.SCHEMAS[1:])\n"
        "s.install()\n"
        "import solutions.sglang_fp8_blockwise_moe.main\n"
    )
    paths = [str(ROOT), str(ROOT / "tests" / "support")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{script}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ImportError: sgl_kernel: expected the op moe_fused_gate" in done.stderr
