"""Runs on several GPUs: who gets which job, what a lost one loses, and children that end."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import Future

import pytest
from bundle.dataset.loading import load_dataset
from bundle.hardware import Device
from bundle.harness import make_config
from bundle.paths import BadInput
from bundle.runs.evaluator import Evaluator, Here
from bundle.runs.gpus import VISIBLE, GpuProcess, visible_gpus
from bundle.runs.jobs import Finished, Job, Lost, Started
from bundle.runs.pool import Pool
from bundle.runs.worker import Machine, WorkerLost
from conftest import HAS_CUDA
from toy_bundle import DEFINITION, control, make_bundle, packed

CONFIG = make_config(warmup_runs=1, iterations=1, num_trials=1, timeout_seconds=60)
H100 = Machine(Device("H100", 90), "NVIDIA H100", {"torch": "2.11"})
cpu_only = pytest.mark.skipif(HAS_CUDA, reason="the CPU stands for a GPU")


class ScriptedWorker:
    """Answers at once; an exception among its results is raised."""

    def __init__(self, name, machine=H100, refusals=(), results=()):
        self.name = name
        self.answers = {"machine": machine, "refusals": dict(refusals)}
        self.results = list(results)
        self.jobs = []
        self.closed = False

    def ask(self, method, *arguments):
        answer = self.answers.get(method)
        if method == "evaluate":
            self.jobs.append(arguments[0])
            answer = self.results.pop(0) if self.results else []
        future = Future()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def close(self):
        self.closed = True


def run(pool, jobs):
    """What happened, as (kind, worker, job)."""
    return [(type(event), event.worker, event.job) for event in pool.run(jobs, CONFIG)]


def test_every_job_runs_once_and_all_workers_take_part():
    workers = [ScriptedWorker(name) for name in "ab"]
    events = run(Pool(workers), range(1, 7))
    assert sorted(job for kind, _, job in events if kind is Finished) == [1, 2, 3, 4, 5, 6]
    assert sorted(job for worker in workers for job in worker.jobs) == [1, 2, 3, 4, 5, 6]
    assert all(worker.jobs for worker in workers)
    for worker in workers:
        own = [kind for kind, name, _ in events if name == worker.name]
        assert own == [Started, Finished] * len(worker.jobs)


def test_lost_worker_loses_its_job_only():
    workers = [ScriptedWorker("a", results=[[], WorkerLost("gone")]), ScriptedWorker("b")]
    events = list(Pool(workers).run(range(1, 9), CONFIG))
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert (lost.worker, lost.reason) == ("a", "gone")
    assert lost.job == workers[0].jobs[1]
    finished = {event.job for event in events if isinstance(event, Finished)}
    assert finished == set(range(1, 9)) - {lost.job}
    assert len(workers[0].jobs) == 2  # it is asked no more


def test_all_workers_lost_ends_the_run():
    workers = [ScriptedWorker(name, results=[WorkerLost("gone")]) for name in "ab"]
    kinds = [kind for kind, _, _ in run(Pool(workers), range(1, 6))]
    assert sorted(kind.__name__ for kind in kinds) == ["Lost", "Lost", "Started", "Started"]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Machine(Device("H100", 90), "NVIDIA H100", {"torch": "2.12"}),
         "left out: torch: expected 2.11, got 2.12"),
        (Machine(Device("B200", 100), "NVIDIA B200", {"torch": "2.11"}),
         "left out: hardware: expected NVIDIA H100, got NVIDIA B200"),
        (WorkerLost("no such node"), "no such node"),
    ],
)  # fmt: skip
def test_worker_unlike_the_first_is_left_out(other, reason):
    workers = [ScriptedWorker("a"), ScriptedWorker("b", machine=other)]
    events = list(Pool(workers).run(range(1, 5), CONFIG))
    assert [(e.worker, e.job, e.reason) for e in events if isinstance(e, Lost)] == [
        ("b", None, reason)
    ]
    assert workers[0].jobs == [1, 2, 3, 4] and not workers[1].jobs


def test_worker_that_lacks_a_solution_is_left_out():
    workers = [ScriptedWorker("a"), ScriptedWorker("b", refusals={"x": "needs deep_gemm"})]
    pool = Pool(workers)
    assert pool.refusals([]) == {}
    (lost,) = [event for event in pool.run(range(1, 5), CONFIG) if isinstance(event, Lost)]
    assert lost.worker == "b" and "x: expected None, got needs deep_gemm" in lost.reason
    assert workers[0].jobs == [1, 2, 3, 4]


def test_no_worker_at_all():
    with pytest.raises(BadInput, match="expected GPUs that can be used: a: no driver"):
        Pool([ScriptedWorker("a", machine=WorkerLost("no driver"))])


def test_bad_input_of_a_worker_ends_the_run():
    pool = Pool([ScriptedWorker("a", results=[BadInput("blob")])])
    with pytest.raises(BadInput, match="blob"):
        run(pool, [1])


# Children


@pytest.fixture
def bundle(tmp_path):
    """A root, and its jobs: one solution is good, the other never ends with 8 tokens."""
    pause = "    if len(hidden_states) == 8:\n        __import__('time').sleep(600)\n"
    waits = control("good").replace("    output", pause + "    output", 1)
    root = make_bundle(tmp_path / "b", {"one": control("good"), "two": waits}, (3, 8))
    packed(root)
    dataset = load_dataset(root)
    solutions = dataset.solutions[DEFINITION]
    rows = dataset.workloads[DEFINITION]
    return root, [Job(dataset.definitions[DEFINITION], row, solutions) for row in rows]


@cpu_only
def test_children_run_and_a_killed_one_loses_its_workload_only(bundle):
    root, (quick, endless) = bundle
    workers = [GpuProcess(str(gpu), f"GPU {gpu}", root) for gpu in range(2)]
    by_name = {worker.name: worker for worker in workers}
    pool = Pool(workers)
    events = []
    try:
        for event in pool.run([endless, quick, quick, quick], CONFIG):
            events.append(event)
            if sum(isinstance(each, Finished) for each in events) == 3 and isinstance(
                event, Finished
            ):
                (at,) = [e.worker for e in events if isinstance(e, Started) and e.job is endless]
                os.kill(by_name[at].pid, signal.SIGKILL)
    finally:
        pool.close()
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert lost.job is endless and "has ended, exit status -9" in lost.reason
    finished = [event for event in events if isinstance(event, Finished)]
    assert [event.job for event in finished] == [quick] * 3
    for event in finished:
        assert [trace.evaluation.status.value for trace in event.traces] == ["PASSED"] * 2
        libs = [trace.evaluation.environment.libs for trace in event.traces]
        assert {each["machine"] for each in libs} == {event.worker}
    assert not multiprocessing.active_children()


@cpu_only
def test_closing_ends_a_child_that_is_busy(bundle):
    root, (_, endless) = bundle
    pool = Pool([worker := GpuProcess("0", "GPU 0", root)])
    events = pool.run([endless], CONFIG)
    assert isinstance(next(events), Started)
    time.sleep(1)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_evaluator_without_a_name_marks_nothing(bundle):
    root, (quick, _) = bundle
    here = Here(Evaluator(root))
    try:
        _, finished = here.run([quick], CONFIG)
    finally:
        here.close()
    assert all("machine" not in t.evaluation.environment.libs for t in finished.traces)


@pytest.mark.parametrize(
    ("visible", "wanted", "expected"),
    [
        (None, ["0", "1"], ["0", "1"]),
        ("4,5,6", ["2", "0"], ["6", "4"]),
        ("GPU-aa,GPU-bb", ["1"], ["GPU-bb"]),
    ],
)
def test_gpus_count_among_the_visible(monkeypatch, visible, wanted, expected):
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    assert visible_gpus(wanted, len(visible.split(",")) if visible else 2) == expected


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        (["0", "2"], 2, "--gpus: expected some of 0,1; got 2"),
        (["0"], 0, "--gpus: expected a CUDA device, there is none; got 0"),
        (["1", "1"], 2, "--gpus: expected each once, got 1,1"),
    ],
)
def test_gpus_that_are_not_there(monkeypatch, wanted, count, message):
    monkeypatch.delenv(VISIBLE, raising=False)
    with pytest.raises(BadInput, match=message):
        visible_gpus(wanted, count)
