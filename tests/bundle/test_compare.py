"""scripts/compare.py from trace files to numbers, tables and errors."""

import csv
import io
import json
import math
import re
import stat
import subprocess
import sys
from statistics import fmean, geometric_mean
from uuid import UUID

import compare as script
import pytest
from bundle.comparison.compatibility import ComparisonError
from bundle.comparison.figures import compare
from bundle.comparison.floor import Gpu
from bundle.comparison.render import facts, sheets, terminal
from bundle.comparison.table import COMMON, MISSING
from bundle.comparison.traces import load_traces
from bundle.files import replace_section, write_whole
from bundle.paths import ROOT, BadInput
from bundle.probes.roofline import known_rates
from flashinfer_bench.data import RandomInput, ScalarInput, Workload
from rich.console import Console
from trace_factory import H100, LIBS, ROWS, all_rows, make_trace, moe_workload, write_traces

FAST, SLOW = "triton_fused_moe_v3", "torch_moe"


@pytest.fixture
def two(tmp_path):
    """The trace folder of two solutions that passed everything; FAST needs half of SLOW's time."""
    return write_traces(tmp_path, [*all_rows(SLOW, 2.0), *all_rows(FAST, 1.0)])


def compared(path, **options):
    (comparison,) = compare(load_traces([path])[0], root=ROOT, rates=known_rates, **options)
    return comparison


def run(capsys, *arguments):
    """What the script prints."""
    script.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def printed(comparison, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal(comparison, "command", width))
    return console.file.getvalue()


# Numbers ---------------------------------------------------------------------------------------


def test_rows_are_the_workloads_by_seq_len(two):
    comparison = compared(two)
    assert [row.axes["seq_len"] for row in comparison.rows] == sorted(r.seq_len for r in ROWS)
    assert comparison.rows[0].label == {"seq_len": 1, "local_expert_offset": 32}
    assert [column.label for column in comparison.columns] == [FAST, SLOW]


def test_cells(two):
    row = compared(two, baseline=SLOW).rows[0]
    fast, slow = row.cells[FAST], row.cells[SLOW]
    assert fast.latency_us == pytest.approx(101)
    assert fast.reference_us == pytest.approx(13_000)
    assert fast.speedup == pytest.approx(13_000 / 101)
    assert (fast.baseline_ratio, slow.baseline_ratio) == (pytest.approx(0.5), 1.0)
    assert (fast.winner, slow.winner) == (True, False)
    assert fast.floor_us == pytest.approx(3 * 44.04 / 4.59, rel=1e-3)
    assert fast.over_floor_us == pytest.approx(101 - fast.floor_us)
    assert fast.floor_ratio == pytest.approx(101 / fast.floor_us)
    assert fast.accuracy.matched_ratio == 0.93


def test_means_by_regime(two):
    comparison = compared(two, baseline=SLOW)
    scopes = {scope.label: scope for scope in comparison.scopes}
    assert {label: scope.workloads for label, scope in scopes.items()} == {
        "all": 19,
        "T <= 32": 6,
        "T 33-80": 10,
        "T 81-10000": 1,
        "T > 10000": 2,
    }
    score = scopes["T > 10000"].scores[FAST]
    speedups = [13_000 / (100 + seq_len) for seq_len in (11948, 14107)]
    assert score.speedup_geometric.value == pytest.approx(geometric_mean(speedups))
    assert score.speedup_arithmetic.value == pytest.approx(fmean(speedups))
    assert score.ratio_geometric.value == pytest.approx(0.5)
    assert (score.wins, scopes["all"].scores[SLOW].wins) == (2, 0)


def test_a_lone_solution_wins_nothing(tmp_path):
    comparison = compared(write_traces(tmp_path, all_rows(FAST)))
    assert comparison.scopes[0].scores[FAST].wins == 0


def test_a_win_counts_beyond_the_spread_of_the_runs(tmp_path):
    """T = 16 of one run: 234.8 against 235.7 us is a win, and says nothing."""
    near, far = ROWS[0], ROWS[1]
    traces = [make_trace(FAST, 234.8, row=near), make_trace(SLOW, 235.7, row=near)]
    traces += [make_trace(FAST, 100, row=far), make_trace(SLOW, 150, row=far)]
    score = compared(write_traces(tmp_path / "one", traces)).scopes[0].scores[FAST]
    assert (score.wins, score.clear_wins) == (2, 1)
    again = [make_trace(trace.solution, latency, row=near) for trace, latency in
             zip(traces, (234.7, 235.6), strict=False)]  # fmt: skip
    comparison = compared(write_traces(tmp_path / "two", [*traces, *again]))
    assert comparison.scopes[0].scores[FAST].clear_wins == 2
    cells = {row.uuid: row.cells[FAST] for row in comparison.rows}
    assert (cells[near.uuid].spread.runs, cells[far.uuid].spread.runs) == (2, 1)


