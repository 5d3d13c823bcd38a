"""scripts/compare.py over traces of several machines, drivers and harness versions."""

import json

import compare as script
import pytest
from bundle.comparison.compatibility import ComparisonError
from bundle.comparison.sections import EVENTS, MEDIANS, THIS_MACHINE, compare_sections, timing
from bundle.comparison.traces import load_traces
from bundle.hardware import UNKNOWN
from bundle.paths import ROOT
from bundle.runs.store import read_traces, store_traces
from trace_factory import DEFINITION, H100, H200, LIBS, ROWS, all_rows, make_trace, write_traces

FAST, SLOW = "triton_fused_moe_v3", "torch_moe"


@pytest.fixture
def gpus(tmp_path):
    """Two solutions on an H200, one of them on an H100."""
    traces = [*all_rows(SLOW, 2.0), *all_rows(FAST), *all_rows(SLOW, 3.0, hardware=H100)]
    return write_traces(tmp_path, traces)


def sections(folder, **options):
    return compare_sections(load_traces([folder])[0], root=ROOT, **options)


def gpus_of(comparisons):
    return [each.provenance.environment["hardware"] for each in comparisons]


@pytest.mark.parametrize("here, order", [(H100, [H100, H200]), (H200, [H200, H100])])
def test_this_machine_comes_first(gpus, here, order):
    comparisons = sections(gpus, here=lambda: here)
    assert gpus_of(comparisons) == [[name] for name in order]
    assert [THIS_MACHINE in each.notes for each in comparisons] == [True, False]
    columns = {
        gpu: [c.label for c in each.columns]
        for (gpu,), each in zip(gpus_of(comparisons), comparisons, strict=True)
    }
    assert columns == {H100: [SLOW], H200: [FAST, SLOW]}


def test_the_script_ends_in_tables(gpus, capsys, monkeypatch):
    """As after a run on an H100 in a clone with traces of an H200."""
    monkeypatch.setattr(script, "this_hardware", lambda: H100)
    script.main([str(gpus)])
    text = capsys.readouterr().out
    assert text.index(f"on {H100}") < text.index(f"on {H200}")
    script.main([str(gpus), "--mix", "--format", "json"])
    (mixed,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert len(mixed["columns"]) == 3


def test_another_driver_or_library_is_another_section(tmp_path):
    old = all_rows(SLOW, libs=LIBS | {"driver": "570.1"}, timestamp="2026-11-19T00:00:00")
    new = all_rows(FAST, libs=LIBS | {"driver": "580.2"})
    comparisons = sections(write_traces(tmp_path, [*old, *new]))
    assert [c.label for each in comparisons for c in each.columns] == [FAST, SLOW]


def test_names_are_those_of_any_section(gpus):
    first, second = sections(gpus, here=lambda: H100, baseline=FAST)
    assert (first.baseline, second.baseline) == (None, FAST)
    assert any("No ratios" in note for note in first.notes)
    (only,) = sections(gpus, solutions=[FAST])
    assert gpus_of([only]) == [[H200]]
    for options, message in (
        ({"solutions": ["nobody"]}, f"solution nobody; there are: {SLOW}, {FAST}"),
        ({"baseline": "nobody"}, "baseline nobody is not among"),
        ({"definition": "gemm"}, "definition gemm; there are"),
    ):
        with pytest.raises(ComparisonError, match=message):
            sections(gpus, **options)


@pytest.mark.parametrize(
    "version, way",
    [("0.1.2", EVENTS), ("0.1.3.dev98", MEDIANS), ("0.2.0", MEDIANS), ("unknown", UNKNOWN)],
)
def test_ways_of_timing(tmp_path, version, way):
    trace = make_trace(FAST, libs=LIBS | {"flashinfer_bench": version})
    assert timing(load_traces([write_traces(tmp_path, [trace])])[0][0]) == way


def test_ways_of_timing_without_a_version_follow_the_folders(tmp_path):
    folders = [
        write_traces(tmp_path / "old", [make_trace(FAST)]),
        write_traces(tmp_path / "new", [make_trace(FAST)], author="someone"),
    ]
    assert [timing(record) for record in load_traces(folders)[0]] == [EVENTS, MEDIANS]


def test_means_and_medians_never_share_a_table(tmp_path):
    means = all_rows(SLOW, libs=LIBS | {"flashinfer_bench": "0.1.2"})
    medians = all_rows(FAST, libs=LIBS | {"flashinfer_bench": "0.1.3.dev98"}, hardware=H100)
    folder = write_traces(tmp_path, [*means, *medians])
    assert [[c.solution for c in each.columns] for each in sections(folder, mix=True)] == [
        [SLOW],
        [FAST],
    ]


def test_a_run_keeps_the_traces_of_other_gpus(tmp_path):
    class Definition:
        op_type, name = "moe", DEFINITION

    for hardware, latency in ((H200, 1.0), (H100, 2.0), (H100, 3.0)):
        store_traces(
            tmp_path, Definition, [make_trace(FAST, latency, row=ROWS[0], hardware=hardware)]
        )
    kept = {
        trace.evaluation.environment.hardware: trace.evaluation.performance.latency_ms * 1e3
        for trace in read_traces(tmp_path, Definition)
    }
    assert kept == {H200: pytest.approx(1.0), H100: pytest.approx(3.0)}
