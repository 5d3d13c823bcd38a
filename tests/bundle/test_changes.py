"""compare.py before=... after=...: what has become faster or slower, beyond what runs vary by."""

import csv
import io
import json

import compare as script
import pytest
from bundle.comparison.changes import (
    BROKEN,
    FAILING,
    FASTER,
    MENDED,
    NOISE,
    SLOWER,
    Measured,
    compare_sides,
    verdict,
)
from bundle.comparison.traces import load_traces
from bundle.paths import BadInput
from trace_factory import H100, LIBS, ROWS, all_rows, make_trace, write_traces

NAME = "triton_fused_moe_v3"


def measured(*times):
    return [make_trace(NAME, time) for time in times]


def sides(tmp_path, before, after):
    folders = write_traces(tmp_path / "before", before), write_traces(tmp_path / "after", after)
    return [load_traces([folder])[0] for folder in folders]


def arguments(tmp_path):
    return [f"before={tmp_path / 'before'}", f"after={tmp_path / 'after'}"]


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ((100, 101, 99), (110, 112, 111), SLOWER),
        ((100, 101, 99), (90, 91), FASTER),
        ((100, 120, 99), (110, 112, 111), NOISE),  # the old runs reach the new ones
        ((100,), (104,), NOISE),  # one run each
        ((100,), (121,), SLOWER),
        ((100,), (80,), FASTER),
    ],
)
def test_verdicts(tmp_path, before, after, expected):
    old, new = sides(tmp_path, measured(*before), measured(*after))
    (change,) = compare_sides(old, new).changes
    assert change.verdict == expected
    assert (change.before.runs, change.after.runs) == (len(before), len(after))


def test_verdicts_of_failures():
    good = Measured(1, 100.0, 95.0, 105.0)
    assert verdict(good, None) == BROKEN
    assert verdict(None, good) == MENDED
    assert verdict(None, None) == FAILING


def test_one_failed_run_breaks_a_side(tmp_path):
    failed = make_trace(NAME, status="RUNTIME_ERROR")
    old, new = sides(tmp_path, measured(100, 101), [*measured(100), failed])
    assert compare_sides(old, new).changes[0].verdict == BROKEN


def test_a_regression_of_one_fifth_is_seen(tmp_path, capsys):
    """The same solution, on all workloads: 20 % slower on one of them."""
    after = all_rows(NAME)
    after[4].evaluation.performance.latency_ms *= 1.2
    sides(tmp_path, all_rows(NAME), after)
    assert script.main([*arguments(tmp_path), "--fail-slower", "5%"]) == 1
    out, err = capsys.readouterr()
    assert f"T={ROWS[4].seq_len}" in err and "+20.0 %" in err
    assert err.count("slower:") == 1
    assert "+1.0 %" in out  # the mean over 19
    assert script.main([*arguments(tmp_path), "--fail-slower", "25%"]) == 0
    assert script.main(arguments(tmp_path)) == 0


def test_what_ceased_to_pass_fails_whatever_the_limit(tmp_path, capsys):
    sides(tmp_path, all_rows(NAME), all_rows(NAME, status="COMPILE_ERROR"))
    assert script.main([*arguments(tmp_path), "--fail-slower", "50"]) == 1
    assert "passed before, fails now" in capsys.readouterr().err


def test_forms(tmp_path, capsys):
    sides(tmp_path, all_rows(NAME), all_rows(NAME, 2.0))
    script.main([*arguments(tmp_path), "--format", "json"])
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert [change["verdict"] for change in changes] == [SLOWER] * 19
    script.main([*arguments(tmp_path), "--format", "csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(line["ratio"]) for line in lines] == pytest.approx([2.0] * 19)
    script.main([*arguments(tmp_path), "--format", "markdown", "--out", str(tmp_path / "x.md")])
    assert "| +100.0 % |" in (tmp_path / "x.md").read_text("utf-8")
    assert not capsys.readouterr().out


def test_what_else_has_changed_is_told(tmp_path):
    libs = LIBS | {"driver": "580.2", "bundle": "abc"}
    old, new = sides(tmp_path, all_rows(NAME), all_rows(NAME, libs=libs)[:5])
    notes = compare_sides(old, new).notes
    assert "driver: absent before, 580.2 after." in notes
    assert "bundle: absent before, abc after." in notes
    assert "14 result(s) of before have no counterpart in after." in notes


def test_nothing_in_common_is_refused(tmp_path):
    old, new = sides(tmp_path, all_rows(NAME), all_rows(NAME, hardware=H100))
    with pytest.raises(BadInput, match=f"no solution on the same .* on NVIDIA H200; .*{H100}"):
        compare_sides(old, new)


def test_means_and_medians_are_refused(tmp_path):
    medians = all_rows(NAME, libs=LIBS | {"flashinfer_bench": "0.1.3.dev98"})
    old, new = sides(tmp_path, all_rows(NAME), medians)
    with pytest.raises(BadInput, match="timed differently"):
        compare_sides(old, new)


@pytest.mark.parametrize(
    "wrong",
    [
        ["before=a"],
        ["before=a", "after=b", "c"],
        ["a", "--fail-slower", "5%"],
        ["before=a", "after=b", "--fail-slower", "-1"],
        ["before=a", "after=b", "--fail-slower", "nan"],
        ["before=a", "after=b", "--mix"],
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(SystemExit) as status:
        script.main(wrong)
    assert status.value.code == 2