def test_runs_of_another_commit_are_no_repetitions(tmp_path):
    old = make_trace(FAST, 100, libs=LIBS | {"bundle": "a"}, timestamp="2026-11-19T00:00:00")
    new = make_trace(FAST, 50, libs=LIBS | {"bundle": "b"})
    (row,) = compared(write_traces(tmp_path, [old, new])).rows
    assert row.cells[FAST].spread.runs == 1


def test_a_ratio_near_the_required_one_is_flagged(tmp_path):
    traces = [*all_rows(FAST, matched_ratio=0.8597), *all_rows(SLOW, matched_ratio=0.93)]
    traces.append(make_trace("low", status="INCORRECT_NUMERICAL", matched_ratio=0.8497))
    text = printed(compared(write_traces(tmp_path, traces)), 120)
    assert "0.8597 (near 0.85)" in text and "0.9300 (near" not in text
    assert "0.8497 (below 0.85)" in text


def test_times_on_a_cpu_are_said_to_mean_nothing(tmp_path):
    libs = LIBS | {"kernels": "Triton is interpreted and CuTe DSL emulated on a CPU"}
    (note, *_) = compared(write_traces(tmp_path, all_rows(FAST, libs=libs))).notes
    assert note.endswith("emulated on a CPU: their times here mean nothing, and nobody is first.")


def test_emulated_solutions_are_named_beside_native_ones(tmp_path):
    traces = [
        *all_rows(FAST, hardware="A CPU (sm_90a emulated)"),
        *all_rows(SLOW, hardware="A CPU"),
    ]
    comparison = compared(write_traces(tmp_path, traces))
    assert f"Emulated, not run on a GPU: {FAST} (sm_90a)." in comparison.notes
    assert comparison.provenance.environment["hardware"] == ["A CPU"]


def test_two_emulated_architectures_have_a_column_each(tmp_path):
    traces = [
        *all_rows(FAST, 1.0, hardware="A CPU (sm_90a emulated)"),
        *all_rows(FAST, 2.0, hardware="A CPU (sm_100a emulated)"),
        *all_rows(SLOW, 3.0, hardware="A CPU (sm_90a emulated)"),
    ]
    labels = [column.label for column in compared(write_traces(tmp_path, traces)).columns]
    assert labels == [f"{FAST} @ sm_90a emulated", f"{FAST} @ sm_100a emulated", SLOW]


def test_what_failed_or_is_missing_is_never_averaged_away(tmp_path):
    broken = all_rows("broken", 0.5)
    broken[0] = make_trace("broken", row=ROWS[0], status="RUNTIME_ERROR")
    traces = [*all_rows(SLOW, 2.0), *all_rows(FAST)[1:-1], *broken]
    comparison = compared(write_traces(tmp_path, traces), baseline=FAST)

    first, last = comparison.rows[0].cells, comparison.rows[-1].cells
    assert first["broken"].status == "RUNTIME_ERROR"
    assert first[FAST].status == last[FAST].status == MISSING
    assert first["broken"].latency_us is first["broken"].speedup is None
    assert first[SLOW].winner  # the only one that passed
    assert first[SLOW].baseline_ratio is None

    everything = comparison.scopes[0]
    assert everything.scores["broken"].speedup_geometric.value is None
    assert everything.scores["broken"].speedup_geometric.count == 18
    # SLOW passed everything, but its ratio to FAST exists on 17 workloads only.
    assert everything.scores[SLOW].speedup_geometric.value is not None
    assert everything.scores[SLOW].ratio_geometric.value is None
    common = comparison.scopes[-1]
    assert (common.label, common.workloads) == (COMMON, 17)
    assert common.scores["broken"].ratio_geometric.value == pytest.approx(0.5)
    assert comparison.records["broken"].statuses == {"PASSED": 18, "RUNTIME_ERROR": 1}

    text = printed(comparison, 100)
    for shown in ("RUNTIME_", "missing", "18/19", "17/19", "common (17/19)"):
        assert shown in text


