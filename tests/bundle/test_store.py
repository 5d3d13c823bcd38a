"""Traces on disk under several runs, kills, and places that cannot be written."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import run
from bundle.comparison.traces import TraceError
from bundle.dataset.loading import load_dataset
from bundle.paths import ROOT, BadInput
from bundle.runs import store
from bundle.runs.store import StoreError, check_store, read_traces, store_traces, trace_path
from flashinfer_bench.data import TraceSet
from toy_bundle import DEFINITION, control, make_bundle, packed

STORE_MANY = """
import sys
from pathlib import Path
from bundle.runs.store import store_traces
from flashinfer_bench.data import TraceSet

folder, part, of = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dataset = TraceSet.from_path(sys.argv[4])
(definition,) = dataset.definitions.values()
print("ready", flush=True)
sys.stdin.readline()
for trace in dataset.traces[definition.name][:60][part::of]:
    store_traces(folder, definition, [trace])
"""


@pytest.fixture(scope="module")
def committed():
    """This bundle's definition and some of its stored traces."""
    dataset = TraceSet.from_path(str(ROOT))
    (definition,) = dataset.definitions.values()
    return definition, dataset.traces[definition.name][:60]


def keys(traces):
    return sorted((trace.solution, trace.workload.uuid) for trace in traces)


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.Popen(
        [sys.executable, "-c", STORE_MANY, *map(str, arguments), str(ROOT)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_runs_lose_nothing(committed, tmp_path):
    definition, traces = committed
    both = [start(tmp_path, part, 2) for part in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    path = trace_path(tmp_path, definition)
    while any(process.poll() is None for process in both):
        if path.exists():  # a reader never sees half a file
            assert all(json.loads(line)["evaluation"] for line in path.read_text().splitlines())
    assert [process.wait() for process in both] == [0, 0]
    assert keys(read_traces(tmp_path, definition)) == keys(traces)
    left = {file.name for file in path.parent.iterdir()}
    assert left == {path.name, f".{path.name}.lock"}


def test_unknown_fields_of_other_traces_are_kept(committed, tmp_path):
    definition, traces = committed
    path = trace_path(tmp_path, definition)
    path.parent.mkdir(parents=True)
    line = json.loads(traces[0].model_dump_json())
    line["evaluation"]["kernel_ms"] = 1.5  # of a newer harness
    path.write_text(json.dumps(line) + "\n")
    store_traces(tmp_path, definition, traces[1:2])
    assert json.loads(path.read_text().splitlines()[0])["evaluation"]["kernel_ms"] == 1.5


def test_full_disk_loses_no_result(committed, tmp_path, monkeypatch):
    definition, traces = committed
    store_traces(tmp_path, definition, traces[:1])

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(store, "replace_file", full)
    with pytest.raises(
        StoreError, match=r"No space left .* 1 finished trace\(s\) are in "
    ) as error:
        store_traces(tmp_path, definition, traces[1:2])
    kept = str(error.value).rpartition(" are in ")[2]
    assert json.loads(Path(kept).read_text())["solution"] == traces[1].solution
    Path(kept).unlink()
    assert keys(read_traces(tmp_path, definition)) == keys(traces[:1])


def test_damaged_or_unwritable_traces_are_noticed_before_the_run(committed, tmp_path):
    definition, _ = committed
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/self/nothing")):
        with pytest.raises(BadInput, match="cannot store traces: "):
            check_store(place, [definition])
    path = trace_path(tmp_path, definition)
    path.parent.mkdir(parents=True)
    path.write_text('{"definition": ')
    with pytest.raises(TraceError, match=f"{path.name}:1: "):
        check_store(tmp_path, [definition])
    assert path.read_text() == '{"definition": '


@pytest.fixture
def in_process(kept_launcher, monkeypatch, capsys):
    """Calls run.py here; returns (exit status, standard output, standard error)."""

    def call(root, *arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", "--local", str(root), *arguments])
        monkeypatch.setenv("COLUMNS", "250")
        status = run.main()
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--rtol", "nan"], "--rtol: expected a positive, finite number, got nan"),
        (["--atol", "inf"], "--atol: expected a positive, finite number, got inf"),
        (["--rtol", "1"], "an output of zeros would pass"),
        (["--traces", "/dev/null/x"], "cannot store traces"),
    ],
)
def test_refused_before_anything_runs(in_process, tmp_path, arguments, expected):
    root = make_bundle(tmp_path, {"one": control("good")})
    status, output, errors = in_process(root, *arguments)
    assert status == 2 and errors.startswith("error: ") and expected in errors
    assert "PASSED" not in output


def test_tolerances_that_accept_zeros_judge_nothing(in_process, tmp_path):
    root = make_bundle(tmp_path, {"one": control("no_write")}, (3,))
    status, output, _ = in_process(root, "--atol", "1e30")
    assert status == 1 and "expected tolerances that tell zeros" in output
    assert not (root / "traces_cpu" / "moe" / f"{DEFINITION}.jsonl").exists()


def run_script(root, *arguments, **options):
    command = [sys.executable, ROOT / "scripts" / "run.py", "--local", root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, **options)


def test_surroundings_stop_no_run(tmp_path):
    """No home, an output that is closed, a terminal of ASCII, a folder of any name."""
    root = make_bundle(tmp_path / "größe bundle", {"one": control("good")}, (3,))
    environment = {**os.environ, "HOME": "/proc", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    environment.pop("FIB_CACHE_PATH", None)
    script, python = ROOT / "scripts" / "run.py", sys.executable
    command = f"'{python}' '{script}' --local '{root}' >&- 2>&-"
    assert subprocess.run(command, shell=True, env=environment).returncode == 0
    (trace,) = read_traces(root / "traces_cpu", load_dataset(root).definitions[DEFINITION])
    assert trace.is_successful()


def read_only(root):
    """The words before a command that has `root` read only; None if that cannot be had here."""
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", root], check=True)
        return []
    # as root, modes mean nothing: a mount of its own
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, root]
    try:
        works = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    return words if works else None


def test_read_only_bundle_that_is_packed_runs(tmp_path):
    root = make_bundle(tmp_path / "bundle", {"one": control("good")}, (3,))
    packed(root)
    if (words := read_only(root)) is None:
        pytest.skip("root without the right to mount")
    command = [*words, sys.executable, ROOT / "scripts" / "run.py", "--local", root]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: --traces {root}/traces_cpu: cannot store traces: ")
    finished = subprocess.run(
        [*command, "--traces", tmp_path / "t"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (trace,) = read_traces(tmp_path / "t", load_dataset(root).definitions[DEFINITION])
    assert trace.is_successful()
    subprocess.run(["chmod", "-R", "u+w", root], check=True)


def test_workloads_that_are_not_utf8_are_named(tmp_path):
    root = make_bundle(tmp_path / "bundle", {"one": control("good")}, (3,))
    path = root / "workloads" / "moe" / f"{DEFINITION}.jsonl"
    path.write_bytes(path.read_bytes() + b'\n{"definition": "\xe9"}\n')
    finished = run_script(root)
    assert finished.returncode in (1, 2) and "Traceback" not in finished.stdout + finished.stderr
    assert path.name in finished.stdout + finished.stderr


def test_reference_that_hangs_ends(in_process, tmp_path):
    root = make_bundle(tmp_path, {"one": control("good")}, (3,))
    path = root / "definitions" / "moe" / f"{DEFINITION}.json"
    text = path.read_text()
    path.write_text(text.replace("gates = ", "import time; time.sleep(600); gates = ", 1))
    status, output, _ = in_process(root, "--timeout", "2")
    assert status == 1 and "the reference: no result within 2 seconds" in output


def kill_at_random(root, solutions, times):
    """Kill a run `times` times, each a little later, and count what it leaves."""
    definition = load_dataset(root).definitions[DEFINITION]
    traces = root / "traces_cpu"
    seen = []
    for _ in range(times):
        command = [sys.executable, ROOT / "scripts" / "run.py", "--local", root, "--resume"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(random.uniform(2.0, 9.0))
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        victim = int(random.choice([str(process.pid), *children]))
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.wait()
        else:
            assert process.wait(timeout=600) in (0, 1)
        after = keys(read_traces(traces, definition))
        assert len(after) == len(set(after))
        assert set(seen) <= set(after)
        seen = after
    finished = run_script(root, "--resume")
    assert finished.returncode in (0, 1), finished.stderr
    assert len(read_traces(traces, definition)) == solutions


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_kills_at_30_moments_lose_and_double_nothing(tmp_path):
    slow = "import time\n" + control("good").replace(
        "    output", "    time.sleep(0.3)\n    output"
    )
    root = make_bundle(tmp_path, {f"s{n}": slow for n in range(40)}, (3, 8))
    random.seed(1)
    kill_at_random(root, 80, 30)


def test_kills_lose_and_double_nothing(tmp_path):
    root = make_bundle(tmp_path, {f"s{n}": control("good") for n in range(3)}, (3,))
    kill_at_random(root, 3, 1)
