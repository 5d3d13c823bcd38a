"""Replicas load the local experts as the table says, look like logits, and never change."""

import dataclasses
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle.dataset import replicas
from bundle.dataset.replicas import (
    GROUP_SIZE,
    MARGIN,
    NUM_GROUPS,
    check_routing,
    digests_path,
    expected_digests,
    find_bad_blobs,
    make_routing,
    prepare,
    reference_route,
    serialize_routing,
    sigmoid,
    tensors_digest,
)
from bundle.dataset.workload_table import (
    DEFINITION,
    read_table,
    replica_uuid,
    table_path,
    workload_lines,
)
from flashinfer_bench.bench.utils import load_safetensors
from flashinfer_bench.data import Trace, load_jsonl_file
from toy_reference import real_definition

ROOT = Path(__file__).resolve().parents[2]
ROWS = read_table(ROOT)
PREPARE = ROOT / "scripts" / "prepare.py"

all_rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.seq_len}-{row.uuid[:4]}")


@pytest.fixture(scope="module")
def routings():
    """Logits and bias (float64, exactly the float32 ones) of all rows."""
    return {row: [array.astype(np.float64) for array in make_routing(row)] for row in ROWS}


@pytest.fixture(scope="module")
def route():
    return reference_route(ROOT)


def route_float64(logits, bias):
    """Chosen experts [T, 8] and both least margins [T] of a routing, in float64 with NumPy."""
    ranking = 1 / (1 + np.exp(-logits)) + bias
    by_group = ranking.reshape(-1, NUM_GROUPS, GROUP_SIZE)
    group_scores = np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2)
    falling = -np.sort(-group_scores, axis=1)
    group_margin = falling[:, 3] - falling[:, 4]
    kept = group_scores >= falling[:, 3:4]
    ranking = np.where(kept[:, :, None], by_group, -np.inf).reshape(logits.shape)
    chosen = np.argsort(-ranking, axis=1)[:, :8]
    falling = -np.sort(-ranking, axis=1)
    return chosen, falling[:, 7] - falling[:, 8], group_margin


# --- the table -------------------------------------------------------------------------------


def test_table():
    assert len(ROWS) == 19
    assert [row.seq_len for row in ROWS[:3]] == [1, 7, 14]
    assert sum(row.local_pairs for row in ROWS) == 28538
    assert {row.local_expert_offset % GROUP_SIZE for row in ROWS} == {0}
    uuids = {row.uuid for row in ROWS} | {row.official_uuid for row in ROWS}
    assert len(uuids) == 38


def test_replica_uuid_is_pinned():
    """Traces are matched by it."""
    official = "e05c6c03-5603-4a1c-b34c-dcce0ecaeea4"
    assert ROWS[0].official_uuid == official
    assert replica_uuid(official) == ROWS[0].uuid == "739dc5bc-4704-541c-a79d-5eaedaa8588c"


def test_workloads_follow_the_table():
    path = ROOT / f"workloads/moe/{DEFINITION}.jsonl"
    assert path.read_text("utf-8") == workload_lines(ROWS), "run scripts/prepare.py --sync"
    definition, traces = real_definition(ROOT), load_jsonl_file(Trace, path)
    for row, trace in zip(ROWS, traces, strict=True):
        workload = trace.workload
        assert trace.is_workload_trace() and trace.definition == definition.name
        assert workload.uuid == row.uuid and workload.axes == {"seq_len": row.seq_len}
        assert list(workload.inputs) == list(definition.inputs)
        assert workload.inputs["local_expert_offset"].value == row.local_expert_offset
        assert workload.inputs["routed_scaling_factor"].value == 2.5


# --- routing ---------------------------------------------------------------------------------


@all_rows
def test_loads(row, routings):
    """The table's figures, counted with another implementation than the reference's."""
    chosen, _, _ = route_float64(*routings[row])
    local = chosen.ravel() - row.local_expert_offset
    loads = np.bincount(local[(local >= 0) & (local < 32)], minlength=32)
    assert loads.sum() == row.local_pairs
    assert (loads > 0).sum() == row.active_local_experts
    if row.max_tokens_is_exact:
        assert loads.max() == row.max_tokens_per_expert
    else:
        assert loads.max() <= row.max_tokens_per_expert


@all_rows
def test_reference_routes_alike(row, routings, route):
    logits, bias = routings[row]
    chosen, _, _ = route_float64(logits, bias)
    bias = torch.from_numpy(bias)
    assert torch.equal(bias.to(torch.bfloat16).double(), bias)
    ids, _ = route(torch.from_numpy(logits).float(), bias.to(torch.bfloat16), 2.5)
    check_routing(row, ids)
    assert np.array_equal(np.sort(ids.numpy(), axis=1), np.sort(chosen, axis=1))