def test_a_solution_that_never_passed_does_not_empty_the_common_set(tmp_path):
    failed = all_rows("failed", status="COMPILE_ERROR")
    traces = [*all_rows(SLOW), *all_rows(FAST)[2:], *failed]
    common = compared(write_traces(tmp_path, traces)).scopes[-1]
    assert (common.label, common.workloads, set(common.scores)) == (COMMON, 17, {SLOW, FAST})


def test_everything_failed(tmp_path, capsys):
    folder = write_traces(tmp_path, all_rows(FAST, status="TIMEOUT"))
    assert "19 TIMEOUT" in run(capsys, folder)


def test_nan_is_the_worst_error(tmp_path):
    traces = all_rows(FAST)
    traces[3] = make_trace(
        FAST, row=ROWS[3], status="INCORRECT_NUMERICAL", max_error=math.nan, matched_ratio=None
    )
    traces[4] = make_trace(FAST, row=ROWS[4], matched_ratio=0.9)
    record = compared(write_traces(tmp_path, traces)).records[FAST]
    assert math.isnan(record.max_absolute_error.value)
    assert (record.matched_ratio_min.value, record.matched_ratio_min.count) == (0.9, 18)


def test_an_untimed_reference_gives_no_speedup(tmp_path):
    trace = make_trace(FAST)
    trace.evaluation.performance.reference_latency_ms = 0.0
    comparison = compared(write_traces(tmp_path, [trace]))
    assert comparison.rows[0].cells[FAST].speedup is None
    assert comparison.scopes[0].scores[FAST].speedup_geometric.value is None
    assert "reference" not in {h.name for sheet in sheets(comparison, 100) for h in sheet.headings}


def test_the_latest_of_duplicates_counts(tmp_path):
    traces = [
        make_trace(FAST, 50, timestamp="2026-11-20T14:00:00"),
        make_trace(FAST, 10, timestamp="2026-11-20T12:00:00"),
        make_trace(FAST, 70, timestamp="2026-11-20T13:00:00"),
    ]
    comparison = compared(write_traces(tmp_path, traces))
    assert comparison.rows[0].cells[FAST].latency_us == pytest.approx(50)
    assert (comparison.provenance.traces, comparison.provenance.superseded) == (1, 2)
    assert "2 more superseded" in printed(comparison, 100)


# What is refused -------------------------------------------------------------------------------


def test_two_gpus_are_refused_with_files(two, tmp_path):
    other = write_traces(tmp_path / "h100", all_rows(SLOW, hardware=H100))
    records = load_traces([two, other])[0]
    with pytest.raises(ComparisonError) as error:
        compare(records, root=ROOT)
    for part in ("hardware", "NVIDIA H200: 38 trace(s)", f"{H100}: 19 trace(s)", str(other)):
        assert part in str(error.value)
    assert "triton" not in str(error.value)  # the same on both


def test_mix_gives_each_gpu_its_column(two, tmp_path):
    other = write_traces(tmp_path / "h100", all_rows(SLOW, 3.0, hardware=H100))
    records = load_traces([two, other])[0]
    gpus = {"NVIDIA H200": Gpu(4.0, 1000, "given")}
    (comparison,) = compare(records, root=ROOT, mix=True, rates=gpus.get, baseline=FAST)
    labels = [f"{SLOW} @ {H100}", f"{SLOW} @ NVIDIA H200", f"{FAST} @ NVIDIA H200"]
    assert [column.label for column in comparison.columns] == labels[::-1]
    cells = comparison.rows[0].cells
    assert cells[labels[0]].latency_us == pytest.approx(303)
    assert cells[labels[0]].floor_us is None  # no figures for this GPU
    assert cells[labels[1]].floor_us is not None
    with pytest.raises(ComparisonError, match="matches several columns"):
        compare(records, root=ROOT, mix=True, baseline=SLOW)
    with pytest.raises(BadInput, match="--bandwidth-tbs.*expected traces of one GPU, got 2"):
        script.given_rates(1, 1, records)


@pytest.mark.parametrize(
    "libs",
    [
        {"torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0"},
        {"torch": "2.13.0+cu130", "cuda": "13.0"},  # no Triton there
    ],
)
def test_library_versions_are_refused(tmp_path, libs):
    traces = [*all_rows(SLOW), *all_rows(FAST, libs=libs)]
    folder = write_traces(tmp_path, traces)
    with pytest.raises(ComparisonError, match=r"(torch|triton):\n"):
        compared(folder)
    assert len(compared(folder, mix=True).columns) == 2


