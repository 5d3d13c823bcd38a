"""Runs on a Ray cluster: one of several nodes on this machine, without GPUs."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import run
from bundle.dataset.loading import load_dataset
from bundle.harness import make_config
from bundle.paths import BadInput
from bundle.runs import cluster as ray_cluster
from bundle.runs.cluster import connect, disconnect, of_type, ray_workers
from bundle.runs.jobs import Finished, Job, Lost, Started
from bundle.runs.pool import Pool
from child import SESSION
from conftest import HAS_CUDA
from filelock import FileLock
from toy_bundle import DEFINITION, control, make_bundle, packed

CONFIG = make_config(warmup_runs=1, iterations=1, num_trials=1, timeout_seconds=600)
TOKENS = (3, 8, 20)
ENDLESS = 3


@pytest.fixture(autouse=True)
def alone():
    """`--ray auto` finds any cluster on this machine, that of a test beside this one, too."""
    with FileLock(Path(os.environ[SESSION]) / "ray.lock"):
        yield


@pytest.fixture
def root(tmp_path):
    """One solution is good, the other does not end with 3 tokens while a file is there."""
    flag = tmp_path / "endless"
    flag.touch()
    pause = f"""
    import os, time
    while len(hidden_states) == {ENDLESS} and os.path.exists({str(flag)!r}):
        time.sleep(0.2)
"""
    waits = control("good").replace("    output", pause + "    output", 1)
    root = make_bundle(tmp_path / "b", {"one": control("good"), "two": waits}, TOKENS)
    packed(root)
    return root


@pytest.fixture
def cluster():
    """A head without CPUs, and two nodes with one each."""
    utils = pytest.importorskip("ray.cluster_utils")
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield cluster
    disconnect()
    cluster.shutdown()


def jobs_of(root) -> list[Job]:
    dataset = load_dataset(root)
    definition, solutions = dataset.definitions[DEFINITION], dataset.solutions[DEFINITION]
    return [Job(definition, row, solutions) for row in dataset.workloads[DEFINITION]]


def busy_actors() -> list[int]:
    """Processes of actors that evaluate."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::Evaluator.evaluate"):
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(HAS_CUDA, reason="CPUs stand for GPUs")
@pytest.mark.parametrize("what", ["node", pytest.param("process", marks=pytest.mark.long)])
def test_a_lost_one_loses_its_workload_and_resume_goes_on(
    root, cluster, tmp_path, monkeypatch, capsys, what
):
    connect(cluster.address)
    workers = ray_workers(None, root, None)
    assert len({worker.name for worker in workers}) == len(workers) == 2
    nodes = {w.name: node for w, node in zip(workers, ray_cluster.usable_nodes(), strict=True)}
    pool = Pool(workers)
    jobs = jobs_of(root)
    events = []
    for event in run.store_each(pool.run(jobs, CONFIG), tmp_path / "traces"):
        events.append(event)
        if isinstance(event, Finished) and sum(isinstance(e, Finished) for e in events) == 2:
            if what == "process":
                (pid,) = busy_actors()
                os.kill(pid, signal.SIGKILL)
            else:
                (at,) = [e.worker for e in events if isinstance(e, Started) and e.job is jobs[0]]
                (node,) = [n for n in cluster.worker_nodes if n.node_id == nodes[at]["NodeID"]]
                cluster.remove_node(node, allow_graceful=False)
    pool.close()
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert lost.job is jobs[0]
    lines = stored(tmp_path / "traces")
    assert {(line["solution"], line["workload"]["uuid"]) for line in lines} == {
        (solution, f"workload-{tokens}") for solution in ("one", "two") for tokens in (8, 20)
    }
    disconnect()

    (tmp_path / "endless").unlink()
    arguments = ["--local", root, "--traces", tmp_path / "traces", "--ray", cluster.address]
    more = ["--resume", "--workloads", "3,8,20"]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments), *more])
    monkeypatch.setenv("COLUMNS", "200")
    assert run.main() == 0
    output = capsys.readouterr().out
    assert "2 of 2 PASSED" in output
    assert ": seq_len=3  two  PASSED" in output
    lines = stored(tmp_path / "traces")
    assert len(lines) == 6
    assert {line["evaluation"]["status"] for line in lines} == {"PASSED"}
    assert all(line["evaluation"]["environment"]["libs"]["machine"] for line in lines)


def stored(traces_dir) -> list[dict]:
    (path,) = traces_dir.rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def node(gpu_type=None, gpus=1) -> dict:
    named = {f"accelerator_type:{gpu_type}": 1.0} if gpu_type else {}
    return {"Alive": True, "NodeID": "0", "Resources": {"GPU": gpus, "CPU": 8, **named}}


def test_type_of_gpu():
    hopper, ampere = node("H100"), node("A100")
    assert of_type([hopper, ampere, hopper], "H100") == [hopper, hopper]
    assert of_type([hopper, hopper], None) == [hopper, hopper]
    with pytest.raises(BadInput, match="--gpu-type; got A100, H100"):
        of_type([hopper, ampere], None)
    with pytest.raises(BadInput, match="--gpu-type: expected one of A100, H100; got B200"):
        of_type([hopper, ampere], "B200")


def test_no_cluster_there(root, monkeypatch, capsys):
    pytest.importorskip("ray")
    arguments = ["run.py", "--local", str(root), "--traces", str(root / "t"), "--ray", "auto"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run.main() == 2
    assert "error: --ray auto: expected a Ray cluster there: " in capsys.readouterr().err


def test_without_ray(monkeypatch):
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match='--ray: needs Ray: pip install "'):
        connect("auto")
