"""Routing and permutation on the device: logits -> rows grouped by local expert.

A *row* is one (token, local expert) pair. Rows are ordered by local expert, then by token, and
`expert_offsets` delimits the experts, so a grouped GEMM reads expert e's rows at
[expert_offsets[e], expert_offsets[e + 1]). The number of rows is known on the device only; the
buffers hold the most there can be. Everything is deterministic: no atomics.

A grouped GEMM that wants each expert to begin at a multiple of some row_alignment gets gaps: expert
e's rows are then at [expert_offsets[e] rounded up, expert_offsets[e + 1]).

`select_kernel` picks the experts of a block of tokens; `permute_kernel` numbers the rows, each
program reading every block's counts.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from ..geometry import Geometry, max_aligned_rows
from .launch import Launch, Launcher, addresses

INTERPRETING = tl.constexpr(triton.knobs.runtime.interpret)


class Routing(NamedTuple):
    """What describes the rows, on the device: tensors or, from a Workspace, their addresses."""

    expert_offsets: Any  # int32 [E + 1], 0, then where the rows of each local expert end
    row_token: Any  # int32 [max_rows], token of each row
    row_weight: Any  # fp32 [max_rows], combine weight times routed_scaling_factor
    token_rows: Any  # int32 [T, top_k], rows of each token ascending, then -1
    counters: Any  # int32 [num_counters] of zeros, for a following kernel's own use


@triton.jit
def _sortable(x):
    """fp32 -> int32 whose signed order is that of the floats, every NaN above +Inf.

    The reference sorts in descending order, where torch puts NaN first.
    """
    bits = tl.where(x == x, x.to(tl.int32, bitcast=True), 0x7FC00000)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unsortable(key):
    """Inverse of `_sortable`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _take_max(keys, ids, TAKEN: tl.constexpr, NUM_IDS: tl.constexpr):
    """Each token's largest key's id, the lowest among equals, and the keys without it.

    int32: keys and ids [BLOCK_T, n] in any order -> id [BLOCK_T, 1], keys [BLOCK_T, n].
    """
    best = tl.max(keys, 1, keep_dims=True)
    best_id = tl.min(tl.where(keys == best, ids, NUM_IDS), 1, keep_dims=True)
    return best_id, tl.where(ids == best_id, TAKEN, keys)


@triton.jit
def sigmoid(x):
    """Bit for bit torch.sigmoid on a GPU, but for results below 2^-126.

    Where biased scores nearly tie, the last bit decides which expert is picked. So the exponential
    is not the hardware's approximation, and the division the correctly rounded one, written out
    without a branch as in ..cutedsl.routing.
    """
    if INTERPRETING:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        d = 1.0 + libdevice.exp(-x)
        approximate = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], dtype=tl.float32, is_pure=True, pack=1
        )
        exact = tl.fma(approximate, tl.fma(-d, approximate, 1.0), approximate)
        return tl.where(d < 2.0**126, exact, approximate)


@triton.jit
def _load_keys(row, bias_ptr, expert):
    """Sortable biased scores int32 [BLOCK_T, n] of the experts, int32 [BLOCK_T or 1, n].

    row [BLOCK_T, 1]: the tokens' logits.
    """
    score = sigmoid(tl.load(row + expert)) + tl.load(bias_ptr + expert).to(tl.float32)
    return _sortable(score)


