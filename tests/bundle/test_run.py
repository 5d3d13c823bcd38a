"""Sessions and scripts/run.py on a toy bundle: what is run, stored, resumed, and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import run
import torch
from bundle.comparison.traces import TraceError
from bundle.dataset.loading import load_dataset
from bundle.harness import Runner, benchmark_with
from bundle.machine import this_hardware
from bundle.paths import ROOT
from bundle.runs import jobs as job_runner
from bundle.runs import provenance
from bundle.runs.jobs import Job, evaluate, split, unfinished
from bundle.runs.store import read_traces, store_traces
from bundle.runs.trials import draw_inputs
from conftest import HAS_CUDA
from flashinfer_bench.bench import BenchmarkConfig
from flashinfer_bench.bench.utils import make_eval
from flashinfer_bench.data import Correctness, EvaluationStatus, Performance, TraceSet
from toy_bundle import DEFINITION, control, make_bundle, packed, workload_row, write

TRACES = f"moe/{DEFINITION}.jsonl"
cpu_only = pytest.mark.skipif(HAS_CUDA, reason="about machines without CUDA")


class ScriptedRunner(Runner):
    """Stands for the harness's runner: gives each solution its next scripted evaluation."""

    def __init__(self, script: dict[str, list]) -> None:
        self.script = script
        self.calls = []

    def run_workload(self, definition, workload, solutions, config, root):
        names = [solution.name for solution in solutions]
        self.calls.append((workload.uuid, names))
        results = {}
        for name in names:
            outcome = self.script[name].pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            results[name] = outcome
        return results

    def close(self):
        pass


def scripted(root, script):
    """The harness's Benchmark with a runner that stands for its own."""
    return benchmark_with(ScriptedRunner(script), TraceSet(root=root), BenchmarkConfig())


def passed(latency_ms=1.0):
    return make_eval(
        EvaluationStatus.PASSED,
        "cpu",
        None,
        Correctness(),
        Performance(latency_ms=latency_ms, reference_latency_ms=2.0, speedup_factor=2.0),
    )


def failed(message):
    return make_eval(EvaluationStatus.RUNTIME_ERROR, "cpu", None, extra_msg=message)


@pytest.fixture
def root(tmp_path):
    root = make_bundle(tmp_path / "bundle", {"one": control("good"), "two": control("good")})
    packed(root)
    return root


def run_job(benchmark, job, traces_dir):
    """Evaluate a job and store its traces, as the script does."""
    traces = evaluate(benchmark, job)
    store_traces(traces_dir, job.definition, traces)
    return traces


def jobs_of(dataset) -> list[Job]:
    definition, solutions = dataset.definitions[DEFINITION], dataset.solutions[DEFINITION]
    return [Job(definition, row, solutions) for row in dataset.workloads[DEFINITION]]


def stored(traces_dir, dataset) -> dict[tuple[str, str], float | None]:
    """(solution, workload) -> latency, None if it failed."""
    return {
        (trace.solution, trace.workload.uuid): trace.evaluation.performance
        and trace.evaluation.performance.latency_ms
        for trace in read_traces(traces_dir, dataset.definitions[DEFINITION])
    }


# Sessions


def test_victims_of_a_restart_are_run_again_alone(root, tmp_path):
    dataset = load_dataset(root)
    dead = failed("Unexpected error: Baseline handle not found: 1f2e")
    benchmark = scripted(root, {"one": [failed("crash")], "two": [dead, passed()]})
    (job, _) = jobs_of(dataset)
    statuses = {t.solution: t.evaluation.status.value for t in run_job(benchmark, job, tmp_path)}
    assert statuses == {"one": "RUNTIME_ERROR", "two": "PASSED"}
    assert [names for _, names in benchmark._runner.calls] == [["one", "two"], ["two"]]
    assert stored(tmp_path, dataset) == {("one", "workload-3"): None, ("two", "workload-3"): 1.0}


