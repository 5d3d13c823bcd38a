"""Whole-layer times, on a device that computes nothing and a layer small enough for the CPU."""

from functools import partial

import layer
import pytest
import torch
from bundle.comparison.floor import Gpu
from bundle.dataset.workload_table import DEFINITION
from bundle.paths import ROOT, BadInput
from bundle.probes import layer_probe as probe_module
from bundle.probes import reporting
from bundle.probes.cases import ROUTINGS, Case, Solution, routed_case
from bundle.probes.layer import (
    LayerReport,
    LayerRow,
    by_workload,
    layer_sheets,
    ratio_to_best_other,
)
from bundle.probes.layer_probe import LEAST_COLD, LayerProbe, Measurement
from bundle.probes.profiler import ProfiledCall
from bundle.probes.roofline import RooflineReport
from bundle.probes.store import Failed, load, report_path, save
from bundle.probes.timer import Timer
from fake_device import FakeDevice
from report_factory import H200, complete, provenance, roofline_report
from toy_reference import toy_definition, toy_inputs

NAMES = ("good", "waits", "wrong", "lazy", "raises")


class Maker:
    definition = toy_definition(ROOT)

    def of(self, case: Case) -> dict:
        return toy_inputs(case.seq_len)


@pytest.fixture(scope="module")
def device():
    return FakeDevice()


@pytest.fixture(scope="module")
def rows(device):
    """The results of one case by solution, with solutions of all kinds."""

    def profile(calls, iterations):
        for call in calls:
            call()
        return [[ProfiledCall([], 42.0)] * iterations for _ in calls]

    solutions = []
    probe = LayerProbe(Timer(device), Maker(), solutions, row_us=50_000)

    right = probe.oracle(*toy_inputs(40).values())

    def solution(name: str):
        def run(*arguments) -> torch.Tensor:
            device.host += 100
            device.work(300)
            if name == "waits":
                device.wait()
                device.work(300)
            if name == "raises":
                raise RuntimeError("boom\nand a long story")
            result = right.clone()
            if name == "wrong":
                result *= 1.2
            if name == "lazy":
                result[3] = float("nan")
            return result

        return Solution(name, run, returns_output=True)

    solutions += map(solution, NAMES)
    case = Case("T=40", "some-uuid", Maker.definition.name, 40, 8, 2.5, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_module, "profile", profile)
        return {result.key[0]: result for result in probe.measure(case, "workload")}


def test_a_solution_is_checked_and_timed_in_every_way(rows, device):
    row = rows["good"]
    assert row.key == ("good", "some-uuid") and row.definition == "toy_moe"
    assert row.relative_error == 0.0
    assert row.cold_us == 300 and row.spread_us == 0 and row.hidden
    assert row.sustained_us == pytest.approx(300, abs=10)
    assert row.graph_us == 30 and row.not_captured is None
    assert row.return_us == 100 + device.launch_us
    assert row.first_launch_us == 42.0
    assert row.pairs >= row.largest_load > 0 and 0 < row.active_experts <= 8


def test_a_solution_that_waits_has_no_graph_and_says_so(rows):
    row = rows["waits"]
    assert not row.hidden and row.cold_us > 600
    assert row.graph_us is None and row.not_captured == "a waiting call cannot be captured"


@pytest.mark.parametrize(
    "name, wording",
    [
        ("wrong", "output: relative error 0.2, expected 0.1 at most"),
        ("lazy", "output: expected numbers, got NaN in 1 of 40 rows"),
        ("raises", "RuntimeError: boom"),
    ],
)
def test_a_wrong_result_is_a_failure_and_has_no_time(rows, name, wording):
    assert isinstance(rows[name], Failed) and wording in rows[name].reason


def test_without_a_profiler_the_other_times_are_there(capsys, monkeypatch):
    def profile(calls, iterations):
        raise ValueError("may this process use CUPTI?")

    monkeypatch.setattr(probe_module, "profile", profile)
    device = FakeDevice()
    probe = LayerProbe(Timer(device), Maker(), [], row_us=50_000)
    right = probe.oracle(*toy_inputs(3).values())

    def run(*arguments):
        device.work(300)
        return right

    probe.solutions = [Solution("only", run, returns_output=True)]
    (row,) = probe.measure(Case("T=3", "u", "toy_moe", 3, 8, 2.5, None), "workload")
    assert row.cold_us == 300 and row.first_launch_us is None
    assert "may this process use CUPTI?" in capsys.readouterr().err


