"""Loading traces: which files are read, and what is not taken for a result."""

import json
import math
from datetime import timezone

import pytest
from bundle.comparison.traces import LAYOUT_0_1, LAYOUT_BY_AUTHOR, TraceError, load_traces
from bundle.hardware import UNKNOWN
from flashinfer_bench.data import Trace
from trace_factory import ROWS, make_trace, moe_workload, write_traces


def lines_of(*traces):
    return "".join(trace.model_dump_json() + "\n" for trace in traces)


def test_finds_files_in_both_layouts(tmp_path):
    old = write_traces(tmp_path / "old", [make_trace("a")])
    new = write_traces(tmp_path / "new", [make_trace("b")], author="someone")
    records, _ = load_traces([old, new])
    assert {record.solution: record.harness for record in records} == {
        "a": LAYOUT_0_1,
        "b": LAYOUT_BY_AUTHOR,
    }


def test_takes_a_file_a_subfolder_and_a_dataset_root_each_file_once(tmp_path):
    folder = write_traces(tmp_path, [make_trace("a"), make_trace("b")])
    # Another .jsonl of the dataset that holds no results.
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads" / "w.jsonl").write_text("not a trace")
    (file,) = folder.rglob("*.jsonl")
    records, _ = load_traces([tmp_path, folder / "moe", file])
    assert [record.solution for record in records] == ["a", "b"]
    assert {record.harness for record in records} == {LAYOUT_0_1}
    assert [record.line for record in records] == [1, 2]


