"""Stored reports, their tables, the measuring loop, and kernels by stage."""

import json
import re

import gemm
import pytest
import report
import roofline
import stages as stages_script
from bundle.comparison.floor import Gpu
from bundle.machine import bundle_version
from bundle.paths import ROOT, BadInput
from bundle.probes import roofline as roofline_module
from bundle.probes.cases import named_cases, new_output, synthetic_case
from bundle.probes.gemm import GemmReport, GemmRow, gemm_figures, gemm_floor_us, gemm_sheets
from bundle.probes.precision import PrecisionReport, precision_sheets
from bundle.probes.profiler import Launch, ProfiledCall
from bundle.probes.reporting import Task, collect, facts, markdown, report_parser, run_report
from bundle.probes.roofline import RateRow, RooflineReport, known_rates, rates, roofline_sheets
from bundle.probes.stage_names import comparable_us, stages_of, summarize
from bundle.probes.stages import StageReport, StageRow, stage_sheets
from bundle.probes.store import Failed, load, report_path, resumed, save
from bundle.sheets import BEST
from conftest import HAS_CUDA
from report_factory import (
    H100,
    H200,
    all_reports,
    complete,
    gemm_report,
    provenance,
    roofline_report,
    stage_report,
)
from rich.console import Console

QUIET = Console(quiet=True)
cpu_only = pytest.mark.skipif(HAS_CUDA, reason="about machines without CUDA")


def texts(sheet) -> list[list[str]]:
    return [[entry.text for entry in row] for row in sheet.rows]


# Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", all_reports(), ids=lambda made: made.kind)
def test_a_report_reads_back_as_it_was_written(made, tmp_path):
    path = report_path(tmp_path, type(made), H200)
    save(made, path)
    assert path.name == f"{made.kind}-nvidia-h200.jsonl"
    assert load(type(made), path) == made


def test_not_a_number_survives_storage(tmp_path):
    row = GemmRow(
        kernel="k", case="E=1", rows_per_expert=[1], n=1, k=1, us=1, relative_error=float("nan")
    )
    path = tmp_path / "gemm.json"
    save(complete(GemmReport, [row]), path)
    assert str(load(GemmReport, path).rows[0].relative_error) == "nan"


