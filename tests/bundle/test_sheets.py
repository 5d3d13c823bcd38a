"""Tables in a terminal that is too narrow for them."""

import io

import pytest
from bundle.sheets import Entry, Heading, Sheet, natural_width, rich_table
from rich.console import Console

NAMES = ["seq_len", "local_expert_offset", "pairs", "floor", "reference"]
ROWS = [["14107", "32", "16,103", "948.7", "54,886"], ["1", "0", "3", "42.5", "16,258"]]
SHEET = Sheet("workloads", list(map(Heading, NAMES)), [list(map(Entry, row)) for row in ROWS])


def printed(width):
    file = io.StringIO()
    Console(file=file, width=width).print(rich_table(SHEET))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [24, 40, 200])
def test_no_figure_is_cut_off(width):
    lines = printed(width)
    assert all(len(line.rstrip()) <= width for line in lines)
    words = [line.split() for line in lines]
    assert {value for row in ROWS for value in row} <= {word for line in words for word in line}
    assert not any("…" in line for line in lines)


def test_every_block_has_the_first_column():
    first = [line.split()[0] for line in printed(40) if line.split() and "─" not in line]
    blocks = first.count("14107")
    assert blocks > 1 and first.count("1") == blocks
    assert sum("seq_len" in line for line in printed(natural_width(SHEET))) == 1
