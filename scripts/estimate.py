#!/usr/bin/env python3
"""Estimate what cutedsl_moe_fp8_v3 should take on a B200, where it has never been run.

Per workload: the floor, the tiles that the device chooses and what they take of every unit (counts
that the emulator confirms, see tests/solutions/test_cutedsl_sm100.py), the times that follow, and
the best published one (docs/data/published-b200.csv). Needs no GPU.

    python scripts/estimate.py --format markdown
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bundle.cli import add_workloads, exit_with, make_parser
from bundle.dataset.replicas import Row, make_routing, read_table, reference_route
from bundle.paths import ROOT
from bundle.sheets import Entry, Heading, Sheet, markdown_table, number_entry, rich_table
from rich.console import Console

sys.path.insert(0, str(ROOT))
from bundle.emulation.work import Estimate, estimate

from solutions.common.geometry import DEEPSEEK_V3_EP8

PUBLISHED = ROOT / "docs" / "data" / "published-b200.csv"
UNITS = {
    "multiply": "multiply",
    "promote": "promote",
    "read_tmem": "read TMEM",
    "read_shared": "read smem",
    "write_shared": "write smem",
}


def main(arguments: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    add_workloads(parser)
    parser.add_argument("--format", choices=("terminal", "markdown"), default="terminal")
    options = parser.parse_args(arguments)
    rows = read_table(ROOT)
    if options.workloads:
        rows = [row for row in rows if {str(row.seq_len), row.uuid} & set(options.workloads)]
    estimates = [estimate(DEEPSEEK_V3_EP8, row.seq_len, rows_per_expert(row)) for row in rows]
    for sheet in (counts_sheet(estimates), times_sheet(estimates, published(PUBLISHED))):
        if options.format == "markdown":
            print("\n".join([sheet.title, "", *markdown_table(sheet), ""]))
        else:
            console = Console()
            console.print(sheet.title, rich_table(sheet), "", sep="\n")


def rows_per_expert(row: Row) -> list[int]:
    """Of the local experts, by the replica's routing."""
    logits, bias = (torch.from_numpy(array) for array in make_routing(row))
    route = reference_route(ROOT)
    chosen = route(logits, bias.to(torch.bfloat16), row.routed_scaling_factor)[0]
    counts = torch.bincount(chosen.flatten(), minlength=DEEPSEEK_V3_EP8.num_experts)
    first = row.local_expert_offset
    return counts[first : first + DEEPSEEK_V3_EP8.num_local_experts].tolist()


def published(path: Path) -> dict[int, float]:
    """The best published time, in us, by number of tokens."""
    with path.open(encoding="utf-8") as file:
        return {int(line["seq_len"]): float(line["us"]) for line in csv.DictReader(file)}


def counts_sheet(estimates: Sequence[Estimate]) -> Sheet:
    """What both GEMMs of a call take, over all multiprocessors."""
    names = ("T", "experts", "rows", "tile", "slots", "MMAs", "TMA, MB", "LDTM", "FFMA2")
    rows = []
    for each in estimates:
        config, done = each.config, each.work
        tile = f"{config.block_n} x {config.block_m}{', pair' if config.paired else ''}"
        counts = (
            done.slots,
            done.multiplications,
            done.tma_bytes / 1e6,
            done.tmem_loads,
            done.fmas,
        )
        rows.append([
            *(number_entry(count, ",.0f") for count in (each.num_tokens, each.experts, each.rows)),
            Entry(tile), *(number_entry(count, ",.0f") for count in counts),
        ])  # fmt: skip
    title = "Counts, of warps' instructions where they are instructions"
    return Sheet(title, [Heading(name) for name in names], rows)


def times_sheet(estimates: Sequence[Estimate], best: dict[int, float]) -> Sheet:
    """Estimates in us."""
    names = ("T", "floor", *UNITS.values(), "practical", "expected", "best published")
    rows = []
    for each in estimates:
        low, high = each.expected
        rows.append([
            number_entry(each.num_tokens, ",.0f"), number_entry(each.floor, ",.0f"),
            *(number_entry(each.units[name], ",.0f") for name in UNITS),
            number_entry(each.practical, ",.0f"), Entry(f"{low:,.0f}-{high:,.0f}"),
            number_entry(best.get(each.num_tokens), ",.0f"),
        ])  # fmt: skip
    return Sheet("Estimates, us; never run on a B200", [Heading(name) for name in names], rows)


if __name__ == "__main__":
    exit_with(main)