@all_rows
def test_margins(row, routings):
    """Robust decisions, not all of them easy ones."""
    _, expert_margin, group_margin = route_float64(*routings[row])
    assert MARGIN == 2**-10
    assert expert_margin.min() > MARGIN and group_margin.min() > MARGIN - 1e-8
    if row.seq_len > 50:
        assert expert_margin.min() < 3 * MARGIN and expert_margin.max() > 20 * MARGIN
        assert group_margin.min() < 8 * MARGIN and group_margin.max() > 100 * MARGIN


@all_rows
def test_logits_look_like_logits(row, routings):
    logits, bias = routings[row]
    assert all(len(set(token)) == 256 for token in logits.tolist())
    assert np.array_equal(logits.astype(np.float32), logits)
    assert np.abs(logits).max() < 16
    assert 0.95 < logits.std() < 1.25 and -1.7 < logits.mean() < -1.3
    if row.seq_len > 10:
        expert = logits - logits.mean(axis=0)
        skew = (expert**3).mean() / expert.std() ** 3
        kurtosis = (expert**4).mean() / expert.std() ** 4
        assert abs(skew) < 0.3 and 2.4 < kurtosis < 3.6  # 0 and 3 for a normal distribution
        assert 0.4 < logits.mean(axis=0).std() < 0.75  # popular and unpopular experts
    assert (bias != 0).all() and np.abs(bias).max() <= 2**-5


def test_bias_matters(routings):
    """A kernel that forgot the bias would route a good part of the tokens wrongly."""
    row = ROWS[-1]
    logits, bias = routings[row]
    with_bias, _, _ = route_float64(logits, bias)
    without, _, _ = route_float64(logits, 0 * bias)
    changed = (np.sort(with_bias, axis=1) != np.sort(without, axis=1)).any(axis=1)
    assert changed.mean() > 0.3


def test_large_loads_are_skewed_and_tokens_take_many_local_experts(routings):
    for row in ROWS[-3:]:
        chosen, _, _ = route_float64(*routings[row])
        local = chosen - row.local_expert_offset
        is_local = (local >= 0) & (local < 32)
        loads = np.bincount(local[is_local], minlength=32)
        assert len(set(loads.tolist())) > 16 and loads.min() * 4 < loads.max()
        assert (np.bincount(is_local.sum(axis=1), minlength=8)[:8] > 0).all()


def test_sigmoid_needs_no_libm():
    x = np.linspace(-15.9, 15.9, 10_001)
    assert np.abs(sigmoid(x) - 1 / (1 + np.exp(-x))).max() < 1e-9


# --- errors of the generator -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"local_pairs": 2}, "seq_len 1, offset 32: local_pairs: expected 3 to 3 .*, got 2"),
        ({"local_pairs": 4}, "seq_len 1, offset 32: local_pairs: expected 3 to 3 .*, got 4"),
        ({"local_expert_offset": 33}, "local_expert_offset: expected a multiple of 32 .* got 33"),
    ],
)
def test_impossible_row(change, message):
    with pytest.raises(ValueError, match=message):
        make_routing(dataclasses.replace(ROWS[0], **change))


@pytest.mark.parametrize(
    "name, value",
    [("local_pairs", 8), ("active_local_experts", 6), ("max_tokens_per_expert", 2)],
)
def test_check_routing_finds_a_wrong_load(route, name, value):
    logits, bias = map(torch.from_numpy, make_routing(ROWS[1]))
    ids, _ = route(logits, bias.to(torch.bfloat16), 2.5)
    check_routing(ROWS[1], ids)
    with pytest.raises(RuntimeError, match=f"seq_len 7, offset 192: {name}: expected {value}"):
        check_routing(dataclasses.replace(ROWS[1], **{name: value}), ids)


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    """A bundle of the first three workloads, not yet prepared."""
    for folder in ("definitions", "workloads"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in (table_path(tmp_path), digests_path(tmp_path)):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:4]), "utf-8")
    return tmp_path


