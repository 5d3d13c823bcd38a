"""Stored reports, their tables, the measuring loop, and kernels by stage."""

import json
import re

import gemm
import pytest
import report
import roofline
import stages as stages_script
from bundle.comparison.floor import GPUS, Gpu
from bundle.paths import ROOT, BadInput
from bundle.probes.cases import named_cases, new_output, synthetic_case
from bundle.probes.profiler import Launch, ProfiledCall
from bundle.probes.report_tables import (
    gemm_figures,
    gemm_floor_us,
    gemm_sheets,
    precision_sheets,
    roofline_sheets,
    stage_sheets,
)
from bundle.probes.reporting import Task, collect, facts, markdown, report_parser, run_report
from bundle.probes.reports import (
    GemmReport,
    GemmRow,
    RateRow,
    RooflineReport,
    StageReport,
    StageRow,
    load,
    rates,
    report_path,
    resumed,
    save,
)
from bundle.probes.stages import comparable_us, stages_of, summarize
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
    assert path.name == f"{made.kind}-nvidia-h200.json"
    assert load(type(made), path) == made


def test_not_a_number_survives_storage(tmp_path):
    row = GemmRow(
        kernel="k", case="E=1", rows_per_expert=[1], n=1, k=1, us=1, relative_error=float("nan")
    )
    path = tmp_path / "gemm.json"
    save(complete(GemmReport, [row]), path)
    assert str(load(GemmReport, path).rows[0].relative_error) == "nan"


