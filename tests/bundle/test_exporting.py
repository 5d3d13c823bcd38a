"""Traces and authors in another dataset's layout, and the settings for the harness's own run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pack
import pytest
from bundle.dataset.exporting import author_of, export_traces
from bundle.dataset.loading import load_definition
from bundle.dataset.manifest import read_config
from bundle.dataset.replicas import prepare
from bundle.dataset.workload_table import DEFINITION
from bundle.paths import ROOT
from bundle.tolerances import ATOL, MATCHED_RATIO, RTOL
from conftest import HAS_CUDA
from flashinfer_bench.data import Trace, TraceSet
from trace_factory import ROWS, make_trace, moe_workload, write_traces

SOURCE = os.environ.get("FLASHINFER_BENCH_SOURCE")  # a checkout of flashinfer-bench's main
FAST = "triton_fused_moe_v3"
MOE = SimpleNamespace(op_type="moe", name=DEFINITION)


@pytest.fixture
def dataset(tmp_path):
    """One with the official workloads."""
    path = tmp_path / "workloads" / "moe" / f"{DEFINITION}.jsonl"
    path.parent.mkdir(parents=True)
    workloads = [moe_workload(row, row.official_uuid) for row in ROWS]
    lines = [Trace(definition=DEFINITION, workload=w).model_dump_json() for w in workloads]
    path.write_text("\n".join(lines))
    return tmp_path


def official(row, **changes):
    return make_trace(FAST, row=row, workload=moe_workload(row, row.official_uuid), **changes)


def test_traces_of_replicas_are_left_out(dataset):
    traces = [make_trace(FAST, row=row) for row in ROWS]
    assert export_traces(traces, {FAST: "someone"}, MOE, dataset) == ([], 19)
    assert not (dataset / "traces").exists()


def test_a_replica_under_an_official_uuid_is_left_out(dataset):
    forged = make_trace(FAST, workload=moe_workload(ROWS[0], ROWS[5].official_uuid))
    assert export_traces([forged], {FAST: "someone"}, MOE, dataset) == ([], 1)


def test_traces_go_to_their_author_and_replace_older_ones(dataset):
    for latency in (1.0, 2.0):
        (path,), left_out = export_traces(
            [official(ROWS[0], latency_us=latency)], {FAST: "someone"}, MOE, dataset
        )
    assert path == dataset / "traces" / "someone" / "moe" / f"{DEFINITION}.jsonl"
    (line,) = path.read_text().splitlines()
    assert Trace.model_validate_json(line).evaluation.performance.latency_ms == 0.002
    assert left_out == 0


@pytest.fixture
def clone(dataset):
    """A dataset with the definition, the official workloads, and blobs that say nothing."""
    folder = dataset / "definitions" / "moe"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "definitions" / "moe" / f"{DEFINITION}.json", folder)
    return dataset


def test_pack_into_with_traces(clone, tmp_path, monkeypatch, capsys):
    """The command: solutions and traces, each under its author, for workloads that are there."""
    rows = [row for row in ROWS if row.seq_len in (1, 7)]
    traces = [official(row) for row in rows]
    traces += [
        make_trace("flashinfer_moe", row=row, workload=moe_workload(row, row.official_uuid))
        for row in rows
    ]
    source = write_traces(tmp_path / "mine", traces)
    arguments = ["--solutions", FAST, "flashinfer_moe", "--into", clone, "--traces", source]
    monkeypatch.setattr(sys, "argv", ["pack.py", *map(str, arguments)])
    assert pack.main() == 0
    printed = capsys.readouterr().out.split()
    theirs, ours = "baseline", read_config(ROOT / "solutions" / FAST).author
    expected = {
        clone / "solutions" / theirs / "moe" / DEFINITION / "flashinfer_moe.json",
        clone / "solutions" / ours / "moe" / DEFINITION / f"{FAST}.json",
        clone / "traces" / theirs / "moe" / f"{DEFINITION}.jsonl",
        clone / "traces" / ours / "moe" / f"{DEFINITION}.jsonl",
    }
    assert set(map(Path, printed)) == expected
    found = TraceSet.from_path(str(clone))
    assert {s.name: s.author for s in found.solutions[DEFINITION]} == {
        FAST: ours,
        "flashinfer_moe": theirs,
    }
    assert len(found.traces[DEFINITION]) == 4

    replicas = write_traces(tmp_path / "replicas", [make_trace(FAST, row=rows[0])])
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(replicas)])
    assert pack.main() == 1
    assert f"--traces: 1 of workloads that {clone} has not" in capsys.readouterr().err
    assert len(TraceSet.from_path(str(clone)).traces[DEFINITION]) == 4


@pytest.mark.skipif(not SOURCE, reason="FLASHINFER_BENCH_SOURCE names no checkout of main")
def test_main_validates_an_exported_set_without_errors(clone, tmp_path):
    shutil.copytree(ROOT / "workloads", clone / "workloads", dirs_exist_ok=True)
    prepare(clone)
    source = write_traces(tmp_path / "mine", [make_trace(FAST, row=row) for row in ROWS])
    command = [sys.executable, ROOT / "scripts" / "pack.py", "--into", clone, "--traces", source]
    subprocess.run(command, check=True)
    validate = [sys.executable, "-m", "flashinfer_bench", "validate", "--dataset", clone]
    done = subprocess.run(
        [*validate, "--disable-gpu", "--outputs", "stdout"],
        env=os.environ | {"PYTHONPATH": SOURCE}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "0 error" in done.stdout and "19 valid" in done.stdout, done.stdout + done.stderr
    assert "  solution:    ok" in done.stdout and "  trace:       ok" in done.stdout


@pytest.mark.skipif(not SOURCE, reason="FLASHINFER_BENCH_SOURCE names no checkout of main")
@pytest.mark.skipif(HAS_CUDA, reason="would run everything")
def test_main_reads_bench_yaml_on_its_command_line(tmp_path):
    """It comes as far as the GPU, and not with a value that is none."""
    command = [sys.executable, "-m", "flashinfer_bench", "run", "--local", ROOT, "--config"]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((ROOT / "bench.yaml").read_text("utf-8").replace("rtol: ", "rtol: -"))
    for path, expected in ((ROOT / "bench.yaml", "No CUDA devices available"), (wrong, "rtol")):
        done = subprocess.run(
            [*command, path], env=os.environ | {"PYTHONPATH": SOURCE},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert expected in done.stderr, done.stderr


def test_flashinfer_is_the_baseline():
    assert author_of("flashinfer_moe", "someone") == "baseline"
    assert author_of(FAST, "someone") == "someone"


def test_bench_yaml_has_the_tolerances_of_run():
    text = (ROOT / "bench.yaml").read_text("utf-8")
    for line in (DEFINITION, f"rtol: {RTOL}", f"atol: {ATOL}", f"ratio: {MATCHED_RATIO}"):
        assert line in text


def test_everything_in_the_definition_is_described():
    definition = load_definition(ROOT, DEFINITION)
    described = [*definition.axes.items(), *definition.inputs.items(), *definition.outputs.items()]
    assert len(described) == 20
    assert [name for name, value in described if not value.description] == []