def test_drivers(tmp_path):
    """Traces that name none, as the harness's own, go with any; two drivers are refused."""
    known = all_rows(FAST, libs=LIBS | {"driver": "580.1"})
    comparison = compared(write_traces(tmp_path / "one", [*all_rows(SLOW), *known]))
    assert len(comparison.columns) == 2
    assert dict(facts(comparison, "command"))["hardware"] == "NVIDIA H200, driver 580.1"
    unknown = all_rows(SLOW, libs=LIBS | {"driver": "unknown"})
    assert len(compared(write_traces(tmp_path / "unknown", [*unknown, *known])).columns) == 2
    other = all_rows(SLOW, libs=LIBS | {"driver": "570.2"})
    with pytest.raises(ComparisonError, match="driver:\n"):
        compared(write_traces(tmp_path / "two", [*other, *known]))


def test_harness_layouts_are_refused(tmp_path):
    old = write_traces(tmp_path / "old", all_rows(SLOW))
    new = write_traces(tmp_path / "new", all_rows(FAST), author="someone")
    with pytest.raises(ComparisonError, match="flashinfer_bench:"):
        compare(load_traces([old, new])[0], root=ROOT)


def test_official_workloads_and_replicas_are_refused(tmp_path):
    official = [
        make_trace(FAST, row=row, workload=moe_workload(row, row.official_uuid)) for row in ROWS
    ]
    # Whether or not a solution that was measured on both connects them.
    one = write_traces(tmp_path / "one", [*all_rows(FAST), *official])
    with pytest.raises(ComparisonError, match="19 official workloads"):
        compared(one)
    folder = write_traces(tmp_path, [*all_rows(SLOW), *official])
    with pytest.raises(ComparisonError) as error:
        compared(folder)
    assert "19 official workloads" in str(error.value)
    assert "19 replicas of the official workloads" in str(error.value)
    comparison = compared(folder, mix=True)
    assert len(comparison.rows) == 38
    assert comparison.rows[0].label.keys() == {"seq_len", "local_expert_offset", "uuid"}


def test_parts_of_one_set_are_not_two_sets(tmp_path):
    # Two interrupted runs that happen to share no workload, and one with a workload of one's own.
    own = moe_workload(ROWS[0], str(UUID(int=1)))
    traces = [make_trace(SLOW, row=ROWS[0]), make_trace(FAST, row=ROWS[5])]
    comparison = compared(write_traces(tmp_path, [*traces, make_trace(FAST, workload=own)]))
    assert len(comparison.rows) == 3
    assert any("No floor for 1 workload" in note for note in comparison.notes)


def test_unknown_names_are_refused_with_those_there_are(two):
    with pytest.raises(ComparisonError, match=f"baseline nobody is not .*: {FAST}, {SLOW}"):
        compared(two, baseline="nobody")
    with pytest.raises(ComparisonError, match=f"solution nobody; there are: {SLOW}, {FAST}"):
        compared(two, solutions=[FAST, "nobody"])
    with pytest.raises(ComparisonError, match="definition gemm; there are: moe_fp8"):
        compared(two, definition="gemm")


def test_solutions_choose_and_order_the_columns(two):
    assert [c.label for c in compared(two, solutions=[FAST, SLOW]).columns] == [FAST, SLOW]
    with pytest.raises(ComparisonError, match=f"baseline {SLOW} is not among the solutions"):
        compared(two, solutions=[FAST], baseline=SLOW)


# Roofline --------------------------------------------------------------------------------------


def test_an_unknown_gpu_has_no_floor_and_says_so(tmp_path, capsys):
    folder = write_traces(tmp_path, all_rows(FAST, hardware="NVIDIA Something"))
    text = run(capsys, folder)
    assert "NVIDIA Something are not known here" in " ".join(text.split())
    assert "floor" not in text.split("Workloads")[1]
    text = run(capsys, folder, "--bandwidth-tbs", 2, "--fp8-tflops", 1000)
    assert "2 TB/s, 1000 TFLOP/s" in text
    assert f"{3 * 44.04 / 2:.1f}" in text


# Other definitions -----------------------------------------------------------------------------


@pytest.fixture
def gemm(tmp_path):
    def trace(solution, latency, m, alpha, uuid):
        workload = Workload(
            axes={"k": 64, "m": m},
            inputs={"a": RandomInput(), "alpha": ScalarInput(value=alpha)},
            uuid=uuid,
        )
        details = {"workload": workload, "definition": "gemm_toy", "matched_ratio": None}
        return make_trace(solution, latency, **details)

    traces = [
        trace(solution, latency, m, alpha, str(UUID(int=m * 10 + int(alpha))))
        for solution, latency in (("cublas", 7), ("mine", 9))
        for m, alpha in ((512, 1.0), (16, 1.0), (16, 2.0))
    ]
    return write_traces(tmp_path, traces)