@triton.jit
def _group_scores(keys, NUM_GROUPS: tl.constexpr, TAKEN: tl.constexpr):
    """Sortable sums of each group's two best: int32 [BLOCK_T, n] -> int32 [BLOCK_T, NUM_GROUPS]."""
    keys = tl.reshape(keys, [keys.shape[0], NUM_GROUPS, keys.shape[1] // NUM_GROUPS])
    first = tl.max(keys, 2)
    is_first = keys == first[:, :, None]
    second = tl.max(tl.where(is_first, TAKEN, keys), 2)
    # the best may be there twice; counting it needs fewer registers than to remember its place
    second = tl.where(tl.sum(is_first.to(tl.int32), 2) > 1, first, second)
    return _sortable(_unsortable(first) + _unsortable(second))


@triton.jit
def _select(
    logits_ptr,
    bias_ptr,
    token,
    num_tokens,
    local_expert_offset,
    routed_scaling_factor,
    BLOCK_T: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    NUM_TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """Which local experts each token picked, int32 0/1 [BLOCK_T, NUM_LOCAL], and their weights.

    Only half of the experts are compared at a time, because Triton gives a lane four neighbours:
    a row of 128 stays in one warp, and no reduction crosses warps. First each half of the groups
    is scored, then the experts of the best groups are read again, which are in the cache.
    """
    GROUP_SIZE: tl.constexpr = NUM_EXPERTS // NUM_GROUPS
    HALF: tl.constexpr = NUM_EXPERTS // 2
    CANDIDATES: tl.constexpr = NUM_TOP_GROUPS * GROUP_SIZE
    TAKEN: tl.constexpr = -(2**31)  # below every key
    # past the last token comes the last one again: valid to load, and never picked
    row = logits_ptr + tl.minimum(token, num_tokens - 1)[:, None] * NUM_EXPERTS

    # a group's score is the sum of its two best experts; the best groups stay eligible
    column = tl.arange(0, HALF)[None, :]
    low = _group_scores(_load_keys(row, bias_ptr, column), NUM_GROUPS // 2, TAKEN)
    high = _group_scores(_load_keys(row, bias_ptr, HALF + column), NUM_GROUPS // 2, TAKEN)
    group_keys = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), [BLOCK_T, NUM_GROUPS])
    group = tl.arange(0, NUM_GROUPS)[None, :]
    column = tl.arange(0, CANDIDATES)[None, :]
    candidate_group = tl.zeros([BLOCK_T, CANDIDATES], tl.int32)
    for k in tl.static_range(NUM_TOP_GROUPS):
        best, group_keys = _take_max(group_keys, group, TAKEN, NUM_GROUPS)
        candidate_group = tl.where(column // GROUP_SIZE == k, best, candidate_group)
    expert = candidate_group * GROUP_SIZE + column % GROUP_SIZE

    keys = _load_keys(row, bias_ptr, expert)
    local = tl.arange(0, NUM_LOCAL)[None, :] + local_expert_offset
    picked = tl.zeros([BLOCK_T, NUM_LOCAL], tl.int32)
    chosen = tl.zeros([BLOCK_T, TOP_K], tl.int32)
    place = tl.arange(0, TOP_K)[None, :]
    for k in tl.static_range(TOP_K):
        best, keys = _take_max(keys, expert, TAKEN, NUM_EXPERTS)
        chosen = tl.where(place == k, best, chosen)
        picked = tl.where(local == best, 1, picked)
    picked = tl.where((token < num_tokens)[:, None], picked, 0)
    scores = sigmoid(tl.load(row + chosen))
    weight = sigmoid(tl.load(row + local, mask=picked == 1, other=0.0))
    total = tl.sum(scores, 1, keep_dims=True) + 1e-20
    return picked, weight / total * routed_scaling_factor


@triton.jit
def _place(
    row_token_ptr,
    row_weight_ptr,
    token_rows_ptr,
    token,
    num_tokens,
    picked,
    weight,
    first_row,
    TOP_K: tl.constexpr,
):
    """Number the rows of a block of tokens; first_row [NUM_LOCAL] is each expert's next row."""
    taken = picked == 1
    rank = tl.cumsum(picked, 0) - picked
    row = first_row[None, :] + rank
    tokens = tl.broadcast_to(token[:, None], row.shape)
    tl.store(row_token_ptr + row, tokens, mask=taken)
    tl.store(row_weight_ptr + row, weight, mask=taken)

    # picked experts fill a token's places from the left, unpicked ones pad with -1 from the right
    count = tl.sum(picked, 1, keep_dims=True)
    unpicked = 1 - picked
    place = tl.where(
        taken, tl.cumsum(picked, 1) - picked, TOP_K - 1 - (tl.cumsum(unpicked, 1) - unpicked)
    )
    wanted = (taken | (place >= count)) & (token[:, None] < num_tokens)
    tl.store(token_rows_ptr + tokens * TOP_K + place, tl.where(taken, row, -1), mask=wanted)


@triton.jit
def first_rows(counts, ALIGNMENT: tl.constexpr):
    """First row of each expert from the experts' counts, int32 [NUM_LOCAL]."""
    taken = tl.cdiv(counts, ALIGNMENT) * ALIGNMENT
    return tl.cumsum(taken, 0) - taken


@triton.jit
def store_offsets(expert_offsets_ptr, counts, first_row, NUM_LOCAL: tl.constexpr):
    """expert_offsets [NUM_LOCAL + 1] of experts with `counts` rows from first_row on."""
    expert = tl.arange(0, NUM_LOCAL)
    tl.store(expert_offsets_ptr + expert + 1, first_row + counts)
    tl.store(expert_offsets_ptr + expert, first_row, mask=expert == 0)


@triton.jit(do_not_specialize=["num_tokens", "local_expert_offset"])
def select_kernel(
    logits_ptr,
    bias_ptr,
    block_counts_ptr,
    picked_ptr,
    weight_ptr,
    num_tokens,
    local_expert_offset,
    routed_scaling_factor,
    BLOCK_T: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    NUM_TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Writes per-block counts int32 [blocks, E], picks as a bit mask int32 [T], weights [T, E]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    picked, weight = _select(
        logits_ptr, bias_ptr, token, num_tokens, local_expert_offset, routed_scaling_factor,
        BLOCK_T, NUM_EXPERTS, NUM_LOCAL, NUM_GROUPS, NUM_TOP_GROUPS, TOP_K,
    )  # fmt: skip
    local = tl.arange(0, NUM_LOCAL)
    tl.store(block_counts_ptr + tl.program_id(0) * NUM_LOCAL + local, tl.sum(picked, 0))
    tl.store(picked_ptr + token, tl.sum(picked << local[None, :], 1), mask=token < num_tokens)
    tl.store(weight_ptr + token[:, None] * NUM_LOCAL + local[None, :], weight, mask=picked == 1)


@triton.jit
def sum_block_counts(
    block_counts_ptr, block, num_blocks, BLOCK_B: tl.constexpr, NUM_LOCAL: tl.constexpr
):
    """int32 [NUM_LOCAL] each: the counts of all blocks, and of those before `block`."""
    local = tl.arange(0, NUM_LOCAL)
    totals = tl.zeros([BLOCK_B, NUM_LOCAL], tl.int32)
    before = tl.zeros([BLOCK_B, NUM_LOCAL], tl.int32)
    for start in range(0, num_blocks, BLOCK_B):
        other = start + tl.arange(0, BLOCK_B)[:, None]
        counts = tl.load(
            block_counts_ptr + other * NUM_LOCAL + local[None, :], mask=other < num_blocks, other=0
        )
        totals += counts
        before += tl.where(other < block, counts, 0)
    return tl.sum(totals, 0), tl.sum(before, 0)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks", "num_counters"])
def permute_kernel(
    block_counts_ptr,
    picked_ptr,
    weight_ptr,
    expert_offsets_ptr,
    row_token_ptr,
    row_weight_ptr,
    token_rows_ptr,
    counters_ptr,
    num_tokens,
    num_blocks,
    num_counters,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
    NUM_LOCAL: tl.constexpr,
    TOP_K: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Numbers the rows of one block of tokens; every program sums all blocks' counts."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block = tl.program_id(0)
    local = tl.arange(0, NUM_LOCAL)
    counts, before = sum_block_counts(block_counts_ptr, block, num_blocks, BLOCK_B, NUM_LOCAL)
    first_row = first_rows(counts, ALIGNMENT)
    if block == 0:
        store_offsets(expert_offsets_ptr, counts, first_row, NUM_LOCAL)
        for first in range(0, num_counters, 1024):
            counter = first + tl.arange(0, 1024)
            tl.store(counters_ptr + counter, 0, mask=counter < num_counters)

    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    bits = tl.load(picked_ptr + token, mask=token < num_tokens, other=0)
    picked = (bits[:, None] >> local[None, :]) & 1
    weight = tl.load(
        weight_ptr + token[:, None] * NUM_LOCAL + local[None, :], mask=picked == 1, other=0.0
    )
    _place(
        row_token_ptr, row_weight_ptr, token_rows_ptr, token, num_tokens, picked, weight,
        first_row + before, TOP_K,
    )  # fmt: skip


_INT, _FP = torch.int32, torch.float32
_select_picks = Launcher(
    select_kernel,
    logits_ptr=_FP,
    bias_ptr=torch.bfloat16,
    block_counts_ptr=_INT,
    picked_ptr=_INT,
    weight_ptr=_FP,
)
_permute = Launcher(
    permute_kernel,
    block_counts_ptr=_INT,
    picked_ptr=_INT,
    weight_ptr=_FP,
    expert_offsets_ptr=_INT,
    row_token_ptr=_INT,
    row_weight_ptr=_FP,
    token_rows_ptr=_INT,
    counters_ptr=_INT,
)


class Blocks(NamedTuple):
    """How many tokens a program takes, with how many warps, and how much a permutation's program
    counts at a time; measured on an H200."""

    tokens: int
    warps: int
    chunk: int


def blocks_for(num_tokens: int) -> Blocks:
    """Few tokens: a program each. Many: larger blocks, so that the counts stay short. The warps
    are those of select; both kernels take the same blocks."""
    if num_tokens <= 256:
        return Blocks(1, 1, 64)
    return Blocks(8, 8, 128) if num_tokens <= 4096 else Blocks(16, 8, 64)


def routing_buffers(
    geometry: Geometry, num_tokens: int, num_counters: int = 0, row_alignment: int = 1
) -> tuple:
    """Buffers that `route` needs, for a Workspace: the fields of Routing, then scratch."""
    rows = max_aligned_rows(geometry, num_tokens, row_alignment)
    experts = geometry.num_local_experts
    return (
        (_INT, experts + 1),
        (_INT, rows),
        (_FP, rows),
        (_INT, num_tokens, geometry.top_k),
        (_INT, num_counters),
        (_INT, -(-num_tokens // blocks_for(num_tokens).tokens), experts),
        (_INT, num_tokens),
        (_FP, num_tokens, experts),
    )


def route(
    geometry: Geometry,
    routing_logits: torch.Tensor,
    routing_bias: torch.Tensor,
    local_expert_offset: int,
    routed_scaling_factor: float,
    buffers: list,
    num_counters: int = 0,
    pdl: bool = False,
    row_alignment: int = 1,
) -> Routing:
    """Route [T, num_experts] fp32 logits with a [num_experts] bf16 bias; T > 0.

    buffers: those of `routing_buffers` with the same num_counters and row_alignment. pdl lets the
    kernel launched next start early; that kernel must then wait for this one
    (griddepcontrol.wait) before it reads the result.
    """
    router = prepare_route(
        geometry, routing_logits.shape[0], num_counters, pdl=pdl, row_alignment=row_alignment
    )
    logits, bias = addresses(routing_logits, routing_bias)
    return router(logits, bias, local_expert_offset, routed_scaling_factor, buffers)


class Router(NamedTuple):
    """The launches of `route`, prepared for a number of tokens."""

    select: Launch
    permute: Launch
    num_tokens: int
    programs: int
    num_counters: int

    def __call__(self, logits, bias, offset: int, factor: float, buffers: list) -> Routing:
        """As `route`; logits and bias are what `addresses` gives of the tensors."""
        *routing, block_counts, picked, weight = buffers
        self.select(logits, bias, block_counts, picked, weight, self.num_tokens, offset, factor)
        self.permute(
            block_counts, picked, weight, *routing, self.num_tokens, self.programs,
            self.num_counters,
        )  # fmt: skip
        return Routing(*routing)


@lru_cache(maxsize=1024)
def prepare_route(
    geometry: Geometry, num_tokens: int, num_counters: int, pdl: bool, row_alignment: int = 1
) -> Router:
    """For `num_tokens` tokens, at less host time a call; the arguments are those of `route`."""
    experts, top_k = geometry.num_local_experts, geometry.top_k
    block = blocks_for(num_tokens)
    programs = -(-num_tokens // block.tokens)
    select = _select_picks.prepare(
        (programs, 1, 1),
        (block.tokens, geometry.num_experts, experts, geometry.num_groups,
         geometry.num_top_groups, top_k, pdl),
        num_warps=block.warps,
    )  # fmt: skip
    permute = _permute.prepare(
        (programs, 1, 1),
        (block.tokens, block.chunk, experts, top_k, row_alignment, pdl),
        num_warps=4,
        launch_pdl=pdl,
    )
    return Router(select, permute, num_tokens, programs, num_counters)
