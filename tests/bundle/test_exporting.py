"""Traces and authors in another dataset's layout, and the settings for the harness's own run."""

from types import SimpleNamespace

import pytest
from bundle.dataset.exporting import author_of, export_traces
from bundle.dataset.loading import load_definition
from bundle.dataset.workload_table import DEFINITION
from bundle.paths import ROOT
from bundle.tolerances import ATOL, MATCHED_RATIO, RTOL
from flashinfer_bench.data import Trace
from trace_factory import ROWS, make_trace, moe_workload

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
