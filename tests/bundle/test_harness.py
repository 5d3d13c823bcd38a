"""The adapter to flashinfer-bench, on what is installed and on main where its source is at hand."""

import importlib
import inspect
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from bundle import harness
from bundle.dataset.loading import load_dataset
from bundle.paths import ROOT
from flashinfer_bench.data import EvaluationStatus
from toy_bundle import DEFINITION, add_solution, control, make_bundle

SOURCE = os.environ.get("FLASHINFER_BENCH_SOURCE")  # a checkout of flashinfer-bench's main
ADAPTER = Path(harness.__file__)
# What the adapter uses and the names of the parameters, as recorded from 0.1.2 and from main
# (40e6ca78): they agree in all of these.
RECORDED = {
    "flashinfer_bench.bench.utils.compute_error_stats": ["output", "reference", "cfg"],
    "flashinfer_bench.bench.utils.gen_inputs": [
        "definition", "workload", "device", "safe_tensors"],
    "flashinfer_bench.bench.utils.load_safetensors": ["definition", "workload", "trace_set_root"],
    "flashinfer_bench.bench.utils.make_eval": [
        "status", "device", "log_path", "correctness", "performance", "extra_msg"],
    "flashinfer_bench.bench.evaluators.utils.normalize_result": ["definition", "result", "device"],
    "flashinfer_bench.bench.evaluators.resolve_evaluator": ["definition"],
    "flashinfer_bench.utils.env_snapshot": ["device"],
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_interfaces_are_as_recorded(name):
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(module), function)
    assert list(inspect.signature(found).parameters) == RECORDED[name]


def test_private_names_are_used_in_the_adapter_only():
    """`bench` beyond Benchmark and BenchmarkConfig, `compile` and `utils` are no interface."""
    for path in ROOT.glob("scripts/**/*.py"):
        if path == ADAPTER:
            continue
        for line in path.read_text().splitlines():
            if "import" in line and not line.startswith(" "):
                assert "flashinfer_bench.bench." not in line, path
                assert "flashinfer_bench.compile" not in line, path


@pytest.fixture
def definition(tmp_path):
    return load_dataset(make_bundle(tmp_path, {})).definitions[DEFINITION]


def test_settings_have_every_default(definition):
    settings = harness.settings_for(harness.make_config(), definition)
    assert (settings.warmup_runs, settings.iterations, settings.num_trials) == (10, 50, 3)
    assert settings.required_matched_ratio == 0.95  # of fp8
    given = harness.make_config(rtol=0.3, atol=0.5, required_matched_ratio=0.7, timeout_seconds=9)
    settings = harness.settings_for(given, definition)
    assert (settings.rtol, settings.atol, settings.required_matched_ratio) == (0.3, 0.5, 0.7)
    assert settings.timeout_seconds == 9


@pytest.mark.parametrize("values", [{"iterations": 0}, {"timeout_seconds": 0}, {"rtol": -1.0}])
def test_refused_configuration_is_told_on_one_line(values):
    with pytest.raises(ValueError, match=next(iter(values))) as error:
        harness.make_config(**values)
    assert "\n" not in str(error.value)


def test_evaluation_has_the_log_it_is_given():
    made = harness.evaluation(EvaluationStatus.TIMEOUT, "cpu", "too late")
    assert made.log == "too late" and made.environment.libs["torch"]


def test_version_is_that_of_the_package():
    assert harness.harness_version() == version("flashinfer-bench")


@pytest.mark.skipif(not SOURCE, reason="FLASHINFER_BENCH_SOURCE names no checkout of main")
def test_run_on_main(tmp_path):
    """run.py as a whole, with the harness taken from a checkout."""
    root = make_bundle(tmp_path, {name: control(name) for name in ("good", "scaled", "exits")})
    add_solution(
        root,
        "returns",
        control("good")
        .replace(", output)", ")")
        .replace("output.copy_(", "import torch\n    return (")
        .replace("))", ")).to(torch.bfloat16)"),
    )
    environment = os.environ | {"PYTHONPATH": SOURCE, "COLUMNS": "200"}
    command = [sys.executable, ROOT / "scripts" / "run.py", "--local", root, "--workloads", "3"]
    finished = subprocess.run(
        [*command, "--rtol", "0.01"], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    for line in ("good  PASSED", "scaled  INCORRECT_NUMERICAL", "exits  RUNTIME_ERROR"):
        assert line in finished.stdout
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    finished = subprocess.run(
        [*tests, "-k", "not main and not version"], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"FLASHINFER_BENCH_SOURCE": ""},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
