"""Does a solution compute what it is given, when it is called, and as fast as it seems?

The harness on CUDA runs all solutions in one process and believes that process's clock. Here every
solution has a process of its own, in which nothing but it can be harmed, and this one checks:

* Each input in turn changes, at the same address, behind work that the solution has to wait for:
  outputs kept from an earlier call, weights prepared once, and work on streams that wait for
  nothing show as wrong numbers. Outputs are poisoned, and copied as soon as the solution returns.
* Afterwards the inputs are still what they were, no process is left, no clock and no check of the
  harness replaced.
* The time by the solution's own clock is about the time by this process's, and with inputs that
  it has seen before it is about that with new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flashinfer_bench.data import Definition, EvaluationStatus, Solution, Workload

from ..harness import Settings, output_specs
from ..sandbox.changes import Change
from ..sandbox.contract import Failure, Limits, Subject
from ..sandbox.launcher import Launcher
from ..sandbox.solution_process import SolutionProcess
from .judge import Verdict, check_inputs
from .trials import (
    Call,
    Changer,
    draw_inputs,
    tensors_of,
)

ROUNDS = 2
"""How often each input changes; in the second round on a GPU under a stream of its own."""
TIMES, TIMED_CALLS = 5, 4
"""The most favourable of 5 times 4 calls counts: other load on the machine disturbs some."""
MOST_TIMES = 25
"""Before a solution is accused: on a busy machine each of the first five may be disturbed."""
CLOCK_SHARE = 0.5
"""The least share of the time seen from outside that a solution's own clock may show."""
COMPARED_CALLS = 15
REPEATED_SHARE = 0.6
"""The least share of a call's time with new inputs that one with the last call's may take."""
CLOCK_SECONDS = 100e-6
"""What a call may take on top, seen from outside: messages, waiting for the GPU."""


@dataclass(frozen=True)
class Plan:
    """One workload's inputs, changes and expected outputs, for all solutions."""

    definition: Definition
    settings: Settings
    device: str
    inputs: list
    calls: list[Call]

    @property
    def changed(self) -> list[str]:
        """The inputs of which a change shows in the outputs."""
        effects = [effect for call in self.calls for effect in call.effects if effect.shows]
        return list(dict.fromkeys(effect.name for effect in effects))


@dataclass
class Findings:
    """What was seen of one solution."""

    problem: str | None = None
    """Why it is not to be trusted, or fails; None if nothing was found."""
    calls: int = 0
    matched_ratio: float = 1.0
    """The least share of elements within the tolerances."""
    seen_us: float | None = None
    """Of one call, by the clock of the process that verifies."""
    claimed_us: float | None = None
    """Of one call, by the clock of the solution's process."""
    verdict: Verdict = field(default_factory=Verdict)


def make_plan(
    definition: Definition,
    workload: Workload,
    root: Path,
    settings: Settings,
    launcher: Launcher,
    limits: Limits,
    device: str,
) -> Plan:
    """Draw inputs, choose changes that show, and have the reference compute what is expected.

    Raises Failure if the reference fails.
    """
    inputs = draw_inputs(definition, workload, root, device)
    given = tensors_of(inputs)
    outputs = output_specs(definition, inputs)
    subject = Subject(definition, lean="def dequantize_weights" in definition.reference)
    with SolutionProcess(launcher, subject, inputs, outputs, limits, device) as process:
        process.build()
        process.give(inputs)

        def reference(change: Change) -> tuple[list[torch.Tensor], float]:
            result = process.call(change)
            process.put_back(change, given)
            return result

        changer = Changer(definition, workload, inputs, settings, reference)
        unchanged, _ = changer.unchanged()
        calls = [unchanged]
        for _ in range(ROUNDS):
            calls += [changer.with_another(unchanged, name)[0] for name in changer.numbers]
            calls.append(changer.new_tokens()[0])
    return Plan(definition, settings, device, inputs, calls)


