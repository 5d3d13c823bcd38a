"""What a block's mbarriers wait for, and what is refused before it could hang."""

from dataclasses import replace

import pytest

pytest.importorskip("cutlass")
from solutions.common.cutedsl.config import BLOCK_K, CONFIGS, only
from solutions.common.cutedsl.gathered_tokens import GatheredTokens
from solutions.common.cutedsl.layer import MoeLayer
from solutions.common.cutedsl.moe_gemms import MoeGemms
from solutions.common.cutedsl.roles import Barrier, Role, barriers_of, check_warps
from solutions.common.cutedsl.sm90.swap_ab import SwapAb
from solutions.common.cutedsl.sm90.tokens_on_m import TokensOnM
from solutions.common.cutedsl.streamed_tokens import StreamedTokens
from solutions.common.geometry import DEEPSEEK_V3_EP8

FEW, MANY = CONFIGS[0], CONFIGS[-1]


def barriers_for(config):
    return MoeLayer(DEEPSEEK_V3_EP8, only(config), num_sms=132).gemms.barriers


def test_counts_of_shipped_configurations():
    """As counted by hand from the roles' code.

    Filled: a lane's announcement and every cp.async lane's arrival. Empty: all consumers' lanes,
    and a lane of each consumer warp of the other block. Queue: 32 lanes of each reading warp, and
    for the first block of two a lane of the other's readers and of its publisher.
    """
    found = []
    for config in CONFIGS:
        full, empty, queue_full, (first, other) = barriers_for(config)
        found.append((full.count, empty.count, queue_full.count, first.count, other.count))
    assert found == [
        (65, 128, 1, 32 * 7, 32 * 8),
        (65, 256, 1, 32 * 11, 32 * 12),
        (65, 256 + 8, 1, 32 * 11 + 12, 32 * 12),
        (33, 256 + 8, 1, 32 * 9 + 10, 32 * 10),
    ]


def test_announced_bytes():
    for config in [*CONFIGS, replace(FEW, num_warpgroups=2, block_n=256, num_stages=4)]:
        tokens = 0 if config.swap_ab else (BLOCK_K + 4 * config.act_spans) * config.block_m
        assert barriers_for(config).ring_full.announced == BLOCK_K * config.block_n + tokens


class ForgetfulProducer(StreamedTokens):
    """Announces half of what the weight boxes bring."""

    def __init__(self, gemms):
        super().__init__(gemms)
        weights, tokens = self.roles
        self.roles = weights._replace(announced=weights.announced // 2), tokens


class SilentConsumers(TokensOnM):
    """Read slots and never release them."""

    def __init__(self, geometry, config):
        super().__init__(geometry, config)
        (role,) = self.roles
        self.roles = (role._replace(releases=0, remote_releases=0),)


class GreedyConsumers(TokensOnM):
    """Ask for more registers than there are."""

    def __init__(self, geometry, config):
        super().__init__(geometry, config)
        self.registers = 56, 232


class LoneConsumers(SwapAb):
    """A warp is missing."""

    def __init__(self, geometry, config):
        super().__init__(geometry, config)
        (role,) = self.roles
        self.roles = (role._replace(warps=role.warps - 1),)


@pytest.mark.parametrize(
    "config, consumers, tokens, message",
    [
        (FEW, SwapAb, ForgetfulProducer,
         r"ring.full: expected as many bytes announced as TMA brings, 16384, got 8192 \(weights 1"),
        (MANY, SilentConsumers, GatheredTokens, "ring.empty: expected 1 to .* arrivals, got 0"),
        (MANY, GreedyConsumers, GatheredTokens, "registers: expected at most 65536 .* got 66560"),
        (FEW, LoneConsumers, StreamedTokens, "consumers: expected whole warpgroups .* got 3 warps"),
    ],
    ids=["bytes", "arrivals", "registers", "warps"],
)  # fmt: skip
def test_refused_at_construction(config, consumers, tokens, message):
    with pytest.raises(ValueError, match=message):
        MoeGemms(DEEPSEEK_V3_EP8, config, 132, consumers, tokens)


def test_bytes_that_no_barrier_can_count():
    with pytest.raises(ValueError, match="ring.full: expected at most 1048575 bytes, got 1048576"):
        Barrier("ring.full", {"weights": 1}, 1 << 20, 1 << 20).check()


def test_queue_of_a_cluster_announces_its_records():
    reader = Role("reader", 4, reads_queue=True, fills=1, releases=4)
    one, two = (barriers_of([reader], Role("scheduler", 1), n, 32) for n in (1, 2))
    assert (one.queue_full.announced, two.queue_full.announced) == (0, 32)


def test_registers_may_use_a_whole_multiprocessor():
    producers, consumers = [Role("producers", 4)], [Role("consumers", 8)]
    check_warps(producers, consumers, (56, 224))
    check_warps(producers, consumers, None)
    with pytest.raises(ValueError, match="producers: expected whole warpgroups .* got 0 warps"):
        check_warps([], consumers, None)