@pytest.mark.parametrize(
    "line, spoil, wording",
    [
        (1, lambda d: d.update(n="many"), r"line 2: n: .*valid integer"),
        (2, lambda d: d.pop("kernel"), r"line 3: kernel: Field required"),
        (0, lambda d: d.update(extra=1), "line 1: extra: Extra inputs"),
        (0, lambda d: d["provenance"].pop("command"), r"line 1: provenance\.command: Field req"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_key(line, spoil, wording, tmp_path):
    path = tmp_path / "gemm-x.jsonl"
    save(gemm_report(), path)
    lines = path.read_text().splitlines()
    spoiled = json.loads(lines[line])
    spoil(spoiled)
    lines[line] = json.dumps(spoiled, separators=(",", ":"))
    path.write_text("\n".join(lines))
    with pytest.raises(BadInput, match=f"gemm-x.jsonl, {wording}"):
        load(GemmReport, path)


@pytest.mark.parametrize(
    "content, wording",
    [
        (b"", "expected a line on where it was made, got an empty file"),
        (b"\xff\xfe", "expected UTF-8 text"),
        (b"[1, 2]", "line 1: Input should be an object"),
        (b"{", "line 1: Invalid JSON"),
    ],
)
def test_what_is_no_report_is_named(content, wording, tmp_path):
    path = tmp_path / "gemm-x.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"gemm-x.jsonl.*{wording}"):
        load(GemmReport, path)


def test_a_truncated_line_is_named(tmp_path):
    path = tmp_path / "gemm-x.jsonl"
    save(gemm_report(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:20]]))
    with pytest.raises(BadInput, match="gemm-x.jsonl, line 5: Invalid JSON"):
        load(GemmReport, path)


def test_rates_come_from_the_report_of_that_gpu(tmp_path):
    save(roofline_report(H100), report_path(tmp_path, RooflineReport, H100))
    measured = rates(tmp_path, H100)
    assert (measured.bandwidth_tbs, measured.fp8_tflops) == (4.36, 1437)
    assert "measured on 2026-11-20 by scripts/roofline.py" in measured.source
    assert rates(tmp_path, H200) is None
    partial = complete(RooflineReport, [RateRow(name="read", us=985.0, bytes=4 << 30)], H200)
    save(partial, report_path(tmp_path, RooflineReport, H200))
    assert rates(tmp_path, H200) is None


def test_this_machines_rates_are_measured_once_and_stored(tmp_path, monkeypatch):
    measured = []

    def measurements(timer):
        rows = roofline_report().rows
        return [(row.name, lambda row=row: measured.append(row.name) or row) for row in rows]

    monkeypatch.setattr(roofline_module, "hardware_name", lambda: "NVIDIA New")
    monkeypatch.setattr(roofline_module, "provenance", lambda _: provenance("r", "NVIDIA New"))
    monkeypatch.setattr("bundle.probes.timer.Timer", lambda **_: None)
    monkeypatch.setattr(roofline_module, "measurements", measurements)
    assert rates(tmp_path, "NVIDIA Other") is None and not measured
    first = rates(tmp_path, "NVIDIA New")
    assert first.fp8_tflops == 1437 and len(measured) == 4
    assert rates(tmp_path, "NVIDIA New") == first and len(measured) == 4
    assert load(RooflineReport, tmp_path / "roofline-nvidia-new.jsonl").missing == 0


def test_rates_that_cannot_be_stored_are_used_nevertheless(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(roofline_module, "hardware_name", lambda: "NVIDIA New")
    monkeypatch.setattr(roofline_module, "provenance", lambda _: provenance("r", "NVIDIA New"))
    monkeypatch.setattr("bundle.probes.timer.Timer", lambda **_: None)
    rows = roofline_report().rows
    monkeypatch.setattr(
        roofline_module, "measurements", lambda _: [("", lambda row=row: row) for row in rows]
    )
    (tmp_path / "file").write_text("no folder")
    assert rates(tmp_path / "file", "NVIDIA New").fp8_tflops == 1437
    assert "cannot be stored" in capsys.readouterr().err


def test_the_committed_rates_are_there():
    assert known_rates(H200).bandwidth_tbs == 4.59


# The measuring loop ----------------------------------------------------------------------------


def measured(name: str, us: float = 2.0) -> Task:
    return Task([(name,)], lambda: [RateRow(name=name, bytes=1000, us=us)])


def raises(name: str, error: BaseException) -> Task:
    def measure():
        raise error

    return Task([(name,)], measure)


def empty() -> RooflineReport:
    return RooflineReport(provenance=provenance("roofline.py"), planned=0)


def test_a_failure_is_a_row_and_does_not_stop_the_others(tmp_path):
    path = tmp_path / "r.json"
    made = empty()
    tasks = [measured("a"), raises("b", ValueError("bad shape\nmore")), measured("c")]
    assert collect(made, path, tasks, QUIET)
    stored = load(RooflineReport, path)
    assert [row.name for row in stored.rows] == ["a", "c"]
    (failed,) = stored.failed
    assert (failed.key, failed.reason) == (("b",), "ValueError: bad shape")
    assert stored.missing == 0 and dict(facts(stored))["rows"] == "2, 1 more failed"
    assert {result.commit for result in (*stored.rows, failed)} == {bundle_version()}
    assert "b: ValueError: bad shape" in markdown(stored, [])


def test_an_interruption_keeps_what_is_finished_and_resume_does_the_rest(tmp_path):
    path = tmp_path / "r.json"
    tasks = [measured("a"), raises("b", KeyboardInterrupt()), measured("c")]
    assert not collect(empty(), path, tasks, QUIET)
    stored = load(RooflineReport, path)
    assert [row.name for row in stored.rows] == ["a"] and stored.missing == 2
    assert "1 of 3: unfinished" in dict(facts(stored))["rows"]

    again = resumed(empty(), path)
    tasks = [raises("a", AssertionError("measured twice")), measured("b"), measured("c")]
    assert collect(again, path, tasks, QUIET)
    stored = load(RooflineReport, path)
    assert [row.name for row in stored.rows] == ["a", "b", "c"] and stored.missing == 0


def test_resume_tries_failed_rows_again(tmp_path):
    path = tmp_path / "r.json"
    collect(empty(), path, [raises("a", RuntimeError("x"))], QUIET)
    again = resumed(empty(), path)
    collect(again, path, [measured("a")], QUIET)
    stored = load(RooflineReport, path)
    assert [row.name for row in stored.rows] == ["a"] and not stored.failed


def test_resume_refuses_another_environment(tmp_path):
    path = tmp_path / "r.json"
    save(roofline_report(H100), path)
    with pytest.raises(BadInput, match=f"hardware {H100} .here {H200}"):
        resumed(empty(), path)


def test_the_old_report_stays_until_there_is_something_new(tmp_path):
    path = tmp_path / "r.json"
    save(roofline_report(), path)
    before = path.read_text()
    assert not collect(empty(), path, [raises("a", KeyboardInterrupt())], QUIET)
    assert path.read_text() == before


@cpu_only
@pytest.mark.parametrize("script", [stages_script, gemm, roofline])
def test_without_a_gpu_stored_results_are_shown(script, tmp_path, capsys):
    with pytest.raises(BadInput, match="no .* report there; on a machine with a GPU"):
        script.main(["--data", str(tmp_path)])
    for made in all_reports():
        save(made, report_path(tmp_path, type(made), H200))
    capsys.readouterr()
    assert script.main(["--data", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "nothing can be measured" in shown.err
    for fact in (H200, "580.95.05", "2.13.0+cu130", "0.1.2", "2026-11-20", "python scripts/"):
        assert fact in shown.out
    assert script.main(["--data", str(tmp_path), "--show", "--format", "markdown"]) == 0
    shown = capsys.readouterr()
    assert "| --: |" in shown.out and "nothing can be measured" not in shown.err
    assert script.main(["--data", str(tmp_path), "--show", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["hardware"] == H200


def test_a_run_measures_stores_and_shows(tmp_path, capsys):
    options = report_parser("").parse_args(["--data", str(tmp_path)])
    arguments = ["--data", str(tmp_path), "--resume"]
    tasks = [measured("read"), raises("gemm", RuntimeError("no cuBLAS"))]
    status = run_report(
        RooflineReport, lambda: tasks, roofline_sheets, options, arguments, measures_on_cpu=True
    )
    assert status == 1
    (path,) = tmp_path.iterdir()
    stored = load(RooflineReport, path)
    assert stored.rows[0].us == 2.0
    assert stored.provenance.command == f"python scripts/roofline.py --data {tmp_path}"
    assert "no cuBLAS" in capsys.readouterr().out


# Stages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, expected",
    [
        (
            ["select_kernel", "permute_kernel", "gemm1_swiglu_kernel", "gemm2_weighted_kernel",
             "combine_kernel", "Memset (Device)"],
            ["routing", "routing", "GEMM1 + SwiGLU + requant", "GEMM2", "finalize", "other"],
        ),
        (
            ["kernel_cutlass_pick_solutionscommoncutedslroutingRoutePermute_object_at__ptrf32",
             "kernel_cutlass_kernel_solutionscommoncutedslmoe_gemmsMoeGemms_object_at__CopyAtom"],
            ["routing", "GEMM1 + SwiGLU + requant + GEMM2 + finalize"],
        ),
        (
            ["gather_kernel", "kernel_cutlass_kernel_solutionscommoncutedslpadded_gemmPaddedGemm",
             "swiglu_quantize_kernel",
             "kernel_cutlass_kernel_solutionscommoncutedslpadded_gemmPaddedGemmKernel_object_at"],
            ["routing", "GEMM1", "SwiGLU + requant", "GEMM2"],
        ),
        (
            ["moe_fused_gate_kernel", "void get_group_gemm_starts<float>", "cutlass::GemmUniversal",
             "silu_quant_kernel", "void get_group_gemm_starts<float>", "cutlass::GemmUniversal",
             "apply_shuffle_mul_sum_kernel"],
            ["routing", "GEMM1", "GEMM1", "SwiGLU + requant", "GEMM2", "GEMM2", "finalize"],
        ),
        (  # TensorRT-LLM quantises before GEMM1, too
            ["scale_1x128_kernel", "fp8_gemm_kernel", "doActivationKernel", "scale_1x128_kernel",
             "fp8_gemm_kernel", "finalizeMoeRoutingKernel"],
            ["other", "GEMM1", "SwiGLU + requant", "SwiGLU + requant", "GEMM2", "finalize"],
        ),
        (  # one expert after the other
            ["sm80_xmma_gemm_f32", "silu_kernel_cuda", "sm80_xmma_gemm_f32", "indexFuncLargeIndex",
             "sm80_xmma_gemm_f32"],
            ["GEMM1", "SwiGLU + requant", "GEMM2", "finalize", "GEMM1"],
        ),
    ],
)  # fmt: skip
def test_kernels_have_stages(names, expected):
    assert stages_of(names) == expected


def test_stage_times_are_medians_over_the_calls_and_nothing_is_dropped():
    calls = [
        [Launch("combine_kernel", us), Launch("mystery", 1.0), Launch("select_kernel", 2.0),
         Launch("permute_kernel", 3.0)]
        for us in (10.0, 12.0, 50.0)
    ]  # fmt: skip
    times, kernels = summarize(calls)
    assert times == {"routing": 5.0, "finalize": 12.0, "other": 1.0}
    assert [*times] == ["routing", "finalize", "other"]
    assert {kernel.name: kernel.launches for kernel in kernels} == {
        "combine_kernel": 1, "mystery": 1, "select_kernel": 1, "permute_kernel": 1,
    }  # fmt: skip


def test_a_fused_stage_compares_with_the_sum_of_what_it_replaces():
    separate = {"GEMM1": 40.0, "SwiGLU + requant": 5.0, "GEMM2": 20.0}
    assert comparable_us("GEMM1 + SwiGLU + requant", separate) == 45.0
    assert comparable_us("GEMM1", {"GEMM1 + SwiGLU + requant": 45.0}) is None
    assert comparable_us("routing", separate) is None


def test_stage_sheet_adds_up_and_judges():
    rows = [
        StageRow(solution="a", uuid="u", workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 end_to_end_us=100.0, stages={"GEMM1": 60.0, "SwiGLU + requant": 10.0}, kernels=[]),
        StageRow(solution="b", uuid="u", workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 end_to_end_us=50.0, stages={"GEMM1 + SwiGLU + requant": 35.0}, kernels=[]),
        Failed(key=("c", "u"), reason="RuntimeError: boom"),
    ]  # fmt: skip
    (sheet,) = stage_sheets(complete(StageReport, rows), baseline="a")
    assert texts(sheet) == [
        ["a", "GEMM1", "60.0", "60%", "", ""],
        ["", "SwiGLU + requant", "10.0", "10%", "", ""],
        ["", "gap", "30.0", "30%", "", ""],
        ["", "end to end", "100.0", "", "", "baseline"],
        ["b", "GEMM1 + SwiGLU + requant", "35.0", "70%", "0.500", ""],
        ["", "gap", "15.0", "30%", "", ""],
        ["", "end to end", "50.0", "", "0.500", "2.00x faster"],
    ]
    with pytest.raises(BadInput, match="--baseline: expected one of a, b; got zzz"):
        stage_sheets(complete(StageReport, rows), baseline="zzz")


def test_a_report_of_failures_only_has_no_tables():
    failed = [Failed(key=row.key, reason="x") for row in stage_report().rows]
    assert stage_sheets(complete(StageReport, failed)) == []
    assert gemm_sheets(complete(GemmReport, []), None, None) == []
    assert precision_sheets(complete(PrecisionReport, [])) == []


def test_two_workloads_of_one_length_stay_apart():
    rows = [
        StageRow(solution=solution, uuid=uuid, workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 end_to_end_us=us, stages={"GEMM1": us / 2}, kernels=[])
        for uuid, solution, us in (("u", "a", 10.0), ("v", "a", 20.0), ("v", "b", 30.0))
    ]  # fmt: skip
    report = complete(StageReport, rows)
    assert [row.end_to_end_us for row in report.rows] == [10.0, 20.0, 30.0]
    first, second = stage_sheets(report, baseline="a")
    assert texts(first)[-1][2] == "10.0" and texts(second)[-1][4] == "1.500"


class FakeTimer:
    def median_us(self, call, count_launch=True):
        call()
        return 30.0


def profile(calls, iterations):
    for call in calls:
        call()
    launches = [Launch("select_kernel", 5.0), Launch("gemm1_swiglu_kernel", 20.0)]
    return [[ProfiledCall(launches, 7.0)] * iterations for _ in calls]


def test_measuring_stages_calls_the_solution_and_keeps_both_times(monkeypatch):
    import torch
    from bundle.probes.cases import Case, Solution

    monkeypatch.setattr(stages_script, "profile", profile)
    called = []
    solution = Solution("s", lambda x, output: called.append(output), returns_output=False)
    case = Case("T=2", "u", "some_definition", 2, 0, 2.5, None)
    arguments = {"hidden_states": torch.zeros(2, 128).to(torch.float8_e4m3fn)}
    found = stages_script.measure_stages(FakeTimer(), solution, case, [2, 0], arguments)
    assert len(called) == 2 and called[0].dtype is torch.bfloat16 and called[0].isnan().all()
    assert (found.uuid, found.definition, found.pairs, found.active_experts) == (
        "u", "some_definition", 2, 1,
    )  # fmt: skip
    assert found.end_to_end_us == 30.0 and found.sum_us == 25.0 and found.gap_us == 5.0
    assert new_output(arguments).shape == (2, 128)


@pytest.mark.parametrize("seq_len, active", [(1, 1), (16, 5), (1024, 2), (64, 32)])
def test_synthetic_routing_hits_what_it_should(seq_len, active):
    loads = synthetic_case(seq_len, active).loads()
    assert sum(load > 0 for load in loads) == active
    assert sum(loads) == seq_len * min(active, 4)
    assert max(loads[:active]) - min(loads[:active]) <= 1


@pytest.mark.parametrize(
    "arguments, wording",
    [((8, 33), "expected 1 to 32 for 8 tokens, got 33"), ((1, 5), "expected 1 to 4"),
     ((0, 1), "--seq-len: expected a positive number, got 0")],
)  # fmt: skip
def test_impossible_synthetic_routing_is_refused(arguments, wording):
    with pytest.raises(BadInput, match=wording):
        synthetic_case(*arguments)


def test_named_cases_are_those_of_the_table():
    assert [case.name for case in named_cases(["901", "1"])] == ["T=1", "T=901"]
    assert sum(named_cases(["58"])[0].loads()) == 77
    with pytest.raises(BadInput, match="--workloads: expected some of .*got 3"):
        named_cases(["3"])


# Grouped GEMM ----------------------------------------------------------------------------------


def test_the_sweep_has_the_published_configurations_and_the_real_layers():
    shapes = [*gemm.shapes_of(gemm.parse_arguments([]))]
    assert len(shapes) == 81 + 2 * 19
    assert shapes[80].name == "E=8 m=512 N=7168 K=7168" and shapes[80].uuid is None
    (loads,) = (shape.rows_per_expert for shape in shapes if shape.name == "GEMM1 T=58")
    assert (len(loads), sum(loads)) == (32, 77)


def test_gemm_figures():
    row = GemmRow(kernel="k", case="E=2 m=64 N=4096 K=7168", rows_per_expert=[64, 64, 0],
                  n=4096, k=7168, us=20.0, relative_error=0.0)  # fmt: skip
    gpu = Gpu(bandwidth_tbs=4.0, fp8_tflops=1000, source="test")
    assert gemm_floor_us(row, gpu) == pytest.approx(2 * 4096 * 7168 / 4e6)
    figures = gemm_figures(row, gpu)
    assert figures["tflops"] == pytest.approx(2 * 128 * 4096 * 7168 / 20e-6 / 1e12)
    assert figures["percent"] == pytest.approx(100 * 14.68 / 20, rel=1e-3)
    moved = 2 * 4096 * 7168 + 128 * 7168 + 4 * (2 * 32 * 56 + 128 * 56) + 2 * 128 * 4096
    assert figures["gbs"] == pytest.approx(moved / 20e-6 / 1e9)
    assert "percent" not in gemm_figures(row, None)


def test_gemm_sheets_summarise_the_sweep():
    sheets = gemm_sheets(gemm_report(), "triton_v3_gemm", Gpu(4.36, 1430, "given"))
    summary, by_m, both, layers, sweep = sheets
    assert [row[1] for row in texts(summary)] == [
        "sgl_grouped_mm", "sgl_es_grouped_mm", "triton_v3_gemm",
    ]  # fmt: skip
    assert {row[2] for row in texts(summary)} == {"81"}
    assert texts(summary)[2][-3:] == ["1.00"] * 3
    assert [row[0] for row in texts(by_m) if row[0]] == ["m = 64", "m = 128", "m = 512"]
    assert len(both.rows) == 19 and len(layers.rows) == 38 * 3 and len(sweep.rows) == 81 * 3


def test_both_gemms_of_a_layer_are_added_where_both_are_there():
    rows = [
        GemmRow(kernel=kernel, case=f"{gemm} T={t}", uuid=f"{t}", rows_per_expert=[3, 0], n=n, k=k,
                us=us, relative_error=0.0)
        for kernel, t, gemm, n, k, us in (
            ("one", 7, "GEMM1", 4096, 7168, 20.0), ("two", 7, "GEMM1", 4096, 7168, 21.0),
            ("one", 7, "GEMM2", 7168, 2048, 11.0), ("two", 7, "GEMM2", 7168, 2048, 9.0),
            ("one", 58, "GEMM1", 4096, 7168, 20.0), ("two", 58, "GEMM2", 7168, 2048, 9.0),
        )
    ]  # fmt: skip
    gpu = Gpu(bandwidth_tbs=4.0, fp8_tflops=1000, source="test")
    both, _ = gemm_sheets(complete(GemmReport, rows), "one", gpu)
    floor = 4096 * 7168 / 4e6 + 7168 * 2048 / 4e6
    assert texts(both) == [["T=7", f"{floor:.1f}", "31.0", "30.0"], ["T=58", "-", "-", "-"]]
    assert [entry.style for entry in both.rows[0][2:]] == ["", BEST]
    assert [h.name for h in both.headings] == ["workload", "floor", "one", "two"]


# The page's data -------------------------------------------------------------------------------


def test_report_script_without_anything_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    page = tmp_path / "page.html"
    assert report.main(["--data", str(tmp_path / "no"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Nothing has been measured yet" in text and "scripts/bench" in text
    assert not re.search(r'(src|href)="https?:', text)


# Solutions that cannot run ---------------------------------------------------------------------


def test_a_solution_that_does_not_import_is_left_out_with_the_reason(tmp_path, capsys, monkeypatch):
    import sys

    from bundle.hardware import Device
    from bundle.probes.cases import solutions_here
    from toy_bundle import add_solution

    for module in [name for name in sys.modules if name.split(".")[0] == "solutions"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(ROOT)])
    add_solution(tmp_path, "fine_one", "def run(x, output):\n    output.copy_(x)\n")
    add_solution(tmp_path, "bad_one", "import no_such_module\n\ndef run(x, output):\n    pass\n")
    (found,) = solutions_here(Device("CPU", None), root=tmp_path)
    assert found.name == "fine_one" and not found.returns_output
    assert "bad_one cannot run here: ModuleNotFoundError" in capsys.readouterr().err
    with pytest.raises(BadInput, match="--solutions: expected some of .*; got nope"):
        solutions_here(Device("CPU", None), ["nope"], root=tmp_path)
