"""Without a GPU: native solutions run one by one, simulated ones beside each other."""

import multiprocessing

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import make_config
from bundle.runs import cores, cpu_runner
from bundle.runs.cores import Cores
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
    places = Cores(root, None)
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
    monkeypatch.setattr(cores, "BYTES", 0)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 2)
    started, statuses, count = ran(*bundle)
    assert [name for name, *_ in started] == ["native", "interpreted"] * 2  # one workload at a time
    assert [worker for name, _, worker in started if name == "native"] == ["", ""]
    assert {w for name, _, w in started if name == "interpreted"} <= {"thread 1", "thread 2"}
    assert (statuses, count) == ({"PASSED"}, 4)
    assert not multiprocessing.active_children()


def test_the_solutions_of_a_workload_share_its_baseline(bundle, monkeypatch):
    built = []
    original = cpu_runner.build_baseline

    def build(definition, workload, *rest):
        built.append(workload.uuid)
        return original(definition, workload, *rest)

    monkeypatch.setattr(cores, "BYTES", 0)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cpu_runner, "build_baseline", build)
    ran(*bundle)
    assert built == ["workload-3", "workload-8"]


def test_with_little_memory_all_run_one_by_one(bundle, monkeypatch):
    monkeypatch.setattr(cores, "BYTES", 1 << 60)
    started, statuses, count = ran(*bundle)
    assert {worker for *_, worker in started} == {""}
    assert (statuses, count) == ({"PASSED"}, 4)