def test_any_definition_is_compared(gemm, capsys):
    comparison = compared(gemm, baseline="cublas")
    assert [row.label for row in comparison.rows] == [
        {"k": 64, "m": 16, "alpha": 1.0},
        {"k": 64, "m": 16, "alpha": 2.0},
        {"k": 64, "m": 512, "alpha": 1.0},
    ]
    assert [scope.label for scope in comparison.scopes] == ["all"]
    assert comparison.scopes[0].scores["mine"].ratio_geometric.value == pytest.approx(9 / 7)
    text = run(capsys, gemm)
    assert "floor" not in text and "gemm_toy" in text


def test_definitions_get_a_table_each(gemm, two, capsys):
    out = run(capsys, gemm, two, "--format", "json")
    definitions = [each["definition"] for each in json.loads(out)["comparisons"]]
    assert definitions[0] == "gemm_toy" and len(definitions) == 2
    only = json.loads(run(capsys, gemm, two, "--format", "json", "--definition", "gemm_toy"))
    assert [each["definition"] for each in only["comparisons"]] == ["gemm_toy"]


def test_rows_alike_are_told_apart_by_uuid(tmp_path):
    workloads = [
        Workload(axes={"m": 1}, inputs={}, uuid=str(UUID(int=i << 96))) for i in range(1, 3)
    ]
    traces = [make_trace("s", workload=workload, definition="gemm_toy") for workload in workloads]
    rows = compared(write_traces(tmp_path, traces)).rows
    assert [row.label["uuid"] for row in rows] == ["00000001", "00000002"]


