"""v1's, v2's and v3's kernels at toy sizes: every order gives the same bits, without a race."""

import json
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("cutlass")

from bundle.emulation.digests import EmulatedCase, cases

from emulator import LAZY, Emulator, random_schedules

HARDWARE = Path(__file__).parents[2] / "emulator" / "hardware" / "digests.json"
SMALL = {case.name: case for case in cases() if not case.real}
SLOW = ("configuration 4", "choice")  # a schedule takes seconds


@cache
def compiled(name: str) -> EmulatedCase:
    return EmulatedCase(SMALL[name])


@pytest.mark.parametrize("name", list(SMALL))
def test_every_order_gives_the_same_bits_without_a_race(name):
    case = compiled(name)
    expected = case.digests()
    few = any(text in name for text in SLOW)
    for schedule in (LAZY, *random_schedules(1 if few else 4)):
        assert case.digests(Emulator(schedule, race=not few)) == expected


@pytest.mark.skipif(not HARDWARE.exists(), reason="no digests of a GPU yet")
@pytest.mark.parametrize("name", list(SMALL))
def test_the_emulator_equals_the_gpu(name):
    assert compiled(name).digests() == json.loads(HARDWARE.read_text())["digests"][name]
