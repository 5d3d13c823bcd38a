"""v1's, v2's and v3's kernels at toy sizes: schedules, races, and a device for whole solutions."""

import json
from functools import cache
from pathlib import Path

import pytest
from bundle.emulation.digests import Case, cases, emulated_digests

from emulator import EAGER, LAZY, Emulator, random_schedules

HARDWARE = Path(__file__).parents[2] / "emulator" / "hardware" / "digests.json"
SMALL = {case.name: case for case in cases() if not case.real}


@cache
def eager(case: Case) -> dict[str, str]:
    return emulated_digests(case, Emulator(EAGER))


@pytest.mark.parametrize("name", [name for name in SMALL if "configuration 1" in name])
def test_every_order_gives_the_same_bits_without_a_race(name):
    expected = eager(SMALL[name])
    for schedule in (LAZY, *random_schedules(20)):
        assert emulated_digests(SMALL[name], Emulator(schedule, race=True)) == expected


@pytest.mark.parametrize("name", list(SMALL))
def test_late_operations_give_the_same_bits(name):
    assert emulated_digests(SMALL[name], Emulator(LAZY)) == eager(SMALL[name])


@pytest.mark.skipif(not HARDWARE.exists(), reason="no digests of a GPU yet")
@pytest.mark.parametrize("name", list(SMALL))
def test_the_emulator_equals_the_gpu(name):
    assert eager(SMALL[name]) == json.loads(HARDWARE.read_text())["digests"][name]