# Output ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("solutions", [1, 2, 7])
def test_terminal_fits_its_width_and_loses_nothing(tmp_path, width, solutions):
    traces = [
        trace for i in range(solutions) for trace in all_rows(f"cutedsl_moe_fp8_v{i}", 1.0 + i)
    ]
    traces[0] = make_trace("cutedsl_moe_fp8_v0", row=ROWS[0], status="INCORRECT_NUMERICAL")
    comparison = compared(write_traces(tmp_path, traces))
    text = printed(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in comparison.rows:
        for cell in row.cells.values():
            if cell.latency_us:
                assert f"{cell.latency_us:,.1f}" in text
                assert f"{cell.over_floor_us:,.1f}" in text
                assert f"{cell.speedup:,.1f}" in text


def test_terminal_marks_winners_and_names_its_source(two, capsys):
    text = run(capsys, two, "--baseline", SLOW)
    for fact in ("NVIDIA H200", "torch 2.13.0+cu130", "triton 3.6.0", "2026-11-20 13:00", "38"):
        assert fact in text
    assert f"--baseline {SLOW}" in " ".join(text.split())
    assert "101.0*" in text and "202.0*" not in text


def test_csv_reads_back(two, capsys):
    lines = list(csv.DictReader(io.StringIO(run(capsys, two, "--format", "csv"))))
    assert len(lines) == 38
    line = next(line for line in lines if line["solution"] == FAST)
    assert (line["workload"], line["status"]) == ("seq_len=1 local_expert_offset=32", "PASSED")
    assert (line["winner"], line["pairs"], line["regime"]) == ("True", "3", "T <= 32")
    assert float(line["latency_us"]) == pytest.approx(101)
    assert float(line["matched_ratio"]) == 0.93
    assert "hardware=NVIDIA H200" in line["environment"]


def test_csv_and_json_keep_missing_cells_and_nan(tmp_path, capsys):
    wrong = make_trace("wrong", status="INCORRECT_NUMERICAL", max_error=math.nan)
    folder = write_traces(tmp_path, [*all_rows(SLOW), wrong])
    lines = list(csv.DictReader(io.StringIO(run(capsys, folder, "--format", "csv"))))
    lines = [line for line in lines if line["solution"] == "wrong"]
    assert [line["status"] for line in lines] == ["INCORRECT_NUMERICAL"] + [MISSING] * 18
    assert math.isnan(float(lines[0]["max_absolute_error"]))
    assert lines[1]["latency_us"] == lines[1]["max_absolute_error"] == ""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    out = run(capsys, folder, "--format", "json")
    (comparison,) = json.loads(out, parse_constant=refuse)["comparisons"]
    assert comparison["rows"][0]["cells"]["wrong"]["accuracy"]["max_absolute_error"] == "NaN"
    assert comparison["rows"][1]["cells"]["wrong"]["status"] == MISSING
    assert comparison["scopes"][0]["scores"]["wrong"]["speedup_geometric"] == {
        "value": None,
        "count": 0,
        "total": 19,
    }


def markdown_tables(text):
    """Every Markdown table of `text` as lists of cells, checked to be rectangular."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\) ?\| ?", line.strip())[1:-1] for line in block.splitlines()]
        assert len({len(line) for line in lines}) == 1, block
        tables.append(lines)
    return tables


def test_markdown(two, capsys):
    text = run(capsys, two, "--format", "markdown", "--baseline", SLOW)
    assert "- hardware: NVIDIA H200" in text
    workloads = markdown_tables(text)[0]
    assert len(workloads) == 2 + 19
    assert "**101.0**" in workloads[2] and "202.0" in workloads[2]
    means, correctness = markdown_tables(text)[-2:]
    assert "**0.500**" in means[3]
    assert correctness[2][:2] == [FAST, "19 PASSED"]
    assert "<=" not in text.replace("&lt;=", "")


def test_out_writes_a_file_and_prints_nothing(two, tmp_path, capsys):
    for form in ("terminal", "markdown", "csv", "json"):
        out = tmp_path / form
        assert run(capsys, two, "--format", form, "--out", out) == ""
        text = out.read_text("utf-8")
        assert FAST in text and "\x1b" not in text


def test_readme_section_is_rewritten_in_place(two, tmp_path, capsys):
    readme = tmp_path / "README.md"
    text = "# Über\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n"
    readme.write_text(text, "utf-8")
    readme.chmod(0o640)
    run(capsys, two, "--readme", readme)
    new = readme.read_text("utf-8")
    assert new.startswith("# Über\n<!-- results:begin -->\n### moe_fp8")
    assert new.endswith("\n<!-- results:end -->\nafter\n")
    assert "\nold\n" not in new and FAST in new
    assert stat.S_IMODE(readme.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["README.md"]
    run(capsys, two, "--readme", readme)
    assert readme.read_text("utf-8") == new


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- results:begin -->",
        "<!-- results:end -->\n<!-- results:begin -->",
        "<!-- results:begin --><!-- results:end --><!-- results:end -->",
    ],
)
def test_readme_without_its_markers_stays_as_it_is(two, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(BadInput, match="README.md: expected <!-- results:begin --> once"):
        script.main([str(two), "--readme", str(readme)])
    assert readme.read_text() == text


def test_replace_section_takes_other_names():
    text = "<!-- gemm:begin --><!-- gemm:end -->"
    assert replace_section(text, "new\n", "gemm") == "<!-- gemm:begin -->\nnew\n<!-- gemm:end -->"


def test_write_whole_keeps_a_link_and_the_old_file_on_failure(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with pytest.raises(UnicodeEncodeError):
        write_whole(link, "\ud800")
    assert target.read_text() == "old"
    write_whole(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}


def test_skipped_lines_are_told(two, capsys):
    (file,) = two.rglob("*.jsonl")
    with file.open("a") as out:
        out.write('{"definition": "moe')
    with pytest.raises(BadInput, match=r"\.jsonl:39: Invalid JSON"):
        script.main([str(two)])
    script.main([str(two), "--skip-bad-lines"])
    captured = capsys.readouterr()
    assert "skipped: " in captured.err and ".jsonl:39" in captured.err
    assert "1 unusable line(s) skipped" in captured.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bandwidth-tbs", "4"],
        ["--bandwidth-tbs", "4", "--fp8-tflops", "-1"],
        ["--readme", "README.md", "--out", "x"],
        ["--readme", "README.md", "--format", "csv"],
    ],
)
def test_options_that_do_not_go_together(arguments):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2


def test_the_command_ends_in_a_message_not_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'nowhere'}: no such file or folder\n"


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json"])
def test_a_thousand_workloads_are_all_shown(tmp_path, capsys, form):
    path = tmp_path / "large.jsonl"
    with path.open("w") as out:
        for number in range(1000):
            workload = moe_workload(ROWS[number % 19], str(UUID(int=number)))
            for solution, latency in (("a", 90), ("b", 100), ("c", 110), ("d", 120)):
                trace = make_trace(solution, latency + number, workload=workload)
                out.write(trace.model_dump_json() + "\n")
    text = run(capsys, path, "--format", form, "--baseline", "a")
    assert len(text.splitlines()) > 1000
