"""Has a solution replaced a clock, a check or a part of the harness in its process?

Nothing here is measured or decided by these functions; the harness on CUDA, though, shares one
process between all solutions, where such a replacement falsifies its own and the others' results.
So do settings of PyTorch: a seed makes the inputs of all trials the same, a precision changes what
is expected of others.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time")
WATCHED = {
    "time": [name + suffix for name in CLOCKS for suffix in ("", "_ns")] + ["sleep"],
    "builtins": ["abs", "all", "any", "float", "int", "isinstance", "len", "max", "min", "open"],
    "torch.testing": ["assert_close"],
    "torch": [
        "manual_seed",
        "allclose",
        "isclose",
        "isnan",
        "isinf",
        "equal",
        "empty",
        "empty_like",
        "randn",
    ],
    "torch.cuda": ["Event", "synchronize", "current_stream", "Stream", "stream", "_sleep"],
    "torch.cuda.Event": ["record", "elapsed_time", "synchronize", "wait"],
    "torch.Tensor": ["clone", "copy_", "zero_", "__eq__", "item"],
    "flashinfer_bench.bench.timing": ["time_runnable", "do_bench"],
    "flashinfer_bench.bench.utils": ["compute_error_stats", "make_eval", "gen_inputs"],
    "flashinfer_bench.bench.evaluators.default": ["time_runnable", "compute_error_stats"],
    "flashinfer_bench.bench.evaluators.lowbit": ["compute_error_stats", "allocate_outputs"],
    "flashinfer_bench.bench.evaluators": ["LowBitEvaluator", "DefaultEvaluator"],
    "flashinfer_bench.bench.evaluators.LowBitEvaluator": ["check_correctness"],
    "flashinfer_bench.bench.evaluators.DefaultEvaluator": ["eval_performance"],
}


def watched() -> dict[str, Any]:
    """The functions by their full names, as they are now; those that do not exist are left out."""
    found = {}
    for owner_name, names in WATCHED.items():
        owner = _resolve(owner_name)
        for name in names:
            value = vars(owner).get(name, getattr(owner, name, None)) if owner else None
            if value is not None:
                found[f"{owner_name}.{name}"] = value
    return found


def settings() -> dict[str, Any]:
    """What all code of a process shares, and one solution can change for the others."""
    cuda = torch.backends.cuda.matmul
    return {
        "the default dtype": torch.get_default_dtype(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "allow_fp16_reduced_precision_reduction": cuda.allow_fp16_reduced_precision_reduction,
        "allow_bf16_reduced_precision_reduction": cuda.allow_bf16_reduced_precision_reduction,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the seed of random numbers": torch.initial_seed(),
        "the seed of the GPU's random numbers": torch.cuda.initial_seed(),
        "whether gradients are kept": torch.is_grad_enabled(),
    }


def changed(before: dict[str, Any]) -> list[str]:
    """Those of `settings` that are no longer what they were."""
    return [name for name, value in settings().items() if before[name] != value]


def replaced(before: dict[str, Any]) -> list[str]:
    """The names that no longer stand for what they did."""
    now = watched()
    return [name for name, value in before.items() if now.get(name) is not value]


def _resolve(name: str) -> Any:
    """A module, or a class in one; None if there is no such thing in this version."""
    try:
        return importlib.import_module(name)
    except ImportError:
        module, _, attribute = name.rpartition(".")
        return getattr(_resolve(module), attribute, None) if module else None
