"""Solutions as plain functions, and arguments to call them with outside the harness.

Reports look into a call (its kernels, its rounding), which a trace does not show.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import torch
from flashinfer_bench.data import Definition, SafetensorsInput, ScalarInput, Workload

from ..dataset.loading import load_definition
from ..dataset.manifest import read_config
from ..dataset.packing import solution_folders
from ..dataset.replicas import (
    GROUP_SIZE,
    NUM_EXPERTS,
    NUM_LOCAL_EXPERTS,
    TOPK_GROUPS,
    make_routing,
    reference_route,
)
from ..dataset.workload_table import DEFINITION, Row, read_table
from ..hardware import Device
from ..harness import gen_inputs
from ..paths import ROOT, BadInput
from ..runs.requirements import why_not

WEIGHTS = ("gemm1_weights", "gemm1_weights_scale", "gemm2_weights", "gemm2_weights_scale")
UNIFORM, SKEWED, ALL_LOCAL, FEW_EXPERTS = "uniform", "skewed", "all-local", "few-experts"
ROUTINGS = {
    UNIFORM: "normal logits: every expert is as likely as another",
    SKEWED: "some experts are liked and some are not, alike in every group",
    ALL_LOCAL: "all 8 experts of every token are local",
    FEW_EXPERTS: "every token goes to the same 4 local experts",
}
MOST_TOKENS = 65_536
FIRST_TOKENS = 64  # more do not all miss the local experts
MOST_LOCAL = 4  # local experts per token in a synthetic case; routing takes 8 in all


@dataclass(frozen=True)
class Case:
    """A workload as the reports name it."""

    name: str
    uuid: str
    """Of the workload; a routing made here has one that follows from its name."""
    definition: str
    seq_len: int
    local_expert_offset: int
    routed_scaling_factor: float
    make_routing: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    """Makes routing_logits [seq_len, 256] fp32 and routing_bias [256] bf16, on the CPU."""

    def loads(self) -> list[int]:
        """Rows of each local expert under the reference's routing."""
        ids, _ = reference_route(ROOT)(*self.make_routing(), self.routed_scaling_factor)
        return loads_of(ids, self.local_expert_offset, NUM_LOCAL_EXPERTS)


def loads_of(ids: torch.Tensor, local_expert_offset: int, num_local_experts: int) -> list[int]:
    """Rows of each local expert; ids are those of the tokens' experts."""
    local = ids.flatten() - local_expert_offset
    local = local[(local >= 0) & (local < num_local_experts)]
    return local.bincount(minlength=num_local_experts).tolist()


def named_cases(wanted: Sequence[str] | None = None) -> list[Case]:
    """The table's workloads that have one of these seq_lens or uuids; by default all."""
    rows = read_table(ROOT)
    keys = {row: {str(row.seq_len), row.uuid, row.official_uuid} for row in rows}
    known = {key for each in keys.values() for key in each}
    if unknown := [key for key in wanted or () if key not in known]:
        seq_lens = ", ".join(str(row.seq_len) for row in rows)
        raise BadInput(
            f"--workloads: expected some of {seq_lens}, or uuids; got {', '.join(unknown)}"
        )

    def named(row: Row) -> str:
        alone = sum(other.seq_len == row.seq_len for other in rows) == 1
        return f"T={row.seq_len}" + ("" if alone else f" {row.uuid[:8]}")

    def replica(row: Row) -> Case:
        def routing() -> tuple[torch.Tensor, torch.Tensor]:
            logits, bias = make_routing(row)
            return torch.from_numpy(logits), torch.from_numpy(bias).bfloat16()

        offset, factor = row.local_expert_offset, row.routed_scaling_factor
        return Case(named(row), row.uuid, DEFINITION, row.seq_len, offset, factor, routing)

    return [replica(row) for row in rows if wanted is None or keys[row] & set(wanted)]


def synthetic_case(seq_len: int, experts_active: int, per_token: int | None = None) -> Case:
    """Tokens take turns with the first `experts_active` local experts, `per_token` each.

    By default that is all of them, or 4 if they are more.
    """
    per_token = per_token or min(experts_active, MOST_LOCAL)
    most = min(NUM_LOCAL_EXPERTS, seq_len * per_token)
    if seq_len < 1:
        raise BadInput(f"--seq-len: expected a positive number, got {seq_len}")
    if not 1 <= experts_active <= most:
        raise BadInput(
            f"--experts-active: expected 1 to {most} for {seq_len} tokens, got {experts_active}"
        )
    turns = torch.arange(seq_len * per_token).view(seq_len, per_token) % experts_active

    def routing() -> tuple[torch.Tensor, torch.Tensor]:
        # Chosen local experts come first (sigmoid near 0.88); three groups of others fill the
        # places left (near 0.5); what is not wanted is near 0.
        random = torch.Generator().manual_seed(seq_len)
        logits = 0.2 * torch.randn(seq_len, NUM_EXPERTS, generator=random)
        logits[:, :GROUP_SIZE] -= 8.0
        logits[:, TOPK_GROUPS * GROUP_SIZE :] -= 8.0
        logits.scatter_add_(1, turns, torch.full(turns.shape, 10.0))
        return logits, torch.zeros(NUM_EXPERTS, dtype=torch.bfloat16)

    return made_case(f"T={seq_len}, {experts_active} experts", seq_len, routing)


