"""Several threads of one process: they compile one after the other, and do not get mixed up."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import pytest
from child import facts_of, run_child
from every_solution import run_of

from solutions.common.once import once

# that compile kernels of the bundle's own; v2's GEMM is v1's
COMPILED = (
    "cutedsl_moe_fp8_v1",
    "cutedsl_moe_fp8_v3",
    "triton_fused_moe_v3",
    "triton_fused_moe_v2",
)


def test_made_once_whoever_comes():
    threads, made = 8, []
    start, busy = Barrier(threads), Lock()

    @once
    def make(first, second):
        made.append((first, second))
        assert busy.acquire(blocking=False), "two threads at once"
        time.sleep(0.01)
        busy.release()
        return object()

    def work(number):
        start.wait()
        return make(number % 2, "same")

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(work, range(threads)))
    assert sorted(made) == [(0, "same"), (1, "same")]
    assert len(set(results)) == 2
    assert all(result is results[number % 2] for number, result in enumerate(results))


def test_an_error_is_not_kept():
    attempts = []

    @once
    def make():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("first")
        return "second"

    with pytest.raises(OSError, match="first"):
        make()
    assert make() == make() == "second" and len(attempts) == 2


def test_cutedsl_compiles_in_threads():
    """Without a lock: a crash of the process, or nonsense errors."""
    pytest.importorskip("cutlass")
    (hashes,) = facts_of("compile_in_threads.py")
    assert hashes["together"] == hashes["alone"]
    assert len(set(hashes["alone"])) == len(hashes["alone"]) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMPILED)
def test_eight_threads_call(name):
    run_of(name)  # skips
    done = run_child("calls_in_threads.py", name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
