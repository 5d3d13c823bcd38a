"""v1's, v2's and v3's kernels at toy sizes: every order gives the same bits, without a race."""

import json
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("cutlass")

from bundle.emulation.digests import EmulatedCase, cases, small_cases

from emulator import LAZY, Emulator, random_schedules

HARDWARE = Path(__file__).parents[2] / "emulator" / "hardware" / "digests.json"
SMALL = {case.name: case for case in cases() if not case.real}
FAST = [name for name in SMALL if "tile" in name or "configuration 1" in name]
LONG = [pytest.param(name, marks=pytest.mark.long) for name in SMALL if name not in FAST]


@cache
def compiled(name: str) -> EmulatedCase:
    return EmulatedCase(SMALL[name])


@pytest.mark.parametrize("name", FAST + LONG)
def test_late_operations_give_the_same_bits_without_a_race(name):
    case = compiled(name)
    assert case.digests(Emulator(LAZY, race=True)) == case.digests()


@pytest.mark.long
@pytest.mark.parametrize("case", small_cases(90), ids=lambda case: case.name)
def test_every_order_gives_the_same_bits_without_a_race(case):
    """Of two multiprocessors, so that a block comes around its rings."""
    emulated = EmulatedCase(case, 2)
    expected = emulated.digests()
    for schedule in random_schedules(20):
        assert emulated.digests(Emulator(schedule, race=True)) == expected, schedule


@pytest.mark.skipif(not HARDWARE.exists(), reason="no digests of a GPU yet")
@pytest.mark.parametrize("name", FAST + LONG)
def test_the_emulator_equals_the_gpu(name):
    assert compiled(name).digests() == json.loads(HARDWARE.read_text())["digests"][name]