def test_traces_name_harness_bundle_and_driver(root, tmp_path, monkeypatch):
    dataset = load_dataset(root)
    benchmark = scripted(root, {"one": [passed()], "two": [failed("no")]})
    recorded = provenance.facts() | {"driver": "580.1"}
    monkeypatch.setattr(job_runner, "facts", lambda: recorded)
    run_job(benchmark, jobs_of(dataset)[0], tmp_path)
    traces = read_traces(tmp_path, dataset.definitions[DEFINITION])
    for trace in traces:
        libs = trace.evaluation.environment.libs
        assert libs["driver"] == "580.1"
        assert libs["flashinfer_bench"] == version("flashinfer-bench")
        assert libs["bundle"]


def test_interrupt_keeps_finished_traces(root, tmp_path):
    dataset = load_dataset(root)
    script = {"one": [passed(), KeyboardInterrupt()], "two": [passed()]}
    benchmark = scripted(root, script)
    with pytest.raises(KeyboardInterrupt):
        for job in jobs_of(dataset):
            run_job(benchmark, job, tmp_path)
    assert stored(tmp_path, dataset) == {("one", "workload-3"): 1.0, ("two", "workload-3"): 1.0}
    left = unfinished(jobs_of(dataset), tmp_path, this_hardware())
    assert [job.workload.workload.uuid for job in left] == ["workload-8"]


def test_resume_skips_what_has_a_trace_failed_or_not(root, tmp_path):
    dataset = load_dataset(root)
    script = {"one": [passed()], "two": [failed("no")]}
    benchmark = scripted(root, script)
    first, second = split(jobs_of(dataset))[:2]
    run_job(benchmark, first, tmp_path)
    left = [(j.workload.workload.uuid, j.solutions[0].name) for j in split(jobs_of(dataset))][1:]
    assert [
        (job.workload.workload.uuid, solution.name)
        for job in unfinished(jobs_of(dataset), tmp_path, this_hardware())
        for solution in job.solutions
    ] == left
    run_job(benchmark, second, tmp_path)
    assert len(unfinished(jobs_of(dataset), tmp_path, this_hardware())) == 1


