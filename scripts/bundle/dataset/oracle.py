"""A lean oracle: the definition's own reference, dequantising only the experts that were hit.

The reference dequantises all 32 local experts up front: about a minute on a CPU and 12 GiB at once,
GEMM1's values, scales and products at 3.5 GiB each beside 1.3 GiB of fp8. Its source indexes the
dequantised weights only as `w[expert]`, one expert at a time, so the same source gives the same
bits when that indexing dequantises the expert on the spot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from flashinfer_bench.data import Definition


class LazyExperts:
    """Stands for dequantize(weights, scales), [E, N, K]; holds no dequantised expert itself."""

    def __init__(
        self, dequantize: Callable, weights: torch.Tensor, scales: torch.Tensor, used: set[int]
    ) -> None:
        self.dequantize = dequantize
        self.used = used
        self.weights = weights
        self.scales = scales

    def __getitem__(self, expert: int) -> torch.Tensor:
        self.used.add(expert)
        one = slice(expert, expert + 1)
        return self.dequantize(self.weights[one], self.scales[one])[0]


def execute_reference(definition: Definition) -> dict[str, Any]:
    """The module-level names (constants, functions) of the definition's reference source."""
    names: dict[str, Any] = {}
    exec(compile(definition.reference, f"<reference of {definition.name}>", "exec"), names)
    return names


class Oracle:
    """Callable. used: the experts whose weights the last call has looked at."""

    def __init__(self, run: Callable, used: set[int]) -> None:
        self.run = run
        self.used = used

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.used.clear()
        return self.run(*arguments, **named)


def build_oracle(definition: Definition) -> Oracle:
    """The reference's `run`, bit-equal and value returning, with `dequantize_weights` made lazy.

    Raises ValueError if the reference has no function `dequantize_weights(weights, scales)`.
    """
    names = execute_reference(definition)
    dequantize = names.get("dequantize_weights")
    if not callable(dequantize):
        raise ValueError(
            f"definition {definition.name}: expected its reference to define the function "
            f"dequantize_weights(weights, scales), got {dequantize!r}"
        )
    used: set[int] = set()
    names["dequantize_weights"] = lambda weights, scales: LazyExperts(
        dequantize, weights, scales, used
    )
    return Oracle(names["run"], used)