def test_every_solution_ran_beside_the_failing_ones(rows):
    assert [name for name in NAMES if isinstance(rows[name], LayerRow)] == ["good", "waits"]


def report_of(*times: tuple[str, str, float | None]) -> LayerReport:
    """Workload, solution and cold time; None for one that failed."""
    results = []
    for workload, solution, us in times:
        if us is None:
            results.append(Failed(key=(solution, workload), reason="RuntimeError: boom"))
            continue
        row = LayerRow(
            definition=DEFINITION, solution=solution, uuid=workload, workload=workload,
            routing="workload", seq_len=1, active_experts=2, pairs=8, largest_load=4,
            relative_error=0.02, cold_us=us, spread_us=1, hidden=solution != "b", sustained_us=us,
            return_us=9,
        )  # fmt: skip
        results.append(row)
    return complete(LayerReport, results)


def test_sheets_show_times_the_floor_and_ratios_to_the_best_other():
    report = report_of(
        ("T=1", "a", 50.0), ("T=1", "b", 100.0), ("T=7", "a", 80.0), ("T=7", "b", None)
    )
    summary, times, ratios, *_ = layer_sheets(report, Gpu(4.0, 1000.0, "given"))
    assert [[entry.text for entry in line] for line in summary.rows] == [
        ["workload", "a", "1 of 1", "0.500", "0.500", "0.500", "T=1"],
        ["workload", "b", "0 of 1", "2.000", "2.000", "2.000", "T=1"],
    ]
    texts = [[entry.text for entry in line] for line in times.rows]
    floor = f"{2 * 3 * 2048 * 7168 / 4e6:,.1f}"
    assert texts == [
        ["T=1", "2", "8", floor, "50.0", "100.0+"],
        ["T=7", "2", "8", floor, "80.0", "failed"],
    ]
    assert [[e.text for e in line] for line in ratios.rows] == [
        ["T=1", "0.500", "2.000"],
        ["T=7", "-", "-"],
    ]


def test_ratios_are_summed_up_by_routing():
    report = report_of(*((f"T={t}", "a", 10.0 * t) for t in (1, 2, 3)),
                       *((f"T={t}", "b", 20.0) for t in (1, 2, 3)))  # fmt: skip
    for row in report.rows:
        row.seq_len = int(row.workload[2:])
        row.routing = "uniform" if row.seq_len < 3 else "all-local"
    summary = layer_sheets(report, None)[0]
    assert [[entry.text for entry in line] for line in summary.rows] == [
        ["uniform", "a", "1 of 2", "0.500", "0.750", "1.000", "T=2"],
        ["uniform", "b", "0 of 2", "1.000", "1.500", "2.000", "T=1"],
        ["all-local", "a", "0 of 1", "1.500", "1.500", "1.500", "T=3"],
        ["all-local", "b", "1 of 1", "0.667", "0.667", "0.667", "T=3"],
    ]
    assert summary.breaks == {2}


def test_close_solutions_get_enough_rounds_whatever_the_budget():
    """And one that is much slower only one."""
    device = FakeDevice()
    probe = LayerProbe(Timer(device), Maker(), [], row_us=1)
    works = {"fast": 300, "close": 500, "slow": 5000}
    entries = [
        Measurement(Solution(name, None, False), partial(device.work, us, name), us)
        for name, us in works.items()
    ]
    probe.cold(entries)
    counts = {name: device.log.count(name) for name in works}
    # up to two calls tell how long the host takes
    assert counts == {"fast": 2 + LEAST_COLD, "close": 2 + LEAST_COLD, "slow": 1 + 1}
    assert entries[0].times["cold_us"] == 300


def test_a_report_of_failures_only_has_no_tables():
    assert layer_sheets(report_of(("T=1", "a", None)), None) == []