def run_prepare(*arguments):
    command = [sys.executable, PREPARE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@all_rows
def test_digest(row, route):
    """The bytes on this machine are those of every machine."""
    assert tensors_digest(serialize_routing(row, route)) == expected_digests(ROOT)[row]


def test_prepare_writes_once(bundle):
    written = prepare(bundle)
    assert written == [bundle / row.blob for row in ROWS[:3]]
    before = [path.stat().st_mtime_ns for path in written]
    assert prepare(bundle) == []
    assert [path.stat().st_mtime_ns for path in written] == before
    assert sorted(written) == sorted((bundle / "blob").rglob("*.*"))


def test_harness_loads_a_blob(bundle):
    prepare(bundle)
    definition = real_definition(bundle)
    trace = load_jsonl_file(Trace, bundle / f"workloads/moe/{DEFINITION}.jsonl")[1]
    tensors = load_safetensors(definition, trace.workload, bundle)
    logits, bias = make_routing(ROWS[1])
    assert np.array_equal(tensors["routing_logits"].numpy(), logits)
    assert np.array_equal(tensors["routing_bias"].float().numpy(), bias)


@pytest.mark.parametrize("size", [0, 7, 100, 9000])
def test_truncated_blob_is_named_and_generated_again(bundle, caplog, size):
    whole = prepare(bundle)[2]
    content = whole.read_bytes()
    whole.write_bytes(content[:size])
    bad = find_bad_blobs(bundle)
    expected = expected_digests(bundle)[ROWS[2]]
    assert list(bad) == [ROWS[2]]
    assert f"expected tensors with SHA-256 {expected}, got a damaged file" in bad[ROWS[2]]
    with caplog.at_level(logging.WARNING):
        assert prepare(bundle) == [whole]
    assert str(whole) in caplog.text and expected in caplog.text
    assert whole.read_bytes() == content


def test_changed_blob_is_found(bundle):
    path = prepare(bundle)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    actual, expected = tensors_digest(bytes(content)), expected_digests(bundle)[ROWS[0]]
    reason = f"expected tensors with SHA-256 {expected}, got {actual}"
    assert find_bad_blobs(bundle) == {ROWS[0]: reason}


def test_swapped_blobs_are_found(bundle):
    first, second, _ = prepare(bundle)
    first.write_bytes(second.read_bytes())
    assert list(find_bad_blobs(bundle)) == [ROWS[0]]


def test_other_result_is_not_written(bundle):
    """A machine that generates other bytes says so, and keeps what is there."""
    path = prepare(bundle)[0]
    digests, content = digests_path(bundle), path.read_bytes()
    right = expected_digests(bundle)[ROWS[0]]
    digests.write_text(digests.read_text("utf-8").replace(right, "0" * 64), "utf-8")
    message = f"seq_len 1, offset 32: expected .* {'0' * 64}, generated {right}"
    with pytest.raises(RuntimeError, match=message):
        prepare(bundle)
    assert path.read_bytes() == content


def test_failed_check_writes_nothing(bundle, monkeypatch):
    monkeypatch.setattr(replicas, "reference_route", lambda root: lambda *_: (torch.zeros(1, 8),))
    with pytest.raises(RuntimeError):
        prepare(bundle)
    assert not (bundle / "blob").exists()


def test_dataset_without_the_table_has_nothing_to_prepare(tmp_path):
    assert prepare(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("upper_bound", "about", "line 4: max_tokens_kind: expected exact or .*, got 'about'"),
        (",7,192,", ",seven,192,", "line 3: invalid literal for int.* 'seven'"),
        ("seq_len", "tokens", "expected a column 'seq_len', got .*'tokens'"),
        (",exact\n", "\n", "line 2: max_tokens_kind: expected exact or upper_bound, got None"),
        ("e05c6c03", "e05c6c04", "expected one digest for the replica of each row"),
    ],
)
def test_bad_table(bundle, old, new, message):
    path = table_path(bundle)
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(ValueError, match=f"{DEFINITION}.*{message}"):
        prepare(bundle)


# --- the command -----------------------------------------------------------------------------


def test_command(bundle):
    blob = bundle / ROWS[0].blob
    missing = run_prepare("--local", bundle, "--check")
    assert missing.returncode == 1 and not blob.exists()
    assert f"seq_len 1, offset 32: {blob}: missing" in missing.stdout

    written = run_prepare("--local", bundle)
    assert written.returncode == 0 and "3 blobs written" in written.stdout and blob.exists()

    for again in (run_prepare("--local", bundle, "--check"), run_prepare("--local", bundle)):
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_command_sync_changes_nothing_here(bundle):
    """The committed files are what their sources give."""
    before = {path: path.read_bytes() for path in bundle.rglob("*.*") if path.is_file()}
    result = run_prepare("--local", bundle, "--sync")
    assert result.returncode == 0, result.stderr
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == [f"{DEFINITION}.jsonl"]  # three lines: the fixture cut the table only
    lines = (bundle / f"workloads/moe/{DEFINITION}.jsonl").read_text("utf-8")
    assert lines == workload_lines(ROWS[:3])


def test_command_errors(bundle):
    table_path(bundle).unlink()
    result = run_prepare("--local", bundle)
    assert result.returncode == 2 and str(table_path(bundle)) in result.stderr
    assert "Traceback" not in result.stderr
    assert run_prepare("--no-such-option").returncode == 2


def test_command_help():
    result = run_prepare("--help")
    assert result.returncode == 0 and "--check" in result.stdout and "--sync" in result.stdout


def test_nothing_to_do_is_fast():
    """Whole blobs are verified without importing torch, which takes longer than all the rest."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import prepare; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
