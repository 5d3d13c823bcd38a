"""Routing and permutation: logits -> rows grouped by local expert (see ..routing for the terms).

One warp picks one token's experts: lane l holds experts 8 l .. 8 l + 7, so that a group of 32
experts is four lanes. It keeps the token's local picks as a *mask*, one bit per local expert, and
their weights, ascending by expert. A *chunk* is up to 16 tokens, one per warp of a block. One warp
numbers a chunk's rows: it turns the masks, a lane per token, into *words*, a lane per expert with
one bit per token, by ballots; a row's number is then its expert's first row in the chunk plus the
bits below its own.

The first rows come from the counts of all chunks. Up to 16 tokens there is one chunk; up to 128,
the chunks are the blocks of one cluster and send each other their counts. More tokens take two
kernels: `pick` writes masks, weights and counts, and `number` reads the counts of all chunks in
every block. No atomics; the result is that of ..routing, but for the last bits of the weights.

Global tensors:
  logits [T, 256] fp32             bias [256] bf16
  expert_offsets [E + 1] int32     row_token [max_rows] int32     row_weight [max_rows] fp32
  token_rows [T, 8] int32          counters [COUNTERS] int32 (zeroed)
  masks [T] int32                  weights [T, 8] fp32            counts [chunks, E] int32 (scratch)

Blocks: route_chunk, route_few and pick 512 threads with about 54 registers each, number 1024 with
as many; shared memory 2 kB, 2 kB, 64 B and 13 kB.
"""

from __future__ import annotations

from itertools import combinations

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute import arch
from cutlass.memory import SmemAllocator

from ..geometry import Geometry, max_rows
from .device import select, sum_up_to_lane, vector
from .operands import Buffer, Inputs, RoutingScratch, Rows
from .tile_scheduler import COUNTERS

