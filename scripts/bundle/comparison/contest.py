"""The score of the MLSys 2026 FlashInfer contest: the mean speed-up over FlashInfer."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ..sheets import BEST, FAILED, Entry, Heading, Sheet
from ..trace_model import PASSED
from .table import Comparison

BASELINE = "flashinfer_moe"
TOLERANCES = "--atol 1 --rtol 0.3 --required-matched-ratio 0.9"
NOTE = (
    f"Contest score: the arithmetic mean of {BASELINE}'s latency over a solution's. The contest's "
    f"tolerances are those of `scripts/bench {TOLERANCES}`; traces do not tell theirs."
)


@dataclass(frozen=True)
class Score:
    solution: str
    passed: int
    workloads: int
    mean: float | None
    """None unless the solution and FlashInfer passed on all workloads."""


def contest_scores(comparison: Comparison) -> list[Score]:
    """The best first. comparison: with BASELINE as its baseline."""
    scores = []
    for column in comparison.columns:
        cells = [row.cells[column.label] for row in comparison.rows]
        ratios = [cell.baseline_ratio for cell in cells]
        factors = [1 / ratio for ratio in ratios if ratio is not None]
        mean = fmean(factors) if len(factors) == len(cells) else None
        passed = sum(cell.status == PASSED for cell in cells)
        scores.append(Score(column.label, passed, len(cells), mean))
    return sorted(scores, key=lambda score: -(score.mean or 0.0))


def contest_sheet(comparison: Comparison) -> Sheet:
    """The scores of one GPU."""
    scores = contest_scores(comparison)
    rows = []
    for score in scores:
        passed = f"{score.passed}/{score.workloads}"
        best = BEST if score is scores[0] and score.mean else ""
        rows.append(
            [
                Entry(score.solution),
                Entry(passed, FAILED if score.passed < score.workloads else ""),
                Entry(f"{score.mean:.3f}", best) if score.mean else Entry("-", FAILED),
            ]
        )
    headings = [Heading("solution", left=True), Heading("passed"), Heading("score")]
    hardware = ", ".join(comparison.provenance.environment["hardware"])
    return Sheet(f"{comparison.definition} on {hardware}: contest score", headings, rows)