def test_new_trace_replaces_old_one_only_when_finished(root, tmp_path):
    dataset = load_dataset(root)
    script = {"one": [passed(1.0), KeyboardInterrupt(), passed(3.0)], "two": []}
    benchmark = scripted(root, script)
    job = split(jobs_of(dataset))[0]
    run_job(benchmark, job, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_job(benchmark, job, tmp_path)
    assert stored(tmp_path, dataset) == {("one", "workload-3"): 1.0}
    run_job(benchmark, job, tmp_path)
    assert stored(tmp_path, dataset) == {("one", "workload-3"): 3.0}
    assert len((tmp_path / TRACES).read_text().splitlines()) == 1


def test_failed_reference_is_no_result(root, tmp_path):
    """The harness swallows this error and goes on: no trace, no status."""
    dataset = load_dataset(root)
    benchmark = scripted(root, {"one": [RuntimeError("reference")], "two": []})
    assert run_job(benchmark, jobs_of(dataset)[0], tmp_path) == []
    assert stored(tmp_path, dataset) == {}


def test_damaged_trace_file_is_refused_and_kept(root, tmp_path):
    dataset = load_dataset(root)
    write(tmp_path / TRACES, '{"definition": "x"')
    with pytest.raises(TraceError, match=f"{DEFINITION}.jsonl:1: "):
        store_traces(tmp_path, dataset.definitions[DEFINITION], [dataset.workloads[DEFINITION][0]])
    assert (tmp_path / TRACES).read_text() == '{"definition": "x"'


def test_cpu_inputs_are_new_in_every_run(root):
    """What a solution has kept from an earlier run, anywhere, answers nothing in this one."""
    (job, _) = jobs_of(load_dataset(root))
    first, second = (draw_inputs(job.definition, job.workload.workload, root) for _ in range(2))
    names = list(job.definition.inputs)
    same = {
        name
        for name, x, y in zip(names, first, second, strict=True)
        if (x.float().equal(y.float()) if isinstance(x, torch.Tensor) else x == y)
    }
    assert same == {"routing_logits", "scaling_factor"}  # of the workload


# The script


@pytest.fixture
def run_script(root, kept_launcher, monkeypatch, capsys):
    """Calls run.py on the toy bundle; returns (exit status, standard output, standard error)."""

    def call(*arguments, local=root):
        monkeypatch.setattr(sys, "argv", ["run.py", "--local", *map(str, [local, *arguments])])
        monkeypatch.setenv("COLUMNS", "200")
        status = run.main()
        return status, *capsys.readouterr()

    return call


@cpu_only
def test_run_resume_and_replace(root, run_script):
    traces = root / "traces_cpu" / TRACES
    status, output, _ = run_script("--workloads", "3", "--solutions", "one")
    assert status == 0
    assert "seq_len=3  one  PASSED" in output
    assert len(traces.read_text().splitlines()) == 1
    before = traces.read_text()
    status, output, _ = run_script("--workloads", "3", "--resume")
    assert status == 0
    assert "two  PASSED" in output and "one  PASSED" not in output
    assert traces.read_text().startswith(before)
    status, output, _ = run_script("--resume", "--workloads", "workload-3")
    assert status == 0 and "Nothing left to run" in output
    assert not (root / "traces").exists()


@cpu_only
def test_defaults_on_a_cpu_and_exit_status(tmp_path, run_script):
    """The two smallest workloads; one wrong solution, one that needs CUDA, one that packs not."""
    mains = {name: control("good") for name in ("good", "on_cuda", "broken")}
    local = make_bundle(tmp_path / "b", mains | {"scaled": control("scaled")}, (20, 3, 8))
    config = local / "solutions" / "on_cuda" / "solution.toml"
    write(config, config.read_text().replace("cpu = true", "compute_capabilities = [90]"))
    write(local / "solutions" / "broken" / "main.py", "from .x import y\n" + control("good"))
    status, output, _ = run_script("--rtol", "0.01", local=local)
    assert status == 1
    assert "does not pack" in output and "broken/main.py:1: relative import" in output
    assert "on_cuda cannot run here: needs a CUDA device" in output
    assert "seq_len=3  scaled  INCORRECT_NUMERICAL, matched ratio 0." in output
    assert "2 of 4 PASSED" in output and "seq_len=20" not in output
    status, output, _ = run_script("--solutions", "good", local=local)
    assert status == 0 and "2 of 2 PASSED" in output


@cpu_only
def test_dataset_of_packed_solutions(root, tmp_path, run_script):
    """A clone of another dataset has JSON files only; their target hardware tells what can run."""
    clone = make_bundle(tmp_path / "clone", {})
    for name, hardware in (("one", ["cpu", "cuda"]), ("two", ["H100"])):
        solution = json.loads((root / "solutions" / name / "solution.json").read_text())
        solution["spec"]["target_hardware"] = hardware
        write(clone / "solutions" / "tests" / "moe" / f"{name}.json", json.dumps(solution))
    status, output, _ = run_script("--workloads", "3", local=clone)
    assert status == 0
    assert "two cannot run here: needs a CUDA device" in output and "1 of 1 PASSED" in output


@cpu_only
def test_reference_that_fails_is_reported(root, run_script):
    path = root / "definitions" / "moe" / f"{DEFINITION}.json"
    text = path.read_text()
    assert "gates = " in text
    write(path, text.replace("gates = ", "raise ValueError('argument x: bad'); gates = "))
    status, output, _ = run_script("--workloads", "3", "--solutions", "one")
    assert status == 1
    assert "argument x: bad" in output
    assert "one  not run: the reference failed" in output and "0 of 1 PASSED" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--solutions", "none"], "--solutions: expected some of one, two; got none"),
        (["--definitions", "none"], f"--definitions: expected some of {DEFINITION}; got none"),
        (["--workloads", "9"], "--workloads: expected some of "),
        (["--workloads", "3,nine"], "; got nine"),
        (["--iterations", "0"], "iterations must be > 0"),
        (["--required-matched-ratio", "1.5"], "required_matched_ratio must be between 0 and 1"),
    ],
)
def test_bad_arguments(run_script, arguments, expected):
    status, _, error = run_script(*arguments)
    assert status == 2
    assert error.startswith("error: ") and expected in error


def test_missing_root_is_not_created(tmp_path, run_script):
    status, _, error = run_script(local=tmp_path / "typo")
    assert (
        status == 2 and "expected a flashinfer-bench dataset, but there is no such folder" in error
    )
    assert not (tmp_path / "typo").exists()