LANES = 32
LANE_EXPERTS = 8  # experts that a lane holds
GROUP_LANES = 4  # lanes that hold a group of experts
TOP_K = 8
CHUNK = 16  # tokens of a block, one per warp
CLUSTER = 8
FEW_TOKENS = CHUNK * CLUSTER
NUMBER_WARPS = 32  # chunks that a block of `number` numbers; also a warp per expert
LOADS = 8  # counts that a lane of `number` loads at a time
TAKEN = -(2**31)  # below every key
NAN = 0x7FC00000
# Batcher's odd-even merge sort of eight
SORTING_NETWORK = (
    (0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (1, 2), (5, 6),
    (0, 4), (1, 5), (2, 6), (3, 7), (2, 4), (3, 5), (1, 2), (3, 4), (5, 6),
)  # fmt: skip


# ---------------------------------------------------------------- algebra of one warp, lane by lane


def maximum(a: Int32, b: Int32) -> Int32:
    return cutlass.max(a, b)


def minimum(a: Int32, b: Int32) -> Int32:
    return cutlass.min(a, b)


def select_float(condition, yes, no) -> Float32:
    """`yes` where the condition holds, else `no`; no branch."""
    return Float32(cutlass.select_(condition, Float32(yes), Float32(no)))


def fma(a, b, c) -> Float32:
    """a * b + c, rounded once."""
    return arch.inline_ptx(
        "fma.rn.f32 {$w0}, {$r0}, {$r1}, {$r2};",
        write_only_types=[Float32], read_only_args=[a, b, Float32(c)],
    )  # fmt: skip


def sigmoid(x: Float32) -> Float32:
    """Bit for bit torch.sigmoid on a GPU, but for results below 2^-126.

    The division is the correctly rounded one; written out it has no branch, and eight of them
    overlap.
    """
    d = 1.0 + cute.math.exp(-x)
    approximate = arch.rcp_approx(d)
    exact = fma(approximate, fma(-d, approximate, 1.0), approximate)
    return select_float(d < 2.0**126, exact, approximate)


def bits_of(x: Float32) -> Int32:
    return arch.inline_ptx("mov.b32 {$w0}, {$r0};", write_only_types=[Int32], read_only_args=[x])


def float_of(bits: Int32) -> Float32:
    return arch.inline_ptx(
        "mov.b32 {$w0}, {$r0};", write_only_types=[Float32], read_only_args=[bits]
    )


def sortable(x: Float32) -> Int32:
    """An integer in the order of the floats, every NaN above +Inf, where the reference sorts it."""
    bits = select(x == x, bits_of(x), NAN)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def unsortable(key: Int32) -> Float32:
    """Inverse of `sortable`."""
    return float_of(key ^ ((key >> 31) & 0x7FFFFFFF))


def sorted_down(keys: list) -> list:
    """The lane's eight keys, largest first."""
    keys = list(keys)
    for i, j in SORTING_NETWORK:
        keys[i], keys[j] = maximum(keys[i], keys[j]), minimum(keys[i], keys[j])
    return keys


def ranks_of(keys: list) -> list:
    """Place of each key in `sorted_down`; of equals the lower expert comes first."""
    ranks = [Int32(len(keys) - 1 - i) for i in range(len(keys))]
    for i, j in combinations(range(len(keys)), 2):
        i_first = select(keys[i] >= keys[j], 1, 0)
        ranks[i] = ranks[i] - i_first
        ranks[j] = ranks[j] + i_first
    return ranks


def in_best_groups(first: Int32, second: Int32, num_top_groups: int):
    """Whether the lane's group is among the best by the sum of its two best experts, given the
    lane's own two."""
    for distance in (1, 2):
        other_first = arch.shuffle_sync_bfly(first, distance)
        other_second = arch.shuffle_sync_bfly(second, distance)
        second = maximum(minimum(first, other_first), maximum(second, other_second))
        first = maximum(first, other_first)
    score = sortable(unsortable(first) + unsortable(second))
    # lane 4 g + c asks whether groups c and c + 4 come before group g; of equals the lower does
    lane = arch.lane_idx()
    group = lane // GROUP_LANES
    before = Int32(0)
    for rival in (lane % GROUP_LANES, lane % GROUP_LANES + GROUP_LANES):
        rival_score = arch.shuffle_sync(score, rival * GROUP_LANES)
        wins = arch.vote_ballot_sync(rival_score + select(rival < group, 1, 0) > score)
        before = before + arch.popc((wins >> (group * GROUP_LANES)) & 15)
    return before < num_top_groups


def picked_experts(ranking: list, num_top_groups: int) -> list:
    """Which of the lane's eight experts the token picks, by the experts' ranking values.

    Eight times the lane with the best key left gives it away; of equals the lowest lane does.
    """
    keys = [sortable(value) for value in ranking]
    left = sorted_down(keys)
    left[0] = select(in_best_groups(left[0], left[1], num_top_groups), left[0], TAKEN)
    lane_bit = Int32(1) << arch.lane_idx()
    given = Int32(0)
    for _ in range(TOP_K):
        holders = arch.vote_ballot_sync(left[0] == arch.warp_redux_sync(left[0], "max"))
        gives = lane_bit == (holders & -holders)
        given = given + select(gives, 1, 0)
        shifted = [*left[1:], TAKEN]
        left = [select(gives, after, key) for key, after in zip(left, shifted, strict=True)]
    return [rank < given for rank in ranks_of(keys)]


def warp_sum(x: Float32) -> Float32:
    """Sum over the lanes, in every lane."""
    for distance in (1, 2, 4, 8, 16):
        x = x + arch.shuffle_sync_bfly(x, distance)
    return x


def local_picks(picked: list, offset: Int32) -> tuple:
    """The token's mask, and for each expert of the lane its position among the token's local picks
    (-1: not picked or not local)."""
    first = arch.lane_idx() * LANE_EXPERTS - offset  # the lane's first expert as a local one
    byte = Int32(0)
    for j, taken in enumerate(picked):
        byte = byte | select(taken, 1 << j, 0)
    shifted = select(first < 0, byte >> (-first & 31), byte << (first & 31))
    mine = select((first > -LANE_EXPERTS) & (first < LANES), shifted, 0)
    mask = arch.warp_redux_sync(mine, "or")
    below = select(first < 0, 0, (Int32(1) << (first & 31)) - 1)
    position = arch.popc(mask & below)
    positions = []
    for j, taken in enumerate(picked):
        local = taken & (first + j >= 0) & (first + j < LANES)
        positions.append(select(local, position, -1))
        position = position + select(local, 1, 0)
    return mask, positions


def words_of(mask: Int32) -> Int32:
    """Transpose: lane t's mask over experts -> lane e's word over tokens."""
    lane = arch.lane_idx()
    word = Int32(0)
    for expert in range(LANES):
        votes = arch.vote_ballot_sync(((mask >> expert) & 1) != 0)
        word = select(lane == expert, votes, word)
    return word


def rows_of(mask: Int32, word: Int32, first_row: Int32) -> list:
    """Lane t's rows, ascending, then -1. word, first_row: lane e's word and its first row."""
    below = (Int32(1) << arch.lane_idx()) - 1
    rows = []
    for _ in range(TOP_K):
        lowest = mask & -mask
        expert = arch.popc(lowest - 1) & 31
        rank = arch.popc(arch.shuffle_sync(word, expert) & below)
        row = arch.shuffle_sync(first_row, expert) + rank
        rows.append(select(mask != 0, row, -1))
        mask = mask ^ lowest
    return rows


# ------------------------------------------------------------------------------------------ kernels


class RoutePermute:
    """See the module's docstring. The kernel launched next must wait (griddepcontrol.wait)."""

    def __init__(self, geometry: Geometry):
        wanted = {
            "num_experts": LANES * LANE_EXPERTS,
            "num_local_experts": LANES,
            "num_groups": LANES // GROUP_LANES,
            "top_k": TOP_K,
        }
        for name, value in wanted.items():
            if getattr(geometry, name) != value:
                raise ValueError(f"{name}: expected {value}, got {getattr(geometry, name)}")
        self.geometry = geometry
        self.num_top_groups = geometry.num_top_groups

    def scratch(self, num_tokens) -> tuple[Rows, RoutingScratch]:
        """The memory of a call with this many tokens, as Buffers."""
        rows, experts = max_rows(self.geometry, num_tokens), self.geometry.num_local_experts
        chunks = (num_tokens + (CHUNK - 1)) // CHUNK
        return (
            Rows(
                expert_offsets=Buffer(Int32, (experts + 1,)),
                row_token=Buffer(Int32, (rows,)),
                row_weight=Buffer(Float32, (rows,)),
                token_rows=Buffer(Int32, (num_tokens, TOP_K)),
                counters=Buffer(Int32, (COUNTERS,)),
            ),
            RoutingScratch(
                masks=Buffer(Int32, (num_tokens,)),
                weights=Buffer(Float32, (num_tokens, TOP_K)),
                counts=Buffer(Int32, (chunks, experts)),
            ),
        )

    @cute.jit
    def __call__(
        self,
        inputs: Inputs,
        rows: Rows,
        scratch: RoutingScratch,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
        stream: cuda.CUstream,
    ):
        """Launch. inputs: only routing_logits and routing_bias are read."""
        logits, bias = inputs.routing_logits, inputs.routing_bias
        if num_tokens <= CHUNK:
            self.route_chunk(
                logits, bias, rows, num_tokens, local_expert_offset, routed_scaling_factor
            ).launch(
                grid=(1, 1, 1), block=(CHUNK * LANES, 1, 1), min_blocks_per_mp=1, stream=stream
            )
        elif num_tokens <= FEW_TOKENS:
            self.route_few(
                logits, bias, rows, num_tokens, local_expert_offset, routed_scaling_factor
            ).launch(
                grid=(CLUSTER, 1, 1), block=(CHUNK * LANES, 1, 1), cluster=(CLUSTER, 1, 1),
                min_blocks_per_mp=1, stream=stream,
            )  # fmt: skip
        else:
            chunks = cute.ceil_div(num_tokens, CHUNK)
            self.pick(
                logits, bias, scratch, num_tokens, local_expert_offset, routed_scaling_factor
            ).launch(
                grid=(chunks, 1, 1), block=(CHUNK * LANES, 1, 1), min_blocks_per_mp=1,
                stream=stream,
            )  # fmt: skip
            self.number(rows, scratch, num_tokens, chunks).launch(
                grid=(cute.ceil_div(chunks, NUMBER_WARPS), 1, 1),
                block=(NUMBER_WARPS * LANES, 1, 1), min_blocks_per_mp=1, stream=stream,
                use_pdl=True,
            )  # fmt: skip

    # -------------------------------------------------------------------------------- few tokens

    @cute.kernel
    def route_chunk(
        self,
        logits: cute.Pointer,
        bias: cute.Pointer,
        rows: Rows,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
    ):
        """All tokens in one block, without a cluster's barriers, which take a microsecond."""
        self.route(1, logits, bias, rows, num_tokens, local_expert_offset, routed_scaling_factor)

    @cute.kernel
    def route_few(
        self,
        logits: cute.Pointer,
        bias: cute.Pointer,
        rows: Rows,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
    ):
        """Block b of the cluster is chunk b: as many tokens as give every block its share."""
        self.route(
            CLUSTER, logits, bias, rows, num_tokens, local_expert_offset, routed_scaling_factor
        )

    @cute.jit
    def route(
        self, cluster: cutlass.Constexpr, logits: cute.Pointer, bias: cute.Pointer, rows: Rows,
        num_tokens: Int32, local_expert_offset: Int32, routed_scaling_factor: Float32,
    ):  # fmt: skip
        """By all threads of a cluster of so many blocks."""
        arch.griddepcontrol_launch_dependents()

        @cute.struct
        class Shared:
            masks: cute.struct.MemRange[Int32, LANES]
            counts: cute.struct.MemRange[Int32, cluster * LANES]
            weights: cute.struct.Align[cute.struct.MemRange[Float32, TOP_K * LANES], 16]

        shared = SmemAllocator().allocate(Shared)
        masks, counts = shared.masks.data_ptr(), shared.counts.data_ptr()
        weights = shared.weights.data_ptr()
        thread, _, _ = arch.thread_idx()
        block, _, _ = arch.block_idx()
        warp = arch.make_warp_uniform(arch.warp_idx())
        lane = arch.lane_idx()
        if cutlass.const_expr(cluster > 1):
            # nobody may write into a block's shared memory before it runs
            arch.cluster_arrive_relaxed()
        chunk = cute.ceil_div(num_tokens, cluster)
        first_token = block * chunk
        size = cutlass.min(chunk, num_tokens - first_token)
        if block == 0 and thread < COUNTERS:
            _store(rows.counters + thread, Int32(0))
        if warp < size:
            self.pick_token(
                logits + (first_token + warp) * (LANES * LANE_EXPERTS), bias, masks + warp,
                weights + warp * TOP_K, local_expert_offset, routed_scaling_factor,
            )  # fmt: skip
        if cutlass.const_expr(cluster > 1):
            arch.cluster_wait()
        arch.sync_threads()
        mask = Int32(0)
        if lane < size:
            mask = _load(masks + lane)
        word = words_of(mask)
        total, before = arch.popc(word), Int32(0)
        if cutlass.const_expr(cluster > 1):
            if warp < cluster:
                # warp w tells block w
                remote = arch.map_dsmem_ptr(counts + block * LANES + lane, warp)
                arch.inline_ptx(
                    "st.shared::cluster.s32 [{$r0}], {$r1};",
                    read_only_args=[remote.toint(), total],
                )
            arch.cluster_arrive()
            arch.cluster_wait()
        if warp == 0:
            if cutlass.const_expr(cluster > 1):
                total = Int32(0)
                for other in cutlass.range_constexpr(cluster):
                    count = _load(counts + other * LANES + lane)
                    total = total + count
                    before = before + select(other < block, count, 0)
            end = sum_up_to_lane(total)
            if block == 0:
                self.store_offsets(rows.expert_offsets, end)
            self.store_rows(rows, weights, first_token, size, mask, word, end - total + before)

    # ------------------------------------------------------------------------------- many tokens

    @cute.kernel
    def pick(
        self,
        logits: cute.Pointer,
        bias: cute.Pointer,
        scratch: RoutingScratch,
        num_tokens: Int32,
        local_expert_offset: Int32,
        routed_scaling_factor: Float32,
    ):
        """Block b picks the experts of tokens 16 b .. 16 b + 15 and counts them."""
        arch.griddepcontrol_launch_dependents()

        @cute.struct
        class Shared:
            masks: cute.struct.MemRange[Int32, CHUNK]

        block_masks = SmemAllocator().allocate(Shared).masks.data_ptr()
        block, _, _ = arch.block_idx()
        warp = arch.make_warp_uniform(arch.warp_idx())
        lane = arch.lane_idx()
        token = block * CHUNK + warp
        if token < num_tokens:
            weights = scratch.weights + Int64(token) * TOP_K
            mask = self.pick_token(
                logits + Int64(token) * (LANES * LANE_EXPERTS), bias, block_masks + warp, weights,
                local_expert_offset, routed_scaling_factor,
            )  # fmt: skip
            if (lane >= arch.popc(mask)) & (lane < TOP_K):  # `number` reads all eight at once
                _store(weights + lane, Float32(0.0))
        arch.sync_threads()
        if warp == 0:
            mask = Int32(0)
            if lane < cutlass.min(CHUNK, num_tokens - block * CHUNK):
                mask = _load(block_masks + lane)
                _store(scratch.masks + block * CHUNK + lane, mask)
            _store(scratch.counts + block * LANES + lane, arch.popc(words_of(mask)))

    @cute.kernel
    def number(
        self,
        rows: Rows,
        scratch: RoutingScratch,
        num_tokens: Int32,
        chunks: Int32,
    ):
        """Warp w of block b numbers the rows of chunk 32 b + w.

        To sum the counts of the chunks before it, warp w adds up those of chunks w, w + 32, ...;
        then warp e adds up what the 32 warps have found for expert e.
        """
        arch.griddepcontrol_launch_dependents()
        pitch = LANES + 1  # of a row of shared memory: its columns are read too

        @cute.struct
        class Shared:
            total: cute.struct.MemRange[Int32, NUMBER_WARPS * pitch]
            before: cute.struct.MemRange[Int32, NUMBER_WARPS * pitch]
            own: cute.struct.MemRange[Int32, NUMBER_WARPS * pitch]
            experts: cute.struct.MemRange[Int32, LANES]

        shared = SmemAllocator().allocate(Shared)
        thread, _, _ = arch.thread_idx()
        block, _, _ = arch.block_idx()
        warp = arch.make_warp_uniform(arch.warp_idx())
        lane = arch.lane_idx()
        chunk = block * NUMBER_WARPS + warp
        first_token = chunk * CHUNK
        size = cutlass.max(cutlass.min(CHUNK, num_tokens - first_token), 0)
        if block == 0 and thread < COUNTERS:
            _store(rows.counters + thread, Int32(0))
        arch.griddepcontrol_wait()

        mask, own = Int32(0), Int32(0)
        if lane < size:
            mask = _load(scratch.masks + first_token + lane)
        if chunk < chunks:
            own = _load(scratch.counts + chunk * LANES + lane)
        total, before = Int32(0), Int32(0)
        for first in cutlass.range(warp, chunks, NUMBER_WARPS * LOADS, unroll=1):
            others = [first + i * NUMBER_WARPS for i in range(LOADS)]
            found = [
                _load(scratch.counts + cutlass.min(other, chunks - 1) * LANES + lane)
                for other in others
            ]
            for i in cutlass.range_constexpr(LOADS):
                total += select(others[i] < chunks, found[i], 0)
                before += select(others[i] < block * NUMBER_WARPS, found[i], 0)
        row, column = warp * pitch + lane, lane * pitch + warp
        _store(shared.total.data_ptr() + row, total)
        _store(shared.before.data_ptr() + row, before)
        _store(shared.own.data_ptr() + row, own)
        arch.sync_threads()
        # here a warp is an expert and a lane is a warp
        total = arch.warp_redux_sync(_load(shared.total.data_ptr() + column), "add")
        before = arch.warp_redux_sync(_load(shared.before.data_ptr() + column), "add")
        own = _load(shared.own.data_ptr() + column)
        _store(shared.own.data_ptr() + column, before + sum_up_to_lane(own) - own)
        if lane == 0:
            _store(shared.experts.data_ptr() + warp, total)
        arch.sync_threads()
        total = _load(shared.experts.data_ptr() + lane)
        end = sum_up_to_lane(total)
        if block == 0 and warp == 0:
            self.store_offsets(rows.expert_offsets, end)
        self.store_rows(
            rows, scratch.weights + Int64(first_token) * TOP_K, first_token, size, mask,
            words_of(mask), end - total + _load(shared.own.data_ptr() + row),
        )  # fmt: skip

    # ------------------------------------------------------------------------- one warp's share

    @cute.jit
    def pick_token(
        self, logits: cute.Pointer, bias: cute.Pointer, mask_out: cute.Pointer,
        weights_out: cute.Pointer, offset: Int32, factor: Float32,
    ) -> Int32:  # fmt: skip
        """A token's mask, also returned, and the weights of its local picks; logits [256],
        weights_out [8]."""
        lane = arch.lane_idx()
        x = cute.make_rmem_tensor((LANE_EXPERTS,), Float32)
        b = cute.make_rmem_tensor((LANE_EXPERTS,), BFloat16)
        cute.autovec_copy(vector(logits + lane * LANE_EXPERTS, LANE_EXPERTS, 16), x)
        cute.autovec_copy(vector(bias + lane * LANE_EXPERTS, LANE_EXPERTS, 16), b)
        scores = [sigmoid(x[j]) for j in range(LANE_EXPERTS)]
        ranking = [scores[j] + Float32(b[j]) for j in range(LANE_EXPERTS)]
        picked = picked_experts(ranking, self.num_top_groups)
        chosen = Float32(0.0)
        for j in cutlass.range_constexpr(LANE_EXPERTS):
            chosen = chosen + select_float(picked[j], scores[j], 0.0)
        scale = factor / (warp_sum(chosen) + 1e-20)
        mask, positions = local_picks(picked, offset)
        if lane == 0:
            _store(mask_out, mask)
        for j in cutlass.range_constexpr(LANE_EXPERTS):
            if positions[j] >= 0:
                _store(weights_out + positions[j], scores[j] * scale)
        return mask

    @cute.jit
    def store_rows(
        self, rows: Rows, weights: cute.Pointer, first_token: Int32, size: Int32, mask: Int32,
        word: Int32, first_row: Int32,
    ):  # fmt: skip
        """Write a chunk's rows: lane t is token first_token + t, weights [size, 8] the chunk's."""
        lane = arch.lane_idx()
        numbers = rows_of(mask, word, first_row)
        if lane < size:
            mine = cute.make_rmem_tensor((TOP_K,), Float32)
            listed = cute.make_rmem_tensor((TOP_K,), Int32)
            cute.autovec_copy(vector(weights + lane * TOP_K, TOP_K, 16), mine)
            for k in cutlass.range_constexpr(TOP_K):
                listed[k] = numbers[k]
                if numbers[k] >= 0:
                    _store(rows.row_token + numbers[k], first_token + lane)
                    _store(rows.row_weight + numbers[k], mine[k])
            target = rows.token_rows + Int64(first_token + lane) * TOP_K
            cute.autovec_copy(listed, vector(target, TOP_K, 16))

    @cute.jit
    def store_offsets(self, expert_offsets: cute.Pointer, end: Int32):
        """end: lane e's expert ends before this row."""
        lane = arch.lane_idx()
        if lane == 0:
            _store(expert_offsets, Int32(0))
        _store(expert_offsets + lane + 1, end)


def _load(pointer: cute.Pointer):
    return cute.make_tensor(pointer, cute.make_layout(1))[0]


def _store(pointer: cute.Pointer, value) -> None:
    cute.make_tensor(pointer, cute.make_layout(1))[0] = value
