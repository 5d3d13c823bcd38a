"""The algebra of the CuTe DSL routing, a warp at a time, against the definition's `route`.

The device code runs here as it is: its warp primitives are replaced by NumPy versions in which an
array of 32 values is a register of a warp.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_routing import logits_and_bias, reference_route

from solutions.common.geometry import DEEPSEEK_V3_EP8

pytest.importorskip("cutlass")
from solutions.common.cutedsl import device, routing

LANES = np.arange(32, dtype=np.int32)


class Warp:
    """The primitives of `cute.arch` that the routing uses, on arrays of 32 lanes."""

    lane_idx = staticmethod(lambda: LANES)
    shuffle_sync = staticmethod(lambda value, lane: value[lane])
    shuffle_sync_bfly = staticmethod(lambda value, distance: value[LANES ^ distance])

    @staticmethod
    def shuffle_sync_up(value, distance, mask_and_clamp):
        assert mask_and_clamp == 0
        return np.concatenate([value[:distance], value[:-distance]])

    @staticmethod
    def vote_ballot_sync(predicate):
        assert predicate.dtype == bool
        return np.full(32, np.packbits(predicate, bitorder="little").view(np.int32)[0])

    @staticmethod
    def warp_redux_sync(value, kind):
        assert value.dtype == np.int32
        return np.full(32, {"max": np.max, "or": np.bitwise_or.reduce}[kind](value))

    @staticmethod
    def popc(value):
        bits = np.unpackbits(np.asarray(value, np.int32)[:, None].view(np.uint8), axis=1)
        return bits.sum(1, dtype=np.int32)


@pytest.fixture(autouse=True)
def warp(monkeypatch):
    primitives = {
        "arch": Warp,
        "Int32": np.int32,
        "select": lambda condition, yes, no: np.where(condition, yes, no).astype(np.int32),
        "maximum": np.maximum,
        "minimum": np.minimum,
        "bits_of": lambda x: x.view(np.int32),
        "float_of": lambda bits: bits.view(np.float32),
    }
    for name, primitive in primitives.items():
        monkeypatch.setattr(routing, name, primitive)
    for name in ("arch", "select"):
        monkeypatch.setattr(device, name, primitives[name])


def picks(ranking: torch.Tensor) -> set:
    """The experts that a warp picks by 256 ranking values."""
    lanes = list(ranking.numpy().reshape(32, 8).T.copy())
    picked = np.array(routing.picked_experts(lanes, DEEPSEEK_V3_EP8.num_top_groups))
    assert picked.shape == (8, 32)
    return set(np.flatnonzero(picked.T))


def check_picks(logits, bias):
    ids, _ = reference_route(logits, bias, 1.0)
    for ranking, expected in zip(torch.sigmoid(logits) + bias.float(), ids.tolist(), strict=True):
        assert picks(ranking) == set(expected)


def test_picks_are_the_references():
    check_picks(*(t.cpu() for t in logits_and_bias(120)))


def test_all_equal():
    check_picks(torch.zeros(1, 256), torch.zeros(256, dtype=torch.bfloat16))


def test_nan_ranks_highest():
    logits, bias = (t.cpu() for t in logits_and_bias(60))
    generator = torch.Generator().manual_seed(1)
    for number, token in enumerate(logits):
        token[torch.randint(256, (number % 12,), generator=generator)] = float("nan")
    check_picks(logits, bias)


def test_extreme_scores():
    """Saturated, negative and infinite values keep their order."""
    logits, bias = (t.cpu() for t in logits_and_bias(40))
    bias = bias.clone()
    bias[::5] = -3.0
    bias[7], bias[130] = float("inf"), -float("inf")
    check_picks(logits * 30, bias)


@pytest.mark.parametrize("offset", [0, 1, 95, 96, 99, 127, 160, 223, 224])
def test_masks_of_local_picks(offset):
    rng = np.random.default_rng(offset)
    for _ in range(20):
        experts = rng.choice(np.arange(max(0, offset - 20), min(256, offset + 50)), 8, False)
        picked = np.zeros(256, bool)
        picked[experts] = True
        mask, positions = routing.local_picks(list(picked.reshape(32, 8).T), np.int32(offset))
        local = [e for e in sorted(experts) if offset <= e < offset + 32]
        assert (mask.view(np.uint32) == sum(1 << int(e - offset) for e in local)).all()
        found = np.array(positions).T.reshape(256)
        assert [found[e] for e in local] == list(range(len(local)))
        assert (found >= 0).sum() == len(local)


def test_rows_of_a_chunk():
    """Rows by expert, then token; each token's ascending; the chunks before it are counted."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        picked = np.zeros((32, 32), bool)  # [token, expert]
        for token in range(rng.integers(1, 33)):
            picked[token, rng.choice(32, rng.integers(0, 9), False)] = True
        mask = np.packbits(picked, axis=1, bitorder="little").view(np.int32)[:, 0]
        word = routing.words_of(mask)
        counts = routing.arch.popc(word)
        assert (counts == picked.sum(0)).all()
        end = routing.sum_up_to_lane(counts)
        assert (end == np.cumsum(counts)).all()
        before = rng.integers(0, 100, 32).astype(np.int32)
        number = (np.cumsum(picked.T.ravel()) - 1).reshape(32, 32).T + before
        rows = np.array(routing.rows_of(mask, word, end - counts + before)).T
        for token in range(32):
            mine = list(number[token][picked[token]])
            assert list(rows[token]) == mine + [-1] * (8 - len(mine))


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "num_groups", "top_k"])
def test_other_geometry_is_refused(name):
    value = getattr(DEEPSEEK_V3_EP8, name)
    with pytest.raises(ValueError, match=f"{name}: expected {value}, got {value // 2}"):
        routing.RoutePermute(replace(DEEPSEEK_V3_EP8, **{name: value // 2}))
