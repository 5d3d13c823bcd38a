"""The page in a real browser: rows, filters, sorting, themes, narrow screens, no errors."""

import os
import shutil
from dataclasses import replace
from functools import partial

import pytest
import report
from bundle.comparison.figures import compare
from bundle.comparison.traces import load_traces
from bundle.page.page import machines_of, stage_class
from bundle.page.plots import Plot, Series, png, svg
from bundle.page.views import line_plots, ratio_panels
from bundle.paths import ROOT, BadInput
from bundle.probes.roofline import rates
from bundle.probes.stages import Bar, Bars, stage_names
from bundle.probes.store import Report
from report_factory import H100, H200, SOLUTIONS, layer_report, traces, write_all
from trace_factory import ROWS, make_trace, moe_workload, write_traces


def build(root, *arguments, data=None) -> str:
    """Run report.py on `root`; returns the page's text."""
    page = root / "report.html"
    options = ["--traces", str(root / "traces"), "--data", str(data or root / "data")]
    options += ["--out", str(page), "--images", str(root / "img")]
    assert report.main([*options, *arguments]) == 0
    return page.read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    write_all(root, two_gpus=True)
    build(root)
    return root


@pytest.fixture
def no_pictures(monkeypatch):
    """Where a test is about the page alone: painting takes as long as the page."""
    monkeypatch.setattr(report, "png", lambda *_: b"")
    monkeypatch.setattr(report, "png_of_panels", lambda *_: b"")


# Without a browser -----------------------------------------------------------------------------


def test_the_page_is_one_small_file(site):
    page = site / "report.html"
    text = page.read_text()
    assert page.stat().st_size < 3e6
    for outside in ("http://", "https://", '<link rel="stylesheet', "<script src", "@import"):
        assert outside not in text.replace("http://www.w3.org/", "")
    assert {path.name for path in (site / "img").iterdir()} == {
        f"{name}-{mode}.png"
        for name in ("floor", "latency", "speedup", "layer-nvidia-h200")
        for mode in ("dark", "light")
    }


def test_a_picture_of_the_layers_leaves_out_what_is_always_far_behind(tmp_path):
    made = layer_report()
    for row in made.rows:
        row.cold_us = {"torch_moe": 500.0, "flashinfer_moe": 190.0}.get(row.solution, 100.0)
    panels = ratio_panels(made, tmp_path)
    assert [name for name, _ in panels] == ["workload", "all-local"]
    for _, plot in panels:
        drawn = {series.name for series in plot.series}
        assert drawn == {*SOLUTIONS} - {"torch_moe"} and plot.level == 1.0
        assert plot.unit == "x"
    far = next(row for row in made.rows if row.solution == "triton_fused_moe_v2")
    far.cold_us = 900.0
    for _, plot in ratio_panels(made, tmp_path):
        values = next(each.values for each in plot.series if each.name == far.solution)
        cut = plot.id.startswith(f"panel-{far.routing}-")
        assert (None in values) == cut and (plot.unit == "x, up to 4") == cut
    made.rows = [row for row in made.rows if row.seq_len == 901]
    assert ratio_panels(made, tmp_path) == []  # nothing to draw a line through


def test_the_page_is_the_same_every_time(site, no_pictures, tmp_path):
    write_all(tmp_path, two_gpus=True)
    again = build(tmp_path).replace(str(tmp_path), "")
    assert again == (site / "report.html").read_text().replace(str(site), "")


def test_every_section_names_where_its_figures_come_from(site):
    text = (site / "report.html").read_text()
    for fact in (H200, H100, "driver 580.95.05", "torch 2.13.0+cu130", "2026-11-20 13:00"):
        assert fact in text
    for script in ("compare.py", "layer.py", "stages.py", "gemm.py", "precision.py", "roofline.py"):
        assert f"python scripts/{script}" in text


def test_missing_data_are_named_with_their_command(no_pictures, tmp_path):
    write_traces(tmp_path, traces())
    text = build(tmp_path, data=tmp_path / "none")
    for script in ("layer.py", "stages.py", "gemm.py", "precision.py", "roofline.py"):
        assert f"On that machine: <code>python scripts/{script}</code>" in text


def test_reports_without_traces_make_a_page_too(no_pictures, tmp_path):
    write_all(tmp_path)
    text = build(tmp_path, "--traces", str(write_traces(tmp_path / "other", [
        make_trace("torch_moe", 900.0, hardware=H100)])))  # fmt: skip
    assert f"No traces of the {H200} yet" in text


