"""What a GPU reaches: a report's rows and tables, and the rates that every floor is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import DATA
from ..comparison.floor import Gpu
from ..machine import hardware_name, provenance
from ..sheets import Entry, Heading, Sheet, number_entry
from .store import Report, Row, load, report_path, save

if TYPE_CHECKING:
    from .timer import Call, Timer

BYTES = 4 << 30
GEMMS = ((16384, 4096, 7168), (8192, 8192, 8192))  # M, N, K: GEMM1 of many tokens; a usual peak


class RateRow(Row):
    """One measured rate of the GPU: bytes or FLOP in some microseconds."""

    identity = ("name",)
    name: str
    us: float
    bytes: int = 0
    flop: int = 0

    @property
    def tbs(self) -> float:
        """1e12 bytes per second."""
        return self.bytes / self.us / 1e6

    @property
    def tflops(self) -> float:
        """1e12 FLOP per second."""
        return self.flop / self.us / 1e6


class RooflineReport(Report[RateRow]):
    kind = "roofline"
    script = "roofline.py"
    row_types = (RateRow,)

    @property
    def gpu(self) -> Gpu | None:
        """The best rate of reading and the best of dense FP8; None if either was not measured."""
        reading = [row.tbs for row in self.rows if row.bytes]
        computing = [row.tflops for row in self.rows if row.flop]
        if not reading or not computing:
            return None
        source = f"measured on {self.provenance.finished:%Y-%m-%d} by scripts/{self.script}"
        return Gpu(round(max(reading), 2), round(max(computing)), source)


def rates(folder: Path, hardware: str) -> Gpu | None:
    """The rates of a GPU, from its report in `folder`.

    Those of this machine's own GPU are measured, in seconds, and stored if there are none yet.
    None for another GPU without a report, and for a CPU.
    """
    path = report_path(folder, RooflineReport, hardware)
    if path.exists():
        return load(RooflineReport, path).gpu
    if hardware != hardware_name():
        return None
    from .timer import Timer

    print(f"Measuring what the {hardware} reaches, once ...", file=sys.stderr)
    report = RooflineReport(provenance=provenance("python scripts/roofline.py"), planned=0)
    timer = Timer(warmups=3, iterations=12)
    report.add([measure() for _, measure in measurements(timer)])
    report.planned = len(report.rows)
    try:
        save(report, path)
    except OSError as error:
        print(f"{path}: cannot be stored, and will be measured again: {error}", file=sys.stderr)
    return report.gpu


known_rates = partial(rates, DATA)


def measurements(timer: Timer) -> list[tuple[str, Callable[[], RateRow]]]:
    """Name of each rate and what measures it: reading and copying 4 GiB, cuBLAS's FP8 GEMM."""

    def moving(name: str, prepare: Callable[[], Call]) -> RateRow:
        us = timer.median_us(prepare(), count_launch=False)
        return RateRow(name=name, us=us, bytes=BYTES)

    def multiplying(name: str, m: int, n: int, k: int) -> RateRow:
        us = timer.median_us(gemm(m, n, k), count_launch=False)
        return RateRow(name=name, us=us, flop=2 * m * n * k)

    found: list[tuple[str, Callable[[], RateRow]]] = [
        (name, partial(moving, name, prepare))
        for name, prepare in (("read 4 GiB", reading), ("copy 2 GiB", copying))
    ]
    for m, n, k in GEMMS:
        name = f"dense FP8 {m}x{n}x{k}"
        found.append((name, partial(multiplying, name, m, n, k)))
    return found


def reading() -> Call:
    import torch

    from .kernels.read_kernel import read

    buffer = torch.ones(BYTES // 4, dtype=torch.int32, device="cuda")
    return partial(read, buffer)


def copying() -> Call:
    import torch

    source = torch.ones(BYTES // 2, dtype=torch.uint8, device="cuda")
    return partial(torch.empty_like(source).copy_, source)


def gemm(m: int, n: int, k: int) -> Call:
    """cuBLAS with one scale per tensor, bf16 result. Random values: zeros would draw less power
    and run at a higher clock.
    """
    import torch

    a, b = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
        for shape in ((m, k), (n, k))
    )
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def roofline_sheets(report: RooflineReport) -> list[Sheet]:
    """The measured rates."""
    lines = [
        [
            Entry(row.name),
            number_entry(row.us),
            Entry(f"{row.tbs:.2f} TB/s" if row.bytes else f"{row.tflops:,.0f} TFLOP/s"),
        ]
        for row in report.rows
    ]
    headings = [Heading("rate", left=True), Heading("us"), Heading("reached")]
    return [Sheet(f"What the {report.provenance.hardware} reaches", headings, lines)]