def made_case(name: str, seq_len: int, routing: Callable) -> Case:
    """A workload that is not in the table: the first 32 experts are local."""
    uuid = str(uuid5(NAMESPACE_OID, f"{DEFINITION} {name}"))
    return Case(name, uuid, DEFINITION, seq_len, 0, 2.5, routing)


def routed_case(routing: str, seq_len: int) -> Case:
    """seq_len tokens under one of ROUTINGS; one local pair there is at least."""
    if not 1 <= seq_len <= MOST_TOKENS:
        raise BadInput(f"--seq-len: expected 1 to {MOST_TOKENS}, got {seq_len}")
    if routing == FEW_EXPERTS:
        made = synthetic_case(seq_len, MOST_LOCAL).make_routing
    else:

        def made() -> tuple[torch.Tensor, torch.Tensor]:
            random = torch.Generator().manual_seed(seq_len)
            bias = torch.zeros(NUM_EXPERTS, dtype=torch.bfloat16)
            while True:
                logits = torch.randn(seq_len, NUM_EXPERTS, generator=random)
                if routing == ALL_LOCAL:
                    logits[:, :NUM_LOCAL_EXPERTS] += 10.0
                elif routing == SKEWED:
                    logits += popularity()
                ids, _ = reference_route(ROOT)(logits[:FIRST_TOKENS], bias, 1.0)
                if sum(loads_of(ids, 0, NUM_LOCAL_EXPERTS)):
                    return logits, bias

    return made_case(f"{routing} T={seq_len}", seq_len, made)


def popularity() -> torch.Tensor:
    """fp32 [256], to add to the logits: of each 32 experts' group some are liked and some are not.

    The hottest local expert gets 6 times the mean of the local ones, the coldest a third has none.
    """
    spread = torch.linspace(2.0, -2.0, GROUP_SIZE)
    return spread.repeat(NUM_EXPERTS // GROUP_SIZE)


class Arguments:
    """Makes the arguments of a call as the harness does: random, the routing that of the case.

    The weights, 1.4 GB, are drawn once and shared by all cases.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.definition: Definition = load_definition(ROOT, DEFINITION)
        self._weights: dict[str, torch.Tensor] = {}

    def of(self, case: Case) -> dict:
        """Arguments by name, in the definition's order, without the output."""
        torch.manual_seed(0)
        logits, bias = case.make_routing()
        given = {"routing_logits": logits, "routing_bias": bias, **self._weights}
        scalars = {
            "local_expert_offset": case.local_expert_offset,
            "routed_scaling_factor": case.routed_scaling_factor,
        }
        workload = Workload(
            axes={"seq_len": case.seq_len},
            inputs={name: SafetensorsInput(path="memory", tensor_key=name) for name in given}
            | {name: ScalarInput(value=value) for name, value in scalars.items()},
            uuid=case.uuid,
        )
        values = gen_inputs(self.definition, workload, self.device, given)
        arguments = dict(zip(self.definition.inputs, values, strict=True))
        self._weights = {name: arguments[name] for name in WEIGHTS}
        return arguments


@dataclass(frozen=True)
class Solution:
    """A solution folder that can run here."""

    name: str
    run: Callable
    returns_output: bool
    """Else the output is the last argument."""

    def __call__(self, arguments: dict, output: torch.Tensor) -> torch.Tensor:
        if self.returns_output:
            return self.run(*arguments.values())
        self.run(*arguments.values(), output)
        return output


def new_output(arguments: dict) -> torch.Tensor:
    """NaN everywhere, so that an element that is not written shows."""
    return torch.full_like(arguments["hidden_states"], float("nan"), dtype=torch.bfloat16)


def use_solutions(root: Path) -> None:
    """Make `import solutions....` work: a script's own path begins at scripts/."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def solutions_here(
    device: Device, wanted: Sequence[str] | None = None, root: Path = ROOT
) -> list[Solution]:
    """The solutions that can run on `device`; says on stderr which cannot, and why.

    wanted: take only these. Raises BadInput for an unknown one or if none can run.
    """
    folders = {folder.name: folder for folder in solution_folders(root)}
    if unknown := [name for name in wanted or () if name not in folders]:
        raise BadInput(
            f"--solutions: expected some of {', '.join(folders)}; got {', '.join(unknown)}"
        )
    use_solutions(root)
    found, absent = [], {}
    for name in wanted or folders:
        config = read_config(folders[name])
        if reason := why_not(config.requires, device):
            absent[name] = reason
            continue
        file, function = config.entry_point.split("::")
        module = file.removesuffix(".py").replace("/", ".")
        try:
            run = getattr(importlib.import_module(f"solutions.{name}.{module}"), function)
        except (ImportError, OSError, RuntimeError) as error:  # of a library's binaries, mostly
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        found.append(Solution(name, run, not config.destination_passing_style))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise BadInput(f"--solutions: none can run here: {reasons}")
    for name, reason in absent.items():
        print(f"{name} cannot run here: {reason}", file=sys.stderr)
    return found
