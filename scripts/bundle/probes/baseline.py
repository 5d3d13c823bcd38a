"""What a report compares with, and in which words."""

from __future__ import annotations

from collections.abc import Iterable

from ..paths import BadInput

SAME = 0.03  # a difference below the spread of repeated runs


def pick_baseline(wanted: str | None, usual: str, names: Iterable[str]) -> str:
    """The baseline asked for, else the usual one, else the first by name."""
    known = sorted(set(names))
    if wanted is not None and wanted not in known:
        raise BadInput(f"--baseline: expected one of {', '.join(known)}; got {wanted}")
    return wanted or (usual if usual in known else known[0])


def verdict(ratio: float | None) -> str:
    """A time relative to the baseline's, in a word."""
    if ratio is None:
        return ""
    if abs(ratio - 1) <= SAME:
        return "same"
    return f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x slower"