def verify(plan: Plan, solution: Solution, launcher: Launcher, limits: Limits) -> Findings:
    """Run all checks on one solution, in a process of its own, until one finds something."""
    found = Findings()
    specs = output_specs(plan.definition, plan.inputs)
    subject = Subject(plan.definition, solution)
    process = SolutionProcess(launcher, subject, plan.inputs, specs, limits, plan.device)
    try:
        with process:
            _run_checks(process, plan, found)
    except Failure as failure:
        found.problem = f"{failure.status.value}: {failure.message}"
    found.matched_ratio = found.verdict.matched_ratio
    return found


def _run_checks(process: SolutionProcess, plan: Plan, found: Findings) -> None:
    """Raises Failure at the first thing that is wrong."""
    given = tensors_of(plan.inputs)
    names = tensor_names(plan.definition, plan.inputs)
    outputs = list(plan.definition.outputs)
    process.build()
    process.give(plan.inputs)
    for number, call in enumerate(plan.calls):
        own_stream = number > (len(plan.calls) - 1) // ROUNDS
        results, _ = process.call(call.change, own_stream)
        if plan.device == "cpu":
            check_inputs(names, process.inputs, given, call.change)
        else:
            process.put_back(call.change, given)
            if number == 0:
                _check_inputs_there(process, names, given)
        found.verdict.add(outputs, results, call, plan.settings)
        found.calls += 1
    _check_clock(process, found)
    _check_inputs_there(process, names, given)
    _check_repetition(process, plan)
    if left := process.left_behind:
        raise Failure(EvaluationStatus.RUNTIME_ERROR, f"left {left} process(es) running")
    process.end()


def _check_inputs_there(
    process: SolutionProcess, names: list[str], given: list[torch.Tensor]
) -> None:
    """Raises Failure if the inputs in the solution's own memory are not those given.

    On a GPU fetching them takes a second, so they are looked at after the first and the last call.
    """
    process.fetch()
    check_inputs(names, process.inputs, given, [])


def _check_clock(process: SolutionProcess, found: Findings) -> None:
    """Raises Failure if the solution's clock shows much less than this process's, every time.

    Once may be a pause that something else on the machine has made.
    """
    process.time(2)
    times = [process.time(TIMED_CALLS) for _ in range(TIMES)]
    while not _is_plausible(*_best(times)) and len(times) < MOST_TIMES:
        times.append(process.time(TIMED_CALLS))
    seen, claimed = _best(times)
    found.seen_us, found.claimed_us = seen * 1e6, claimed * 1e6
    if not _is_plausible(seen, claimed):
        raise Failure(
            EvaluationStatus.RUNTIME_ERROR,
            f"by its own clock a call takes {found.claimed_us:.1f} us, seen from outside "
            f"{found.seen_us:.1f} us",
        )


def _best(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The most favourable of some times seen and claimed."""
    return min(times, key=lambda time: time[0] - time[1])


def _is_plausible(seen: float, claimed: float) -> bool:
    return claimed >= CLOCK_SHARE * (seen - CLOCK_SECONDS)


def _check_repetition(process: SolutionProcess, plan: Plan) -> None:
    """Raises Failure if calls with the last call's inputs always take much less than with new ones.

    What is right, and kept for inputs that are all compared, shows in the time only.
    """
    shares = (process.compare(plan.calls[-1].change, COMPARED_CALLS) for _ in range(TIMES))
    if all((share := each) < REPEATED_SHARE for each in shares):
        raise Failure(
            EvaluationStatus.RUNTIME_ERROR,
            f"a call with the inputs of the last takes {share:.0%} of the time of one with new "
            "inputs (kept from an earlier call?)",
        )


def tensor_names(definition: Definition, inputs: Sequence) -> list[str]:
    return [
        name
        for name, value in zip(definition.inputs, inputs, strict=True)
        if isinstance(value, torch.Tensor)
    ]
