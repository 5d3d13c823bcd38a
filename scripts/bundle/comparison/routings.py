"""What the workloads' routing does, of the official ones and of their replicas."""

from __future__ import annotations

from pathlib import Path

from ..dataset.workload_table import read_table
from ..paths import BadInput
from .floor import Routing

OFFICIAL = "official workloads"
REPLICAS = "replicas of the official workloads"


def load_routings(root: Path) -> dict[str, Routing]:
    """Routing by workload uuid, of the official workloads and of their replicas."""
    routings = {}
    try:
        rows = read_table(root)
    except ValueError as error:
        raise BadInput(f"{error}") from error
    for row in rows:
        counts = row.active_local_experts, row.local_pairs
        routings[row.official_uuid] = Routing(OFFICIAL, *counts)
        routings[row.uuid] = Routing(REPLICAS, *counts)
    return routings
