"""Honest and hostile solutions side by side: each has its own result, and nothing is left."""

import gc
import os
import resource
import tempfile
from pathlib import Path

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import make_config
from bundle.runs.cpu_runner import cpu_benchmark
from bundle.runs.jobs import Job, evaluate, split
from bundle.runs.store import read_traces, store_traces
from bundle.sandbox.contract import Limits
from bundle.sandbox.processes import descendants
from escapes import CASES as ESCAPING
from flashinfer_bench.data import TraceSet
from hostile import CASES as BROKEN
from toy_bundle import DEFINITION, control, make_bundle, packed

KINDS = {"broken": BROKEN, "escaping": ESCAPING}
SECONDS = 6.0
LIMITS = Limits(
    SECONDS,
    memory_bytes=2 << 30,
    printed_bytes=64 << 20,
    written_bytes=1 << 30,
    processes=48,
    files=2000,
)
CONFIG = {"warmup_runs": 1, "iterations": 1, "num_trials": 1, "rtol": 1e-2, "atol": 1e-2}
HONEST = ("honest_first", "honest_middle", "honest_last")


def state():
    """What solutions could leave behind or change: processes, files, what the kernel keeps."""
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    folders = sorted(Path(tempfile.gettempdir()).iterdir())
    in_memory = sorted(Path("/dev/shm").glob("*left_by_a_solution"))
    objects = [Path("/proc/sysvipc", kind).read_text() for kind in ("shm", "sem", "msg")]
    mine = (
        os.sched_getaffinity(0),
        os.getpriority(os.PRIO_PROCESS, 0),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    )
    return descendants(os.getpid()), files, folders, in_memory, objects, mine


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    """A folder for temporary files that no other process uses."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    sources = {name: case.source for name, case in (BROKEN | ESCAPING).items()}
    make_bundle(root, sources | dict.fromkeys(HONEST, control("good")), (8,))
    solutions = {solution.name: solution for solution in packed(root)}
    return root, solutions


def run_in(order, bundle, traces_dir):
    root, solutions = bundle
    dataset = load_dataset(root)
    definition = dataset.definitions[DEFINITION]
    row = dataset.workloads[DEFINITION][0]
    benchmark = cpu_benchmark(TraceSet(root=root), make_config(**CONFIG), LIMITS)
    try:
        for job in split([Job(definition, row, [solutions[name] for name in order])]):
            store_traces(traces_dir, definition, evaluate(benchmark, job))
    finally:
        benchmark.close()
    return {trace.solution: trace.evaluation for trace in read_traces(traces_dir, definition)}


def assert_all_right(cases, results):
    wrong = {}
    for name, case in cases.items():
        result = results[name]
        last = result.log.strip().splitlines()[-1:] or [""]
        if result.status.value != case.status or case.message not in last[0]:
            wrong[name] = (result.status.value, last[0][:300], "expected", case.status)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    for name in HONEST:
        assert results[name].status.value == "PASSED"
        assert results[name].correctness.extra["matched_ratio"] == 1.0
    assert all(len(result.log) < 100_000 for result in results.values())


def test_there_are_enough_and_none_twice():
    assert len(BROKEN) >= 40 and len(ESCAPING) >= 40
    assert not BROKEN.keys() & ESCAPING.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_solution_has_its_own_result(bundle, tmp_path, own_tmp, kind):
    before = state()
    first, middle, last = HONEST
    names = list(KINDS[kind])
    half = len(names) // 2
    order = [first, *names[:half], middle, *names[half:], last]
    assert_all_right(KINDS[kind], run_in(order, bundle, tmp_path / "traces"))
    assert state() == before


@pytest.mark.long
def test_in_the_other_order(bundle, tmp_path, own_tmp):
    before = state()
    first, middle, last = HONEST
    names = [*ESCAPING, *BROKEN][::-1]
    half = len(names) // 2
    order = [last, *names[:half], middle, *names[half:], first]
    assert_all_right(BROKEN | ESCAPING, run_in(order, bundle, tmp_path / "traces"))
    assert state() == before
