#!/usr/bin/env python3
"""Roofline: what this GPU can reach, measured, and how much of it the solutions do.

The floor of a workload is the larger of reading the hit experts' weights once at the best measured
read rate, and multiplying at the best measured dense FP8 rate
(bundle/comparison/floor.py). The rates are stored in the report; the solutions' times come from
traces.

    python scripts/roofline.py
    python scripts/roofline.py --show --format markdown --traces traces
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from bundle.comparison.traces import load_traces
from bundle.paths import ROOT
from bundle.probes.kernels.read_kernel import read
from bundle.probes.report_tables import roofline_sheets
from bundle.probes.reporting import Task, exit_with, report_parser, run_report
from bundle.probes.reports import RateRow, RooflineReport
from bundle.probes.timer import Timer

BYTES = 4 << 30
GEMMS = ((16384, 4096, 7168), (8192, 8192, 8192))  # M, N, K: GEMM1 of many tokens; a usual peak


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = report_parser(__doc__)
    parser.add_argument(
        "--traces", type=Path, default=ROOT / "traces", metavar="DIR", help="traces to rate"
    )
    return parser.parse_args(arguments)


def plan() -> list[Task]:
    """Reading and copying 4 GiB, and cuBLAS's dense FP8 GEMM on two shapes."""
    timer = Timer(warmups=3, iterations=12)

    def measure(row: RateRow, prepare) -> list[RateRow]:
        us = timer.median_us(prepare(), count_launch=False)
        return [row.model_copy(update={"us": us})]

    tasks = []
    for row, prepare in (
        (RateRow(name="read 4 GiB", bytes=BYTES), reading),
        (RateRow(name="copy 2 GiB", bytes=BYTES), copying),
        *(
            (RateRow(name=f"dense FP8 {m}x{n}x{k}", flop=2 * m * n * k), partial(gemm, m, n, k))
            for m, n, k in GEMMS
        ),
    ):
        tasks.append(Task([row], partial(measure, row, prepare)))
    return tasks


def reading():
    buffer = torch.ones(BYTES // 4, dtype=torch.int32, device="cuda")
    return partial(read, buffer)


def copying():
    source = torch.ones(BYTES // 2, dtype=torch.uint8, device="cuda")
    return partial(torch.empty_like(source).copy_, source)


def gemm(m: int, n: int, k: int):
    """cuBLAS with one scale per tensor, bf16 result. Random values: zeros would draw less power
    and run at a higher clock.
    """
    a, b = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
        for shape in ((m, k), (n, k))
    )
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)

    def sheets(report: RooflineReport) -> list:
        there = any(options.traces.rglob("*.jsonl"))
        records = load_traces([options.traces])[0] if there else []
        return roofline_sheets(report, records)

    return run_report(RooflineReport, plan, sheets, options, arguments)


if __name__ == "__main__":
    exit_with(main, "roofline.py")
