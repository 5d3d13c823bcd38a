"""The solution's side on a GPU: every call is preceded by waiting work on the current stream.

The argument that changes is written on the current stream behind a kernel that takes longer than
the launches of any layer. Work on another stream that does not wait for it reads the old value, and
what is launched after the solution has returned comes after the copy of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .channel import Order, Outcome
from .contestant import Contestant, WrongOutput
from .integrity import changed, settings
from .poison import poisoned_like

SLEEP_CYCLES = 40_000_000
"""About 20 ms, for the host to have launched everything meanwhile."""


class GpuContestant(Contestant):
    """Keeps the arguments in the GPU's memory, at the same addresses for all calls."""

    def __init__(self, order: Order, memory: int) -> None:
        super().__init__(order, memory)
        self.on_device: list[torch.Tensor] = []

    def build(self) -> None:
        self.settings = settings()
        super().build()

    def check_integrity(self) -> None:
        """Also raises WrongOutput if the solution has changed a setting for all of its process."""
        super().check_integrity()
        if names := changed(self.settings):
            raise WrongOutput(Outcome.RUNTIME_ERROR, f"changed {', '.join(names)}")

    def load(self) -> None:
        inputs, _, _ = self.shared()
        if not self.on_device:
            self.on_device = [torch.empty_like(x, device=self.order.device) for x in inputs]
        for mine, value in zip(self.on_device, inputs, strict=True):
            mine.copy_(value)
        torch.cuda.synchronize()

    def fetch(self) -> None:
        inputs, _, _ = self.shared()
        for value, mine in zip(inputs, self.on_device, strict=True):
            value.copy_(mine)

    def call(self, own_stream: bool) -> None:
        inputs, outputs, change = self.shared()
        changed = []
        for number, index, count in change.tolist():
            if count:
                part = slice(index, index + count)
                target = self.on_device[number].view(-1)[part]
                new = inputs[number].view(-1)[part].to(self.order.device)
                changed.append((target, new, target.clone()))
        results = self._new_outputs(outputs)
        stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
        torch.cuda.synchronize()
        with torch.no_grad(), torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP_CYCLES)
            for target, new, _ in changed:
                target.copy_(new)
            results = self.results(self.arguments(self.on_device), results)
            copies = [result.clone() for result in results]
        torch.cuda.synchronize()
        for target, _, old in changed:
            target.copy_(old)
        self.deliver(copies, outputs)

    def seconds(self) -> float:
        """As flashinfer-bench 0.1.2 times a call: by a pair of events, the GPU idle before."""
        _, outputs, _ = self.shared()
        results = self._new_outputs(outputs)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.no_grad():
            torch.cuda.synchronize()
            start.record()
            self.results(self.arguments(self.on_device), results)
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-3

    def used(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The tensors that the solution is given: those in the GPU's memory."""
        return self.on_device

    def _new_outputs(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        on_device = [torch.empty_like(output, device=self.order.device) for output in outputs]
        return [poisoned_like(output) for output in on_device]
