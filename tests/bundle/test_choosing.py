"""The table for somebody who chooses a solution, and what a CPU's times are shown as."""

import json

import compare
from bundle.comparison.figures import compare as compare_records
from bundle.comparison.traces import load_traces
from bundle.page.choosing import choice_sheet, needs, unmeasured
from bundle.page.headlines import headline
from bundle.page.page import breakable
from bundle.paths import ROOT
from bundle.probes.footprint import FootprintReport, FootprintRow
from bundle.sheets import BEST
from report_factory import complete, layer_report, traces
from trace_factory import LIBS, ROWS, make_trace, write_traces

MIB = 1 << 20


def footprint_report():
    rows = [
        FootprintRow(
            solution="triton_fused_moe_v3", uuid=row.uuid, workload=f"T={row.seq_len}",
            seq_len=row.seq_len, first_call_s=9.5, again_s=again, peak_bytes=peak * MIB,
            kept_bytes=MIB, others_bytes=2 * MIB,
        )
        for row, again, peak in ((ROWS[0], 1.25, 3), (ROWS[-1], None, 800))
    ]  # fmt: skip
    return complete(FootprintReport, rows)


def sheet_of(tmp_path, reports):
    records, _ = load_traces([write_traces(tmp_path, traces())])
    (comparison,) = compare_records(records, root=ROOT)
    sheet = choice_sheet(comparison, reports)
    names = [f"{heading.group} {heading.name}".strip() for heading in sheet.headings]
    return {row[0].text: dict(zip(names, row, strict=True)) for row in sheet.rows}, comparison


def test_what_is_not_measured_is_said_with_its_command(tmp_path):
    layer, footprint = layer_report(), footprint_report()
    table, comparison = sheet_of(tmp_path, {})
    assert "memory, MiB" not in table["triton_fused_moe_v3"]
    told = unmeasured(comparison, {})
    assert "GPU time and graph, memory and first call" in told
    assert "`python scripts/layer.py && python scripts/footprint.py`" in told
    assert "footprint" not in unmeasured(comparison, {"footprint": footprint})
    assert unmeasured(comparison, {"layer": layer, "footprint": footprint}) == ""


def test_every_figure_stands_beside_the_others(tmp_path):
    layer, footprint = layer_report(), footprint_report()
    table, comparison = sheet_of(tmp_path, {"layer": layer, "footprint": footprint})
    assert list(table) == [column.label for column in comparison.columns]  # by rank
    line = table["triton_fused_moe_v3"]
    small = next(
        row for row in layer.rows if (row.solution, row.seq_len) == ("triton_fused_moe_v3", 1)
    )
    assert line["T=1, us GPU"].text == f"{small.cold_us:,.1f}"
    assert line["T=1, us graph"].text == f"{small.graph_us:,.1f}"
    first = comparison.rows[0].cells["triton_fused_moe_v3"]
    assert line["T=1, us harness"].text == f"{first.latency_us:,.1f}"
    assert "T=14107, us GPU" in line
    assert line["memory, MiB"].text == "802"
    assert line["first call, s nothing compiled"].text == "9.5"
    assert line["first call, s with caches"].text == "1.2"
    assert line["needs"].text == "triton"
    waits = table["torch_moe"]
    assert waits["T=1, us GPU"].text.endswith("+") and waits["T=1, us graph"].text == "-"
    assert waits["memory, MiB"].text == "-"
    assert [line["T=1, us GPU"].style for line in table.values()].count(BEST) == 1


def test_without_reports_only_the_harness_has_figures(tmp_path):
    table, _ = sheet_of(tmp_path, {})
    for line in table.values():
        assert line["T=14107, us harness"].text != "-"
        assert not [name for name in line if "GPU" in name or "graph" in name or "call" in name]


def test_what_a_solution_needs():
    assert needs("sglang_fp8_blockwise_moe") == "sgl_kernel"
    assert needs("of another bundle") == "-"


def test_times_of_a_cpu_make_nobody_first(tmp_path, capsys):
    libs = LIBS | {"kernels": "Triton is interpreted and CuTe DSL emulated on a CPU"}
    made = [
        make_trace(name, latency, hardware="AMD EPYC", libs=libs)
        for name, latency in (("slow", 8e7), ("fast", 9e6))
    ]
    folder = write_traces(tmp_path, made)
    assert compare.main([str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "their times here mean nothing, and nobody is first." in shown
    assert "80,000,000.0" in shown
    assert "*" not in shown and "speed-up" not in shown and "roofline" not in shown
    assert compare.main([str(folder), "--format", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert told["simulated"]
    assert not any(c["winner"] for row in told["rows"] for c in row["cells"].values())
    (comparison,) = compare_records(load_traces([folder])[0], root=ROOT)
    assert headline(comparison) is None


def test_names_may_break():
    assert breakable("cutedsl_moe<i>_v3") == "cutedsl_<wbr>moe&lt;i&gt;_<wbr>v3"
