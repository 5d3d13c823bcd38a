"""Without a GPU: native solutions run in this process, simulated ones in processes beside it."""

import multiprocessing

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import make_config
from bundle.runs import cores
from bundle.runs.cores import Cores
from bundle.runs.gpus import GpuProcess
from bundle.runs.jobs import Finished, Job, Started, split
from conftest import HAS_CUDA
from toy_bundle import DEFINITION, control, make_bundle, packed

pytestmark = pytest.mark.skipif(HAS_CUDA, reason="for machines without a GPU")
CONFIG = make_config(warmup_runs=1, iterations=1, num_trials=1, timeout_seconds=60)


@pytest.fixture
def bundle(tmp_path):
    """Root and jobs of a native solution and one whose manifest says Triton, on two workloads."""
    good = control("good")
    root = make_bundle(tmp_path / "bundle", {"native": good, "interpreted": good})
    manifest = root / "solutions" / "interpreted" / "solution.toml"
    manifest.write_text(manifest.read_text().replace('"python"', '"triton"'))
    solutions = packed(root)
    dataset = load_dataset(root, [])
    rows = dataset.workloads[DEFINITION]
    definition = dataset.definitions[DEFINITION]
    return root, split([Job(definition, row, solutions) for row in rows])


def ran(root, jobs):
    """(solution, workload, worker) of every job, and all statuses."""
    places = Cores(root, None, lambda name: GpuProcess("", name, root))
    try:
        events = list(places.run(jobs, CONFIG))
    finally:
        places.close()
    started = [
        (event.job.solutions[0].name, event.job.workload.workload.uuid, event.worker)
        for event in events
        if isinstance(event, Started)
    ]
    traces = [trace for event in events if isinstance(event, Finished) for trace in event.traces]
    return started, {trace.evaluation.status.value for trace in traces}, len(traces)


def test_simulated_solutions_run_beside_each_other_and_after_native_ones(bundle, monkeypatch):
    monkeypatch.setattr(cores, "PROCESS_BYTES", 0)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 2)
    started, statuses, count = ran(*bundle)
    assert started[:2] == [("native", "workload-3", ""), ("native", "workload-8", "")]
    assert started[2][:2] == ("interpreted", "workload-8")  # the larger one first
    assert {worker for *_, worker in started[2:]} <= {"process 1", "process 2"}
    assert (statuses, count) == ({"PASSED"}, 4)
    assert not multiprocessing.active_children()


def test_with_little_memory_all_run_one_by_one(bundle, monkeypatch):
    monkeypatch.setattr(cores, "PROCESS_BYTES", 1 << 60)
    started, statuses, count = ran(*bundle)
    assert {worker for *_, worker in started} == {""}
    assert (statuses, count) == ({"PASSED"}, 4)