@pytest.mark.parametrize(
    "spoil, wording",
    [
        (lambda d: d["rows"][0].update(n="many"), r"rows\.0\.n: .*valid integer"),
        (lambda d: d["rows"][1].pop("kernel"), r"rows\.1\.kernel: Field required"),
        (lambda d: d.update(extra=1), "extra: Extra inputs"),
        (lambda d: d["provenance"].pop("command"), r"provenance\.command: Field required"),
    ],
)
def test_a_malformed_file_is_named_with_the_key(spoil, wording, tmp_path):
    path = tmp_path / "gemm-x.json"
    save(gemm_report(), path)
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=f"gemm-x.json: {wording}"):
        load(GemmReport, path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "gemm-x.json"
    save(gemm_report(), path)
    path.write_text(path.read_text()[:500])
    with pytest.raises(BadInput, match="gemm-x.json: gemm: Invalid JSON"):
        load(GemmReport, path)


def test_rates_come_from_the_report_or_the_known_figures(tmp_path):
    assert rates(tmp_path, H200) == GPUS[H200]
    assert rates(tmp_path, H100) is None
    save(roofline_report(H100), report_path(tmp_path, RooflineReport, H100))
    measured = rates(tmp_path, H100)
    assert (measured.bandwidth_tbs, measured.fp8_tflops) == (4.36, 1437)
    partial = complete(RooflineReport, [RateRow(name="read", us=985.0, bytes=4 << 30)], H200)
    save(partial, report_path(tmp_path, RooflineReport, H200))
    assert rates(tmp_path, H200) == GPUS[H200]


# The measuring loop ----------------------------------------------------------------------------


def rate(name: str) -> RateRow:
    return RateRow(name=name, bytes=1000)


def measured(name: str, us: float = 2.0) -> Task:
    return Task([rate(name)], lambda: [rate(name).model_copy(update={"us": us})])


def raises(name: str, error: BaseException) -> Task:
    def measure():
        raise error

    return Task([rate(name)], measure)


def empty() -> RooflineReport:
    return RooflineReport(provenance=provenance("roofline.py"), planned=0)


def test_a_failure_is_a_row_and_does_not_stop_the_others(tmp_path):
    path = tmp_path / "r.json"
    made = empty()
    tasks = [measured("a"), raises("b", ValueError("bad shape\nmore")), measured("c")]
    assert collect(made, path, tasks, QUIET)
    stored = load(RooflineReport, path)
    assert [(row.name, row.error) for row in stored.rows] == [
        ("a", None), ("b", "ValueError: bad shape"), ("c", None),
    ]  # fmt: skip
    assert dict(facts(stored))["rows"] == "3, 1 failed"
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
    assert [row.error for row in load(RooflineReport, path).rows] == [None]


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
        script.main(["--out", str(tmp_path)])
    for made in all_reports():
        save(made, report_path(tmp_path, type(made), H200))
    capsys.readouterr()
    assert script.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "nothing can be measured" in shown.err
    for fact in (H200, "580.95.05", "2.13.0+cu130", "0.1.2", "2026-11-20", "python scripts/"):
        assert fact in shown.out
    assert script.main(["--out", str(tmp_path), "--show", "--format", "markdown"]) == 0
    shown = capsys.readouterr()
    assert "| --: |" in shown.out and "nothing can be measured" not in shown.err
    assert script.main(["--out", str(tmp_path), "--show", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["hardware"] == H200


def test_a_run_measures_stores_and_shows(tmp_path, capsys):
    options = report_parser("").parse_args(["--out", str(tmp_path)])
    arguments = ["--out", str(tmp_path), "--resume"]
    tasks = [measured("read"), raises("gemm", RuntimeError("no cuBLAS"))]
    status = run_report(
        RooflineReport, lambda: tasks, roofline_sheets, options, arguments, measures_on_cpu=True
    )
    assert status == 1
    (path,) = tmp_path.iterdir()
    stored = load(RooflineReport, path)
    assert stored.rows[0].us == 2.0
    assert stored.provenance.command == f"python scripts/roofline.py --out {tmp_path}"
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
        StageRow(solution="a", workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 end_to_end_us=100.0, stages={"GEMM1": 60.0, "SwiGLU + requant": 10.0}),
        StageRow(solution="b", workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 end_to_end_us=50.0, stages={"GEMM1 + SwiGLU + requant": 35.0}),
        StageRow(solution="c", workload="T=1", seq_len=1, active_experts=2, pairs=3,
                 error="RuntimeError: boom"),
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
    rows = [row.model_copy(update={"error": "x"}) for row in stage_report().rows]
    assert stage_sheets(complete(StageReport, rows)) == []
    assert gemm_sheets(complete(GemmReport, []), None, None) == []
    assert precision_sheets(complete(type(all_reports()[2]), [])) == []


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
    from bundle.probes.cases import Solution

    monkeypatch.setattr(stages_script, "profile", profile)
    called = []
    solution = Solution("s", lambda x, output: called.append(output), returns_output=False)
    row = StageRow(solution="s", workload="T=2", seq_len=2, active_experts=1, pairs=2)
    arguments = {"hidden_states": torch.zeros(2, 128).to(torch.float8_e4m3fn)}
    found = stages_script.measure_stages(FakeTimer(), solution, arguments, row)
    assert len(called) == 2 and called[0].dtype is torch.bfloat16 and called[0].isnan().all()
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
    assert [case.name for case in named_cases([901, 1])] == ["T=1", "T=901"]
    assert sum(named_cases([58])[0].loads()) == 77
    with pytest.raises(BadInput, match="--workloads: expected some of .*got .3."):
        named_cases([3])


# Grouped GEMM ----------------------------------------------------------------------------------


def test_the_sweep_has_the_published_configurations_and_the_real_layers():
    cases = [*gemm.problems(gemm.parse_arguments([]))]
    assert len(cases) == 81 + 2 * 19
    assert cases[80][0] == "E=8 m=512 N=7168 K=7168"
    loads = {name: rows for name, rows, *_ in cases}["GEMM1 T=58"]
    assert (len(loads), sum(loads)) == (32, 77)


def test_gemm_figures():
    row = GemmRow(kernel="k", case="E=2 m=64 N=4096 K=7168", rows_per_expert=[64, 64, 0],
                  n=4096, k=7168, us=20.0)  # fmt: skip
    gpu = Gpu(bandwidth_tbs=4.0, fp8_tflops=1000, source="test")
    assert gemm_floor_us(row, gpu) == pytest.approx(2 * 4096 * 7168 / 4e6)
    figures = gemm_figures(row, gpu)
    assert figures["tflops"] == pytest.approx(2 * 128 * 4096 * 7168 / 20e-6 / 1e12)
    assert figures["percent"] == pytest.approx(100 * 14.68 / 20, rel=1e-3)
    moved = 2 * 4096 * 7168 + 128 * 7168 + 4 * (2 * 32 * 56 + 128 * 56) + 2 * 128 * 4096
    assert figures["gbs"] == pytest.approx(moved / 20e-6 / 1e9)
    assert "percent" not in gemm_figures(row, None)


def test_gemm_sheets_summarise_the_sweep():
    sheets = gemm_sheets(gemm_report(), "triton_v3_gemm", GPUS[H200])
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
        GemmRow(kernel=kernel, case=f"{gemm} T={t}", rows_per_expert=[3, 0], n=n, k=k, us=us)
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

    from bundle.probes.cases import solutions_here
    from bundle.runs.requirements import Device
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