def test_a_lone_file_tells_no_harness_version(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(lines_of(make_trace("a")))
    assert load_traces([path])[0][0].harness == UNKNOWN


def test_a_recorded_harness_version_beats_the_layout(tmp_path):
    libs = {"torch": "2.13.0", "flashinfer_bench": "0.1.2"}
    folder = write_traces(tmp_path, [make_trace("a", libs=libs)])
    environment = load_traces([folder])[0][0].environment
    assert environment == {
        "hardware": "NVIDIA H200",
        "flashinfer_bench": "0.1.2",
        "torch": "2.13.0",
    }


def test_timestamps_get_a_zone(tmp_path):
    traces = [
        make_trace("a", timestamp="2026-11-20T13:00:00.500000"),
        make_trace("b", timestamp="2026-11-20T13:00:00Z"),
        make_trace("c", timestamp="2026-11-20T15:00:00+02:00"),
    ]
    a, b, c = load_traces([write_traces(tmp_path, traces)])[0]
    assert a.timestamp.tzinfo == timezone.utc
    assert b.timestamp == c.timestamp < a.timestamp


def test_nan_and_infinity_survive(tmp_path):
    trace = make_trace("a", status="INCORRECT_NUMERICAL", max_error=math.inf)
    trace.evaluation.correctness.max_relative_error = math.nan
    (record,) = load_traces([write_traces(tmp_path, [trace])])[0]
    assert math.isinf(record.max_absolute_error)
    assert math.isnan(record.max_relative_error)


def test_empty_lines_are_no_traces(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n" + lines_of(make_trace("a")) + "  \n\n" + lines_of(make_trace("b")))
    assert [record.line for record in load_traces([path])[0]] == [2, 5]


GOOD = make_trace("a").model_dump_json()
WORKLOAD = Trace(definition="d", workload=moe_workload(ROWS[0])).model_dump_json()


@pytest.mark.parametrize(
    "line, complaint",
    [
        (GOOD[: len(GOOD) // 2], "Invalid JSON"),
        ("version https://git-lfs.github.com/spec/v1", "Invalid JSON"),
        ("[1, 2]", "should be an object"),
        ('{"definition": "d", "solution": "s"}', "workload: Field required"),
        (GOOD.replace('"PASSED"', '"GREAT"'), "evaluation.status: Input should be 'PASSED'"),
        (WORKLOAD, "a workload, not a result"),
        (GOOD.replace("2026-11-20T13:00:00.123456", "yesterday"), "evaluation.timestamp"),
        (make_trace("s", 0.0).model_dump_json(), "solution s: PASSED with latency_ms 0.0"),
        (GOOD.replace('"latency_ms":0.1', '"latency_ms":Infinity'), "latency_ms inf"),
        (GOOD.replace('"matched_ratio":0.93', '"matched_ratio":"high"'), "expected a number"),
        (b'{"definition": "\xff\xfe"}', "Invalid JSON"),
        (GOOD.replace('"latency_ms":0.1', '"latency_ms":true'), "latency_ms: expected a number"),
        (GOOD.replace('"latency_ms":0.1', '"latency_ms":"12"'), 'expected a number, got "12"'),
        (GOOD.replace('"matched_ratio":0.93', '"matched_ratio":7'), "from 0 to 1, got 7"),
        (GOOD.replace('"matched_ratio":0.93', '"matched_ratio":NaN'), "from 0 to 1, got nan"),
        (GOOD.replace('"matched_ratio":0.93', '"matched_ratio":true'), "from 0 to 1, got True"),
        (GOOD.replace('"seq_len":', '"seq_len":1'), f"workload.uuid {ROWS[0].uuid}: expected that"),
        (GOOD.replace('"solution":"a"', '"solution":""'), "solution: expected a name"),
        (GOOD.replace('"solution":"a"', '"solution":"a","solution":"a"'), "'solution': expected"),
        (GOOD.replace('"latency_ms":', '"latency_ms":9.0,"latency_ms":'), "this key once"),
        (GOOD.replace('"latency_ms":0.1', '"latency_ms":1e999'), "latency_ms inf"),
        (GOOD.replace('"reference_latency_ms":', '"reference_latency_ms":1e999,"x":'), "a number"),
        (GOOD.replace('"solution":"a"', '"solution":"\\u202ea"'), "solution: expected a name"),
        (GOOD.replace('"matched_ratio":0.93', '"x":' + "[" * 5000 + "]" * 5000), ""),
        (GOOD.replace('"solution":"a"', '"solution":"\\u001b[31m"'), r"got '\x1b[31m'"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "results.jsonl"
    good = GOOD.encode() + b"\n"
    path.write_bytes(good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    with pytest.raises(TraceError) as error:
        load_traces([path])
    assert f"{path}:2: " in str(error.value)
    assert complaint in str(error.value)

    records, bad_lines = load_traces([path], skip_bad_lines=True)
    assert [record.line for record in records] == [1, 3]
    assert len(bad_lines) == 1 and complaint in bad_lines[0]


def changed(value, path=()):
    """JSON values like `value`, each with one thing changed, and where."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield {k: v for k, v in value.items() if k != name}, f"without {(*path, name)}"
            for new, what in changed(inner, (*path, name)):
                yield value | {name: new}, what
        yield value | {"more": 1.5}, f"more in {path}"
        yield dict(reversed(value.items())), f"{path} in another order"
    for new in (None, True, "", "12", "NaN", "\x1b", -1.0, 0, 0.0, 3, 1.5, math.nan, [], {}):
        if value is not new:
            yield new, f"{path}: {new!r}"


@pytest.mark.parametrize("status", ["PASSED", "INCORRECT_NUMERICAL", "RUNTIME_ERROR"])
def test_a_line_means_the_same_whatever_was_read_before(tmp_path, status):
    """Lines like earlier ones are read without the harness: never otherwise than it would."""
    good = json.loads(make_trace("a", status=status).model_dump_json())
    lines = [json.dumps(line, separators=(",", ":")) for line, _ in changed(good)]
    spaced = [json.dumps(line) for line, _ in changed(good)][::7]
    first = lines_of(make_trace("a", status=status))
    seen = set()
    for line in [*lines, *spaced]:
        outcomes = []
        for text in (f"\n{line}\n", f"{first}{line}\n"):
            path = tmp_path / "results.jsonl"
            path.write_text(text)
            records, bad = (
                load_traces([path], skip_bad_lines=True) if first in text else alone(path)
            )
            own = [
                r._replace(where=r.where.facts, workload=r.workload.uuid)
                for r in records
                if r.line == 2
            ]
            outcomes.append((own, [message.replace(":1", ":2") for message in bad]))
        # a workload that only the second file has met before may be said to differ from that
        if not any("expected that of" in message for message in outcomes[1][1]):
            assert repr(outcomes[0]) == repr(outcomes[1]), line
        seen.add(bool(outcomes[1][0]))
    assert seen == {True, False}


def alone(path):
    """As load_traces, for a file that may have no good line."""
    try:
        return load_traces([path], skip_bad_lines=True)
    except TraceError:
        path.write_text(path.read_text() + lines_of(make_trace("good")))
        return load_traces([path], skip_bad_lines=True)


def test_a_log_may_speak_of_figures(tmp_path):
    trace = make_trace("a")
    trace.evaluation.log = '{"latency_ms": true}'
    assert len(load_traces([write_traces(tmp_path, [trace])])[0]) == 1


def test_traces_share_their_workload_and_environment(tmp_path):
    first, second = load_traces([write_traces(tmp_path, [make_trace("a"), make_trace("b")])])[0]
    assert first.workload is second.workload
    assert first.where is second.where


def test_many_bad_lines_are_counted(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("{\n" * 25)
    with pytest.raises(TraceError, match="25 unusable") as error:
        load_traces([path])
    assert str(error.value).count(f"{path}:") == 10
    assert "15 more" in str(error.value)


def test_missing_and_empty_paths_are_errors(tmp_path):
    with pytest.raises(TraceError, match="nowhere: no such file or folder"):
        load_traces([tmp_path / "nowhere"])
    with pytest.raises(TraceError, match="no .jsonl file"):
        load_traces([tmp_path])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TraceError, match="no traces in .*empty.jsonl"):
        load_traces([tmp_path / "empty.jsonl"])
