"""Verification lets honest solutions pass and names what every kind of cheating does."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import make_config, settings_for
from bundle.machine import provenance
from bundle.paths import ROOT
from bundle.probes.store import Failed, load_all
from bundle.probes.verification import VerificationReport, VerificationRow, verification_sheets
from bundle.runs.verification import Findings, _check_clock, make_plan, verify
from bundle.sandbox.contract import Failure, Limits
from bundle.sandbox.launcher import Launcher
from bundle.sandbox.processes import descendants
from toy_bundle import DEFINITION, control, make_bundle, packed

# control -> part of what has to be said about it; None: nothing is found
EXPECTED = {
    "good": None,
    "cached_output": "output",
    "cached_fingerprint": "output",
    "cached_weights": "output",
    "cached_routing": "output",
    "cached_rows": "a call",
    "changes_inputs": "changed its input hidden_states",
    "half_written": "never written (NaN): 50 % of the rows",
    "late_thread": "never written (NaN): 100 % of the rows",
    "patched_clock": "by its own clock a call takes",
    "patched_harness": "INCORRECT_NUMERICAL: output",
    "second_process": "left 1 process(es) running",
    "scaled": "INCORRECT_NUMERICAL: output",
    "raises": "RuntimeError: on purpose",
    "exits": "exit status 3",
}
# on a GPU, comparing the toy's inputs takes as long as its work: there is nothing to find
ON_CUDA = {name: found for name, found in EXPECTED.items() if name != "cached_rows"} | {
    "side_stream_early": "output",
    "side_stream_late": "output",
    "default_stream": "output",
    "lazy_output": "made its output a Lazy, expected a tensor for output",
    "reseeds": "changed the seed of random numbers",
    "patched_sleep": "replaced torch.cuda._sleep",
    "device_assert": "device-side assert",
}
LIMITS = Limits(60.0)
SETTINGS = {"rtol": 1e-2, "atol": 1e-2, "required_matched_ratio": 0.95}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A launcher, and a function to verify one of the toy solutions on a device."""
    root = make_bundle(
        tmp_path_factory.mktemp("bundle"),
        {name: control(name) for name in EXPECTED | ON_CUDA},
        (64,),
    )
    solutions = {solution.name: solution for solution in packed(root)}
    dataset = load_dataset(root)
    definition = dataset.definitions[DEFINITION]
    workload = dataset.workloads[DEFINITION][0].workload
    settings = settings_for(make_config(**SETTINGS), definition)
    launcher = Launcher.start()
    plans = {}

    def check(name, device):
        if device not in plans:
            plans[device] = make_plan(
                definition, workload, root, settings, launcher, LIMITS, device
            )
        return verify(plans[device], solutions[name], launcher, LIMITS)

    yield launcher, check
    launcher.close()
    assert set(descendants(os.getpid())) <= launcher.others


def assert_found(found, expected):
    if expected is None:
        assert found.problem is None
        assert found.calls == 11 and found.matched_ratio > 0.99
        assert found.claimed_us <= found.seen_us
    else:
        assert found.problem is not None and expected in found.problem


@pytest.mark.parametrize("name", EXPECTED)
def test_controls_on_a_cpu(bench, name):
    launcher, check = bench
    assert_found(check(name, "cpu"), EXPECTED[name])
    assert descendants(launcher.process.pid) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_CUDA)
def test_controls_on_cuda(bench, name):
    launcher, check = bench
    assert_found(check(name, "cuda:0"), ON_CUDA[name])
    assert descendants(launcher.process.pid) == []


@pytest.mark.parametrize("disturbed", [0, 20, 25])
def test_a_busy_machine_accuses_nobody(disturbed):
    """Until one of 25 times is undisturbed; a clock that is false is so in all of them."""
    times = [(2e-3, 150e-6)] * (disturbed + 1) + [(200e-6, 150e-6)] * 5  # one to warm up
    process = SimpleNamespace(time=lambda calls: times.pop(0))
    found = Findings()
    if disturbed < 25:
        _check_clock(process, found)
        assert found.seen_us == pytest.approx(200.0)
    else:
        with pytest.raises(Failure, match="by its own clock a call takes 150.0 us"):
            _check_clock(process, found)


def test_script_stores_and_shows_the_verdicts(tmp_path):
    mains = {name: control(name) for name in ("good", "cached_output")}
    root = make_bundle(tmp_path / "bundle", mains, (8,))
    command = [sys.executable, ROOT / "scripts" / "verify.py", "--local", root, "--data", tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1, finished.stderr
    assert "nothing found" in finished.stdout
    (report,) = load_all(VerificationReport, tmp_path)
    (good,), (cached,) = report.rows, report.failed
    assert good.solution == "good" and good.claimed_us <= good.seen_us
    assert cached.key == ("cached_output", "workload-8") and "INCORRECT_NUMERICAL" in cached.reason
    (sheet,) = verification_sheets(report)
    shown = [[entry.text for entry in row[:2]] for row in sheet.rows]
    assert shown == [["cached_output", "seq_len=8"], ["good", "seq_len=8"]]  # the worst first


@pytest.mark.gpu
def test_script_on_this_bundle(tmp_path):
    """The PyTorch solution of the real layer, with every input changed in turn."""
    command = [sys.executable, ROOT / "scripts" / "verify.py", "--solutions", "torch_moe"]
    finished = subprocess.run(
        [*command, "--workloads", "58", "--data", tmp_path], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (report,) = load_all(VerificationReport, tmp_path)
    (row,) = report.rows
    assert {"hidden_states", "gemm1_weights", "gemm2_weights"} <= set(row.inputs)


def test_workloads_of_one_name_keep_their_rows():
    """A row is known by its workload's uuid; the table shows names."""
    source = provenance("python scripts/verify.py")

    def row(uuid):
        return VerificationRow(
            solution="a", uuid=uuid, workload="seq_len=7", calls=3, matched_ratio=1.0, seen_us=9.0,
            claimed_us=8.0, seconds=1.0,
        )  # fmt: skip

    report = VerificationReport(provenance=source, planned=4)
    report.add([row("one"), row("two"), Failed(key=("b", "one"), reason="wrong")])
    report.add([Failed(key=("b", "three"), reason="late")])
    (sheet,) = verification_sheets(report)
    assert [[entry.text for entry in line[:3]] for line in sheet.rows] == [
        ["b", "seq_len=7", "wrong"],
        ["b", "three", "late"],
        ["a", "seq_len=7", "nothing found"],
        ["a", "seq_len=7", "nothing found"],
    ]
