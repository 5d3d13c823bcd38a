"""v3's persistent kernel finishes however few of its blocks the device has room for.

A kernel that waits for a block that has not started would hang for good.
"""

import pytest
from child import run_child

pytest.importorskip("cutlass")
pytest.importorskip("tvm_ffi")


def check(*arguments) -> None:
    done = run_child("crowded.py", *map(str, arguments), under=("timeout", "120"))
    assert done.returncode != 124, "hangs"
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "right"


@pytest.mark.gpu
@pytest.mark.parametrize("low, high", [(901, 58), (4096, 901)])
def test_streams_of_unlike_priority(low, high):
    check("streams", low, high)


@pytest.mark.gpu
@pytest.mark.parametrize("part", [2, 8])
def test_part_of_the_multiprocessors(part):
    check("part", part, 7, 58, 300, 901, 4096)