def test_malformed_traces_are_refused_and_the_old_page_stays(site, tmp_path):
    before = (site / "report.html").read_text()
    copy = shutil.copytree(site, tmp_path / "copy")
    next((copy / "traces").rglob("*.jsonl")).open("a").write('{"definition": 3}\n')
    with pytest.raises(BadInput, match="1 unusable line"):
        build(copy)
    assert (copy / "report.html").read_text() == before


def test_the_readme_gets_picture_and_headlines(no_pictures, tmp_path):
    write_all(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- reports:begin -->\nold\n<!-- reports:end -->\nafter\n")
    build(tmp_path, "--readme", str(readme))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert 'src="img/latency-light.png"' in text and "| solution | passed |" in text
    for start in ("- Workloads: `cutedsl_moe_fp8_v3`", "- Stages:", "- Gemm:", "- Precision:",
                  "- Roofline: measured, it reads 4.36 TB/s"):  # fmt: skip
        assert start in text
    readme.write_text("no markers")
    with pytest.raises(BadInput, match="README.md: expected <!-- reports:begin -->"):
        build(tmp_path, "--readme", str(readme))


def test_a_thousand_workloads_take_seconds(no_pictures, tmp_path):
    made = []
    for number in range(1000):
        workload = moe_workload(replace(ROWS[0], seq_len=number + 1), uuid=f"w{number}")
        made += [
            make_trace(name, 100.0 + number, workload=workload) for name in ("torch_moe", "other")
        ]
    write_traces(tmp_path, made)
    build(tmp_path, data=tmp_path / "none")
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_a_gap_in_the_data_is_a_gap_in_the_line():
    plot = Plot("p", "P", "us", ["T=1", "T=2", "T=3", "T=4"], [Series("a", [1.0, None, 2.0, 3.0])])
    drawn = svg(plot, ["a"], (10.6, 4.3))
    line = drawn.split('data-solution="a"')[1].split('d="')[1].split('"')[0]
    assert line.count("M") == 2
    assert "<title>a, T=3: 2 us</title>" in drawn and "a, T=2" not in drawn
    assert "#" not in line and "var(--s0)" in drawn
    assert png(plot, ["a"], "dark", H200).startswith(b"\x89PNG")


def test_fused_stages_have_stripes_and_a_place_in_the_legend():
    assert stage_class("GEMM1 + SwiGLU + requant") == "st1-st2"
    assert stage_class("SwiGLU + requant") == "st2"
    bars = Bars("T", [Bar("x", 9.0, [("GEMM2", 1.0), ("gap", 1.0)]), Bar("y", 5.0, [("GEMM1", 5)])])
    assert stage_names([bars]) == ["GEMM1", "GEMM2", "gap"]
    assert bars.longest_us == 9.0


def test_percentages_are_of_the_measured_roofline(tmp_path):
    write_all(tmp_path)
    records, _ = load_traces([tmp_path / "traces"])
    (machine,) = machines_of(records, tmp_path / "data")
    plots = {plot.id: plot for plot in line_plots(machine.comparisons[0], "m")}
    assert [*plots] == ["m-latency", "m-speedup", "m-floor"]
    own = compare(records, root=ROOT, rates=partial(rates, tmp_path / "data"))[0].rows[0]
    series = {each.name: each.values for each in plots["m-floor"].series}
    value = series["cutedsl_moe_fp8_v1"][0]
    cell = own.cells["cutedsl_moe_fp8_v1"]
    assert value == pytest.approx(100 * cell.floor_us / cell.latency_us, rel=0.01)
    assert isinstance(machine.reports["stages"], Report)


# In a browser ----------------------------------------------------------------------------------


def find_browser() -> tuple[str, str] | None:
    """Chromium and its driver."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (test extra)")
    if (found := find_browser()) is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage",
                 "disable-background-networking", "hide-scrollbars"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(found[1], env=os.environ.copy())
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, site):
    """The page, 1400 px wide and light; a failure in its console fails the test."""

    def show(width: int = 1400, scheme: str = "light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get((site / "report.html").as_uri())
        return browser

    show()
    browser.show = show
    yield browser
    assert browser.get_log("browser") == []


def visible(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.getClientRects().length).map(e => e.textContent.trim())",
        selector,
    )


def click(page, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def open_all(page) -> None:
    page.execute_script("document.querySelectorAll('.sheet').forEach(s => s.open = true)")


LATENCY = '[id$="latency"] .sheet'


def test_all_rows_are_there(page):
    open_all(page)
    assert len(visible(page, f"{LATENCY} tbody tr")) == 19
    assert len(visible(page, f"{LATENCY} thead th")) == 2 + len(SOLUTIONS)
    assert len(visible(page, "figure.bars")) == 3
    assert len(visible(page, "figure.bars .row")) == 3 * len(SOLUTIONS)
    assert len(visible(page, "figure.heat td span")) == 3 * 81
    text = " ".join(visible(page, f"{LATENCY} tbody"))
    assert "INCORRECT_NUMERICAL" in text and "missing" in text


def test_the_solution_filter_hides_rows_columns_lines_and_bars(page):
    open_all(page)
    longest = page.execute_script(
        "return document.querySelector('figure.bars').style.getPropertyValue('--max')"
    )
    for name in ("torch_moe", "cutedsl_moe_fp8_v1", "cutedsl_moe_fp8_v2"):
        click(page, f'.chips input[value="{name}"]')
    left = len(SOLUTIONS) - 3
    assert len(visible(page, f"{LATENCY} thead th")) == 2 + left
    assert len(visible(page, "figure.bars .row")) == 3 * left
    assert "torch_moe" not in " ".join(visible(page, "th, td"))
    assert len(visible(page, '[id$="latency"] .wide svg g[data-solution]')) == left
    rescaled = page.execute_script(
        "return document.querySelector('figure.bars').style.getPropertyValue('--max')"
    )
    assert float(rescaled) < float(longest)
    for row in page.find_elements("css selector", "figure.bars .row.short"):
        times = float(row.get_attribute("data-us")) / float(
            page.execute_script(
                "return arguments[0].parentElement.style.getPropertyValue('--max')", row
            )
        )
        assert times > 1 and row.find_element("css selector", ".scale").text in (
            "",
            f"1:{times:.1f}",
        )
    click(page, "#everything")
    assert len(visible(page, f"{LATENCY} thead th")) == 2 + len(SOLUTIONS)


def test_the_gpu_filter_shows_one_machine_or_all(page):
    assert visible(page, "h2.machine") == [H200]
    select = "const s = document.getElementById('gpu'); s.value = arguments[0];"
    select += "s.dispatchEvent(new Event('change'));"
    page.execute_script(select, "nvidia-h100-80gb-hbm3")
    assert visible(page, "h2.machine") == [H100]
    assert len(visible(page, "figure.heat")) == 0
    assert "python scripts/gemm.py" in " ".join(visible(page, ".absent"))
    page.execute_script(select, "")
    assert visible(page, "h2.machine") == [H200, H100]


def test_tables_sort_by_number_and_back(page):
    open_all(page)
    table = '[id$="speedup"] figure + .sheet'

    def column(position: int) -> list[str]:
        return visible(page, f"{table} tbody td:nth-child({position})")

    header = f"{table} thead th:nth-child(5) button"
    click(page, header)
    values = [float(text) for text in column(5) if "of" not in text]
    assert len(values) == len(SOLUTIONS) - 1 and values == sorted(values)
    click(page, header)
    values = list(column(5))
    assert "of" in values[-1]  # no mean: last in both directions
    numbers = [float(text) for text in values[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    state = page.execute_script(
        f"return document.querySelector('{table} thead th:nth-child(5)').getAttribute('aria-sort')"
    )
    assert state == "descending"
    click(page, f"{table} thead th:nth-child(1) button")
    assert column(1) == sorted(SOLUTIONS)


@pytest.mark.parametrize("width", [320, 400, 768, 1400])
def test_the_page_never_scrolls_sideways(page, width):
    page.show(width)
    open_all(page)
    widths = page.execute_script(
        "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert max(widths) <= width
    kinds = [len(visible(page, f'[id$="latency"] .{kind} svg')) for kind in ("wide", "narrow")]
    assert kinds == ([0, 1] if width <= 640 else [1, 0])


def background(page) -> str:
    return page.execute_script("return getComputedStyle(document.documentElement).backgroundColor")


def test_light_and_dark(page):
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
    assert background(page) == light
    click(page, "#theme")
    assert background(page) == dark
    page.show(scheme="dark")
    assert background(page) == dark
    line = '[id$="latency"] .wide g[data-solution="torch_moe"] use'
    colour = "return getComputedStyle(document.querySelector(arguments[0])).fill"
    drawn_dark = page.execute_script(colour, line)
    click(page, "#theme")
    assert background(page) == light
    assert page.execute_script(colour, line) != drawn_dark


def test_print_is_light_whole_and_without_filters(page):
    page.show(scheme="dark")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert background(page) == "rgb(255, 255, 255)"
    assert visible(page, "nav") == []
    assert len(visible(page, f"{LATENCY} tbody tr")) == 19
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
