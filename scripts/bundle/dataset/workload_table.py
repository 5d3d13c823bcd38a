"""The table of the official workloads: what their routing does to the local experts.

It stands in workloads/moe/<DEFINITION>.csv, and the harness's workload file is made of it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

DEFINITION = "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"

# Sets the replicas' UUIDs, and with them all bytes; change it with the generator.
UUID_NAME = "routing-replica-v1"


def replica_uuid(official_uuid: str) -> str:
    """A replica's own UUID: its traces never mix with those of the official workload."""
    return str(uuid5(UUID(official_uuid), UUID_NAME))


@dataclass(frozen=True)
class Row:
    """One line of the table: an official workload and how its routing loads the local experts."""

    official_uuid: str
    seq_len: int
    local_expert_offset: int
    routed_scaling_factor: float
    local_pairs: int
    active_local_experts: int
    max_tokens_per_expert: int
    max_tokens_is_exact: bool

    @property
    def uuid(self) -> str:
        return replica_uuid(self.official_uuid)

    @property
    def name(self) -> str:
        return f"seq_len {self.seq_len}, offset {self.local_expert_offset}"

    @property
    def blob(self) -> str:
        """The blob's path, relative to the bundle's root."""
        return f"blob/workloads/moe/{DEFINITION}/{self.uuid}.safetensors"


def table_path(root: Path) -> Path:
    return root / f"workloads/moe/{DEFINITION}.csv"


def read_table(root: Path) -> list[Row]:
    """The rows of the table, in its order. Raises ValueError naming a line that is not a row."""
    path = table_path(root)
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        try:
            return [read_row(line) for line in lines]
        except KeyError as error:
            raise ValueError(
                f"{path}: expected a column {error}, got {lines.fieldnames}"
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {lines.line_num}: {error}") from error


def read_row(line: dict[str, str]) -> Row:
    kind = line["max_tokens_kind"]
    if kind not in ("exact", "upper_bound"):
        raise ValueError(f"max_tokens_kind: expected exact or upper_bound, got {kind!r}")
    return Row(
        official_uuid=str(UUID(line["uuid"])),
        seq_len=int(line["seq_len"]),
        local_expert_offset=int(line["local_expert_offset"]),
        routed_scaling_factor=float(line["routed_scaling_factor"]),
        local_pairs=int(line["local_pairs"]),
        active_local_experts=int(line["active_local_experts"]),
        max_tokens_per_expert=int(line["max_tokens_per_expert"]),
        max_tokens_is_exact=kind == "exact",
    )


def workload_lines(rows: Iterable[Row]) -> str:
    """The harness's workload file (JSON lines) for these rows."""

    def line(row: Row) -> str:
        def blob(key: str) -> dict:
            return {"type": "safetensors", "path": row.blob, "tensor_key": key}

        inputs = {
            "routing_logits": blob("routing_logits"),
            "routing_bias": blob("routing_bias"),
            "hidden_states": {"type": "random"},
            "hidden_states_scale": {"type": "random"},
            "gemm1_weights": {"type": "random"},
            "gemm1_weights_scale": {"type": "random"},
            "gemm2_weights": {"type": "random"},
            "gemm2_weights_scale": {"type": "random"},
            "local_expert_offset": {"type": "scalar", "value": row.local_expert_offset},
            "routed_scaling_factor": {"type": "scalar", "value": row.routed_scaling_factor},
        }
        workload = {"axes": {"seq_len": row.seq_len}, "inputs": inputs, "uuid": row.uuid}
        return json.dumps({"definition": DEFINITION, "workload": workload}) + "\n"

    return "".join(map(line, rows))