def test_the_ratio_needs_another_solution():
    (workload,) = by_workload(report_of(("T=1", "a", 50.0)))
    assert ratio_to_best_other("a", workload) is None


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("seq_len", [1, 64])
def test_routings_do_what_their_names_say(routing, seq_len):
    case = routed_case(routing, seq_len)
    loads = case.loads()
    assert sum(loads) > 0
    assert case.seq_len == seq_len and case.uuid != routed_case(routing, seq_len + 1).uuid
    if routing == "all-local":
        assert sum(loads) == 8 * seq_len
    if routing == "few-experts":
        assert loads == [seq_len] * 4 + [0] * 28
    if seq_len == 64 and routing == "uniform":
        assert 1 / 16 < sum(loads) / (8 * seq_len) < 1 / 4 and max(loads) < 12
    if seq_len == 64 and routing == "skewed":
        assert max(loads) > 4 * sum(loads) / 32


@pytest.mark.parametrize(
    "arguments, wording",
    [
        (["--routing", "uniform"], "--routing and --seq-len only work together"),
        (["--seq-len", "1,x", "--routing", "uniform"], "expected numbers, got '1,x'"),
        (["--routing", "odd", "--seq-len", "1"], "invalid choice: 'odd'"),
        (["--routing", "skewed", "--seq-len", "1", "--workloads", "58"], "--workloads does not go"),
        (["--budget", "0"], "--budget: expected a positive number, got 0.0"),
    ],
)
def test_bad_options_are_refused(arguments, wording, capsys):
    with pytest.raises(SystemExit, match="2"):
        layer.parse_arguments(arguments)
    assert wording in capsys.readouterr().err


@pytest.mark.parametrize("seq_len", ["0", "65537"])
def test_seq_lens_out_of_range_are_refused(seq_len):
    options = layer.parse_arguments(["--routing", "uniform", "--seq-len", seq_len])
    with pytest.raises(BadInput, match=f"--seq-len: expected 1 to 65536, got {seq_len}"):
        layer.chosen_cases(options)


def test_cases_are_the_tables_or_made():
    options = layer.parse_arguments(["--routing", "uniform", "skewed", "--seq-len", "1,128"])
    assert [case.name for _, case in layer.chosen_cases(options)] == [
        "uniform T=1", "uniform T=128", "skewed T=1", "skewed T=128",
    ]  # fmt: skip
    options = layer.parse_arguments(["--workloads", "901"])
    assert [(r, case.name) for r, case in layer.chosen_cases(options)] == [("workload", "T=901")]


def test_the_script_measures_stores_and_shows(tmp_path, capsys, monkeypatch):
    """All of it but the GPU: two workloads, one of two solutions fails on both."""
    device, seen = FakeDevice(), []

    def profile(calls, iterations):
        return [[ProfiledCall([], 42.0)] * iterations for _ in calls]

    def fine(*arguments):
        seen.append(len(arguments[0]))
        device.work(300)
        return right[len(arguments[0])].clone()

    def broken(*arguments):
        raise RuntimeError("no kernel image")

    probe = LayerProbe(Timer(device), Maker(), [], row_us=1)
    right = {t: probe.oracle(*toy_inputs(t).values()) for t in (1, 7)}
    solutions = [Solution("fine", fine, True), Solution("broken", broken, True)]
    monkeypatch.setattr(layer, "Timer", lambda: Timer(device))
    monkeypatch.setattr(layer, "current_device", lambda: None)
    monkeypatch.setattr(layer, "Arguments", lambda place: Maker())
    monkeypatch.setattr(layer, "solutions_here", lambda device, wanted: solutions)
    monkeypatch.setattr(probe_module, "profile", profile)
    monkeypatch.setattr(reporting.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(reporting, "provenance", lambda command: provenance("layer.py"))

    save(roofline_report(), report_path(tmp_path, RooflineReport, H200))
    arguments = ["--workloads", "1,7", "--budget", "1", "--data", str(tmp_path)]
    assert layer.main(arguments) == 1  # something failed
    (path,) = tmp_path.glob("layer-*.jsonl")
    stored = load(LayerReport, path)
    assert [(row.workload, row.solution) for row in stored.rows] == [
        ("T=1", "fine"),
        ("T=7", "fine"),
    ]
    assert {failed.key[0] for failed in stored.failed} == {"broken"} and stored.missing == 0
    shown = capsys.readouterr().out
    assert "broken" in shown and "no kernel image" in shown and "300.0" in shown

    calls = len(seen)
    solutions.pop()
    assert layer.main([*arguments, "--resume"]) == 0
    assert len(seen) == calls  # nothing is measured twice
