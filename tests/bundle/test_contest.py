"""compare.py --score contest."""

import compare as script
import pytest
from bundle.comparison.contest import BASELINE, contest_scores
from bundle.comparison.figures import compare
from bundle.comparison.traces import load_traces
from bundle.paths import ROOT
from trace_factory import ROWS, all_rows, make_trace, write_traces

FAST, BROKEN = "triton_fused_moe_v3", "torch_moe"


@pytest.fixture
def folder(tmp_path):
    """FAST takes half of FlashInfer's time, and on one workload a tenth; BROKEN fails on one."""
    fast = all_rows(FAST, 0.5)
    fast[3] = make_trace(FAST, 0.1 * (100 + ROWS[3].seq_len), row=ROWS[3])
    broken = all_rows(BROKEN, 0.5)
    broken[0] = make_trace(BROKEN, row=ROWS[0], status="TIMEOUT")
    return write_traces(tmp_path, [*all_rows(BASELINE), *fast, *broken])


def test_the_score_is_the_arithmetic_mean_over_flashinfer(folder):
    (comparison,) = compare(load_traces([folder])[0], root=ROOT, baseline=BASELINE)
    scores = {score.solution: score.mean for score in contest_scores(comparison)}
    assert scores == {FAST: pytest.approx((18 * 2 + 10) / 19), BASELINE: 1.0, BROKEN: None}
    assert [*scores] == [FAST, BASELINE, BROKEN]


def test_the_script_shows_it_with_the_tolerances(folder, capsys):
    assert script.main([str(folder), "--score", "contest"]) == 0
    text = capsys.readouterr().out
    assert f"{46 / 19:.3f}*" in text and "18/19" in text
    assert "--atol 1 --rtol 0.3 --required-matched-ratio 0.9" in " ".join(text.split())


@pytest.mark.parametrize("other", [["--baseline", FAST], ["--format", "csv"], ["--readme", "x"]])
def test_what_does_not_go_with_it(folder, other):
    with pytest.raises(SystemExit, match="2"):
        script.main([str(folder), "--score", "contest", *other])