def test_truncated_blob(root, run_script):
    blob = root / "blob" / "3.safetensors"
    blob.write_bytes(blob.read_bytes()[:-4])
    status, _, error = run_script()
    assert status == 2
    assert "workload workload-3 (seq_len=3), blob/3.safetensors: " in error


def test_blob_of_another_workload(root, run_script):
    (root / "blob" / "3.safetensors").write_bytes((root / "blob" / "8.safetensors").read_bytes())
    status, _, error = run_script()
    assert status == 2
    assert "blob/3.safetensors: 'routing_logits' expected [3, 4], got [8, 4]" in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"definition": "other"}, f"definition: expected one of ['{DEFINITION}'], got 'other'"),
        ({"axes": {"batch": 3}}, "axes: expected ['seq_len'], the variable axes of"),
        ({"inputs": {"x": {"type": "random"}}}, f"inputs: expected inputs of {DEFINITION}, got"),
        ({"uuid": "workload-3"}, "duplicate workload uuid 'workload-3'"),
        ({"solution": "one", "evaluation": None}, "expected a workload, got a result"),
        ({"uuid": 7}, "workload.uuid: Input should be a valid string"),
    ],
)
def test_workload_of_another_definition(root, run_script, change, expected):
    row = workload_row(8)
    (row if {"definition", "solution"} & set(change) else row["workload"]).update(change)
    rows = [json.dumps(workload_row(3)), json.dumps(row)]
    path = root / "workloads" / "moe" / f"{DEFINITION}.jsonl"
    write(path, "\n".join(rows))
    status, _, error = run_script()
    assert status == 2
    assert error.startswith(f"error: {path}:2: ") and expected in error


def test_where_prints_the_trace_folder(root, run_script, tmp_path):
    default = root / ("traces" if HAS_CUDA else "traces_cpu")
    assert run_script("--where")[:2] == (0, f"{default}\n")
    assert run_script("--where", "--traces", tmp_path)[:2] == (0, f"{tmp_path}\n")


@cpu_only
def test_script_as_a_process(root, tmp_path):
    """End to end, with the worker process that multiprocessing spawns from the script."""
    command = [sys.executable, ROOT / "scripts" / "run.py", "--local", root, "--traces", tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "4 of 4 PASSED" in finished.stdout
    assert len((tmp_path / TRACES).read_text().splitlines()) == 4


@pytest.fixture
def interrupts():
    """What a shell has started in the background ignores them, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@cpu_only
def test_ctrl_c_keeps_finished_traces(interrupts, tmp_path):
    mains = {"a_good": control("good"), "hangs": control("hangs")}
    root = make_bundle(tmp_path / "bundle", mains, (3,))
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "run.py", "--local", root],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (root / "traces_cpu" / TRACES).exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the worker gets it, too
    output, _ = process.communicate(timeout=600)  # far more than it takes: the machine may be busy
    assert process.returncode == 130
    assert "Interrupted. Finished traces are in" in output
    (line,) = (root / "traces_cpu" / TRACES).read_text().splitlines()
    assert json.loads(line)["solution"] == "a_good"


# The harness's own command line


def test_harness_loads_this_bundle():
    dataset = TraceSet.from_path(str(ROOT))
    assert len(dataset.definitions) == 1
    (name,) = dataset.definitions
    assert len(dataset.workloads[name]) == 19


def test_harness_command_line_on_a_packed_bundle(root):
    """Without CUDA it loads the dataset and then gives up; with CUDA it runs all of it."""
    command = [Path(sys.executable).with_name("flashinfer-bench"), "run"]
    options = ["--warmup-runs", "1", "--iterations", "2", "--num-trials", "1"]
    finished = subprocess.run([*command, "--local", root, *options], capture_output=True, text=True)
    if HAS_CUDA:
        assert finished.returncode == 0, finished.stderr
        dataset = TraceSet.from_path(str(root))
        assert [t.is_successful() for t in dataset.traces[DEFINITION]] == [True] * 4
    else:
        assert finished.stderr.strip().endswith("RuntimeError: No CUDA devices available")
