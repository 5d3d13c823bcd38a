"""Whole-layer times: every solution on the same arguments, one after the other in one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles

import torch

from ..dataset.oracle import build_oracle, execute_reference
from .cases import Arguments, Case, Solution, loads_of, new_output
from .layer import LayerRow
from .profiler import profile
from .store import Failed
from .timer import Call, Timer

# Shares of a row's time, and the most calls that make sense.
COLD, SUSTAINED, REPLAYED, HOST = 0.5, 0.2, 0.2, 0.1
MOST_COLD, MOST_SUSTAINED, MOST_HOST = 25, 2000, 10
# Solutions whose calls take less than CLOSE times the fastest's get this many cold rounds at least,
# whatever the budget: a median of fewer does not tell them apart.
LEAST_COLD, CLOSE = 5, 2.0
PROFILED = 3  # calls of each solution
CHECKED_TOKENS = 16
WORST_ERROR = 0.1  # relative L2; fp8's own rounding between the GEMMs costs 0.023
BY_TOKEN = {"hidden_states": 0, "hidden_states_scale": 1, "routing_logits": 0}  # name: dimension


@dataclass
class Measurement:
    """One solution on one case, as far as it got."""

    solution: Solution
    call: Call
    us: float = 0.0
    """Rough time of a call, launches included."""
    times: dict = field(default_factory=dict)
    """The measured fields of its row."""
    error: str | None = None

    def attempt(self, measure: Callable[[], dict]) -> None:
        """Add what `measure` returns; a solution's failure is a result, and not the others'."""
        if self.error is None:
            try:
                self.times |= measure()
            except Exception as error:  # noqa: BLE001  whatever a solution raises
                self.error = f"{type(error).__name__}: {error}".strip().splitlines()[0]


class LayerProbe:
    """Measures cases; `row_us` is about what one solution on one case may take."""

    def __init__(
        self, timer: Timer, maker: Arguments, solutions: Sequence[Solution], row_us: float
    ) -> None:
        self.timer = timer
        self.maker = maker
        self.solutions = solutions
        self.row_us = row_us
        self.oracle = build_oracle(maker.definition)
        self.reference = execute_reference(maker.definition)

    def measure(self, case: Case, routing: str) -> list[LayerRow | Failed]:
        """One result per solution."""
        arguments = self.maker.of(case)
        known = {
            "definition": self.maker.definition.name,
            "uuid": case.uuid,
            "workload": case.name,
            "routing": routing,
            "seq_len": case.seq_len,
            **self.load(arguments),
        }
        tokens, expected = self.sample(arguments)
        output = new_output(arguments)
        entries = []
        for solution in self.solutions:
            entry = Measurement(solution, partial(solution, arguments, output))
            entry.attempt(partial(self.first_calls, entry, arguments, output, tokens, expected))
            entries.append(entry)
        self.cold(entries)
        for entry in entries:
            entry.attempt(partial(self.sustained, entry))
            entry.attempt(partial(self.replayed, entry))
            entry.attempt(partial(self.host, entry))
        self.first_launches(entries)
        return [
            Failed(key=(entry.solution.name, case.uuid), reason=entry.error)
            if entry.error
            else LayerRow(solution=entry.solution.name, **known, **entry.times)
            for entry in entries
        ]

    def load(self, arguments: dict) -> dict:
        """What the routing does to the local experts, as a row has it."""
        ids, _ = self.reference["route"](
            arguments["routing_logits"],
            arguments["routing_bias"],
            arguments["routed_scaling_factor"],
        )
        loads = loads_of(ids, arguments["local_expert_offset"], self.reference["NUM_LOCAL_EXPERTS"])
        active = sum(load > 0 for load in loads)
        return {"active_experts": active, "pairs": sum(loads), "largest_load": max(loads)}

    def sample(self, arguments: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Some tokens and the reference's result for them, [tokens, hidden] fp32."""
        seq_len = len(arguments["hidden_states"])
        tokens = torch.linspace(0, seq_len - 1, min(seq_len, CHECKED_TOKENS)).long()
        few = dict(arguments)
        for name, dimension in BY_TOKEN.items():
            values = arguments[name]
            index = tokens.to(values.device)
            bits = values.view(torch.uint8) if values.dtype is torch.float8_e4m3fn else values
            few[name] = bits.index_select(dimension, index).view(values.dtype)
        return tokens, self.oracle(*few.values()).float()

    def first_calls(
        self,
        entry: Measurement,
        arguments: dict,
        output: torch.Tensor,
        tokens: torch.Tensor,
        expected: torch.Tensor,
    ) -> dict:
        """Compile, check the result, and see about how long a call takes."""
        output.fill_(float("nan"))
        result = entry.solution(arguments, output)
        if unwritten := int(result.isnan().any(dim=1).sum()):
            raise ValueError(
                f"output: expected numbers, got NaN in {unwritten} of {len(result)} rows"
            )
        off = (result[tokens.to(result.device)].float() - expected).norm()
        relative = (off / expected.norm().clamp(min=1e-30)).item()
        if relative > WORST_ERROR:
            raise ValueError(
                f"output: relative error {relative:.2g}, expected {WORST_ERROR} at most"
            )
        device = self.timer.device
        start = device.host_us()
        entry.call()
        device.synchronize()
        entry.us = device.host_us() - start
        return {"relative_error": relative}

    def calls_in(self, share: float, us: float, most: int) -> int:
        """How many calls of that length fit into a share of a row's time, one at least."""
        return max(1, min(most, int(share * self.row_us / us)))

    def cold(self, entries: Sequence[Measurement]) -> None:
        """Every solution in turn."""
        running = [entry for entry in entries if entry.error is None]
        close_us = CLOSE * min((entry.us for entry in running), default=0.0)
        rounds = [
            max(
                self.timer.rounds_in(COLD * self.row_us, entry.us, MOST_COLD),
                LEAST_COLD if entry.us <= close_us else 1,
            )
            for entry in running
        ]
        found = self.timer.cold([entry.call for entry in running], rounds)
        for entry, times in zip(running, found, strict=True):
            middle = median(times.us)
            low, _, high = quantiles(times.us, n=4) if len(times.us) > 1 else (middle,) * 3
            entry.times |= {"cold_us": middle, "spread_us": high - low, "hidden": times.hidden}

    def sustained(self, entry: Measurement) -> dict:
        calls = self.calls_in(SUSTAINED, entry.us, MOST_SUSTAINED)
        found = self.timer.sustained(entry.call, calls)
        return {"sustained_us": found.us, "sm_mhz": found.sm_mhz, "watts": found.watts}

    def replayed(self, entry: Measurement) -> dict:
        """A call that cannot be captured has no time and a reason instead."""
        try:
            replay = self.timer.device.capture(entry.call)
        except RuntimeError as error:
            return {"not_captured": f"{error}".strip().splitlines()[0]}
        rounds = self.timer.rounds_in(REPLAYED * self.row_us, entry.us, MOST_COLD)
        (times,) = self.timer.cold([replay], [rounds])
        return {"graph_us": median(times.us)}

    def host(self, entry: Measurement) -> dict:
        calls = self.calls_in(HOST, entry.us, MOST_HOST)
        return {"return_us": median(self.timer.host_us(entry.call, calls))}

    def first_launches(self, entries: Sequence[Measurement]) -> None:
        """All solutions under one profiler: starting it takes longer than the calls.

        Those that are slow are left out: their first launch does not matter.
        """
        running = [entry for entry in entries if entry.error is None and entry.us < self.row_us]
        try:
            found = profile([entry.call for entry in running], PROFILED)
        except (RuntimeError, ValueError) as error:  # a machine whose administrator reserves CUPTI
            print(f"No times of first launches: {error}", file=sys.stderr)
            return
        for entry, calls in zip(running, found, strict=True):
            times = [call.first_launch_us for call in calls if call.first_launch_us is not None]
            entry.times["first_launch_us"] = median(times) if times else None
