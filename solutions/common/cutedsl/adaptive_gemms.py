"""Several tile configurations in one kernel: the rows of each expert, known only on the device,
decide which of them works.

What a configuration takes depends on how many rows an expert has, not on how many tokens there are.
The routing tells the rows to the device, and the host must not wait for them. So the kernel holds
the code of every candidate (`config.Candidate`), and each block, once the routing is there, runs
that of the least estimated time. All blocks read the same numbers and come to the same choice.

All candidates have the same threads; a block's memory is that of the largest. The scratch memory is
laid out for any of them.
"""

from __future__ import annotations

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute import arch
from cutlass.memory import SmemAllocator

from .config import Candidate
from .device import select
from .moe_gemms import MoeGemms, gemm_operands
from .operands import Buffer, GemmOperands, GemmScratch, Inputs, Rows

SHARED_ALIGNMENT = 1024  # of a block's memory, in bytes
MOST = 2**31 - 1


def cheapest(candidates: tuple[Candidate, ...], rows: Int32) -> Int32:
    """Number of the candidate with the least cost, the first of equals; by all lanes of a warp.

    rows: of the lane's expert, or 0. On the host, `config.choose` does the same.
    """
    best, choice = Int32(MOST), Int32(0)
    for i, candidate in enumerate(candidates):
        cost = arch.warp_redux_sync(candidate.cost(rows, select), "add")
        choice = select(cost < best, i, choice)
        best = select(cost < best, cost, best)
    return choice


class AdaptiveGemms:
    """Both GEMMs and the combine, see the module's docstring.

    gemms: one for each candidate. What is prefetched while the routing runs is the first one's.
    Raises ValueError where the candidates do not fit together.
    """

    def __init__(self, candidates: tuple[Candidate, ...], gemms: tuple[MoeGemms, ...]):
        for name in ("geometry", "threads"):
            values = {getattr(each, name) for each in gemms}
            if len(values) != 1:
                raise ValueError(f"{name}: must be the same for all candidates, got {values}")
        self.candidates = candidates
        self.gemms = gemms
        self.threads = gemms[0].threads
        self.experts = gemms[0].geometry.num_local_experts
        self.cluster = max(each.config.cluster for each in gemms)
        self.num_blocks = min(each.num_blocks for each in gemms)

    def act_rows(self, num_tokens):
        """Rows of act for this many tokens: those of the candidate that needs most."""
        return max(self.gemms, key=lambda each: each.act_rows(1)).act_rows(num_tokens)

    def scratch(self, num_tokens) -> GemmScratch:
        """The memory of a call with this many tokens, as Buffers that are large enough for all."""
        rows = self.act_rows(num_tokens)
        act, act_scale, y = zip(*(each.scratch(num_tokens) for each in self.gemms), strict=True)
        act, act_scale = (
            Buffer(buffers[0].dtype, (rows, max(buffer.shape[1] for buffer in buffers)))
            for buffers in (act, act_scale)
        )
        return GemmScratch(act, act_scale, y[0])

    @cute.jit
    def __call__(
        self,
        inputs: Inputs,
        rows: Rows,
        scratch: GemmScratch,
        output: cute.Pointer,
        num_tokens: Int32,
        act_rows: Int32,
        stream: cuda.CUstream,
    ):
        """As that of `MoeGemms`."""
        operands = gemm_operands(inputs, rows, scratch, output, num_tokens, act_rows)
        w1, w2 = inputs.gemm1_weights, inputs.gemm2_weights
        for each in self.gemms:
            each.shared = each.storage()
        self.kernel(
            tuple(each.consumers.weight_loads(w1, w2) for each in self.gemms),
            tuple(each.consumers.tiled_mma() for each in self.gemms),
            operands,
            tuple(
                each.tokens.token_loads(scratch.act, scratch.act_scale, act_rows)
                for each in self.gemms
            ),
        ).launch(
            grid=(self.num_blocks, 1, 1), cluster=(self.cluster, 1, 1),
            block=(self.threads, 1, 1), min_blocks_per_mp=1, stream=stream, use_pdl=True,
        )  # fmt: skip

    @cute.kernel
    def kernel(self, loads: tuple, tiled_mmas: tuple, operands: GemmOperands, token_loads: tuple):
        """The tuples: for each candidate."""
        size = max(each.shared.size_in_bytes() for each in self.gemms)
        memory = SmemAllocator().allocate(size, SHARED_ALIGNMENT)
        first = self.gemms[0]
        first.prefetch(operands)
        first.prefetch_weights(first.shared(memory), loads[0], operands.num_tokens)
        arch.griddepcontrol_launch_dependents()
        arch.griddepcontrol_wait()
        choice = arch.make_warp_uniform(self.choose(operands.expert_offsets))
        for i in cutlass.range_constexpr(len(self.gemms)):
            if choice == i:
                self.run(self.gemms[i], memory, loads[i], tiled_mmas[i], operands, token_loads[i])

    @cute.jit
    def run(
        self, gemms: cutlass.Constexpr, memory: cute.Pointer, loads, tiled_mma, operands,
        token_loads,
    ):  # fmt: skip
        """By all threads: work in one candidate's way."""
        block = gemms.block(gemms.shared(memory))
        gemms.start(block, loads)
        gemms.sync_cluster()
        gemms.work(block, loads, tiled_mma, operands, token_loads)

    def choose(self, expert_offsets: cute.Pointer) -> Int32:
        """Number of the candidate with the least estimated time; by all lanes of a warp."""
        offsets = cute.make_tensor(expert_offsets, cute.make_layout(self.experts + 1))
        lane = arch.lane_idx()
        expert = select(lane < self.experts, lane, self.experts - 1)
        rows = select(lane < self.experts, offsets[expert + 1] - offsets[expert], 0)
        return cheapest(self.candidates, rows)
