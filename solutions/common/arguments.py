"""Argument checks of a solution's entry function.

They read shapes, dtypes, strides and devices only: a check on values would have to wait for the
GPU. NaN and Inf in the data therefore take the arithmetic's course, as in the reference.

Checking nine tensors attribute by attribute takes Python as long as two launches. So the tensors of
a call that passed are remembered as a guard of TorchDynamo, which compares types, dtypes, devices,
sizes and strides with those of another call in one compiled function. What differs in any of them
is checked in Python, which then says what is wrong, if anything.
"""

from functools import lru_cache
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch

from .geometry import Geometry

try:
    TensorGuards: Any = torch._C._dynamo.guards.TensorGuards
except AttributeError:  # a private name: a PyTorch without it only takes longer
    TensorGuards = None

FP32_MAX = torch.finfo(torch.float32).max
ALIGNMENT = 16  # bytes, of every address
MOST_GUARDS = 256  # one per number of tokens


class _Passed(NamedTuple):
    """Tensors that were right, but for their addresses."""

    geometry: Geometry
    num_tokens: int
    device: int | None  # index of the CUDA device, None on the CPU
    guards: Any  # .check(*tensors): as those were, by torch._C._dynamo.guards.TensorGuards


_passed: dict[int, _Passed] = {}  # by the number of logits


@lru_cache(maxsize=64)
def _layout(geometry: Geometry, num_tokens: int) -> tuple:
    """(name, shape, dtype) of every tensor argument, in the definition's order."""
    e, h, i, block = (
        geometry.num_local_experts,
        geometry.hidden_size,
        geometry.intermediate_size,
        geometry.block,
    )
    fp8, fp32, bf16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16
    return (
        ("routing_logits", (num_tokens, geometry.num_experts), fp32),
        ("routing_bias", (geometry.num_experts,), bf16),
        ("hidden_states", (num_tokens, h), fp8),
        ("hidden_states_scale", (h // block, num_tokens), fp32),
        ("gemm1_weights", (e, 2 * i, h), fp8),
        ("gemm1_weights_scale", (e, 2 * i // block, h // block), fp32),
        ("gemm2_weights", (e, h, i), fp8),
        ("gemm2_weights_scale", (e, h // block, i // block), fp32),
        ("output", (num_tokens, h), bf16),
    )


def checked_scalars(local_expert_offset, routed_scaling_factor) -> tuple[int, float]:
    """The two scalar arguments as Python numbers; an integer will do for the factor.

    Raises TypeError for anything but an integer and a number: a bool, a str, None, a fraction, an
    array or a tensor, which would have to be waited for. Raises ValueError for a factor that is
    not finite in fp32.
    """
    if type(local_expert_offset) is int and type(routed_scaling_factor) is float:
        if abs(routed_scaling_factor) <= FP32_MAX:  # what is right needs no slow isinstance
            return local_expert_offset, routed_scaling_factor
    if not isinstance(local_expert_offset, Integral) or isinstance(local_expert_offset, bool):
        raise TypeError(
            "local_expert_offset: expected an int, got "
            f"{type(local_expert_offset).__name__} {local_expert_offset!r}"
        )
    if not isinstance(routed_scaling_factor, Real) or isinstance(routed_scaling_factor, bool):
        raise TypeError(
            "routed_scaling_factor: expected a float, got "
            f"{type(routed_scaling_factor).__name__} {routed_scaling_factor!r}"
        )
    magnitude: Any = abs(routed_scaling_factor)
    if not magnitude <= FP32_MAX:
        raise ValueError(
            f"routed_scaling_factor: expected a finite fp32 value, got {routed_scaling_factor}"
        )
    return int(local_expert_offset), float(routed_scaling_factor)


def check_arguments(
    geometry: Geometry, tensors: tuple, local_expert_offset: int
) -> tuple[list[int], int, int | None]:
    """Check the nine tensors (inputs in the definition's order, then output) and the offset.

    Returns the tensors' addresses, the number of tokens, and the index of the CUDA device or None
    for the CPU: what a call needs to know of them, as every look at a tensor takes its time.

    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, stride, device,
    address or offset; the message names the argument, what was expected and what was given.
    """
    logits = tensors[0]
    passed = _passed.get(logits.numel()) if isinstance(logits, torch.Tensor) else None
    if passed is None or passed.geometry is not geometry or not passed.guards.check(*tensors):
        passed = _check_layout(geometry, tensors)
    addresses = [tensor.data_ptr() for tensor in tensors]
    a, b, c, d, e, f, g, h, i = addresses
    if (a | b | c | d | e | f | g | h | i) % ALIGNMENT:
        _raise_misaligned(geometry, addresses)
    device = passed.device
    if device is not None and device != torch._C._cuda_getDevice():
        raise ValueError(
            f"routing_logits: expected the current device cuda:{torch.cuda.current_device()}, "
            f"got cuda:{device}"
        )
    last = geometry.num_experts - geometry.num_local_experts
    if not 0 <= local_expert_offset <= last:
        raise ValueError(
            f"local_expert_offset: expected a value in [0, {last}], got {local_expert_offset}"
        )
    return addresses, passed.num_tokens, device


def checked_inputs(geometry: Geometry, inputs: tuple, output: torch.Tensor) -> tuple:
    """The definition's ten inputs, in its order, the scalars as Python numbers.

    Raises what `check_arguments` and `checked_scalars` raise.
    """
    *tensors, offset, factor = inputs
    offset, factor = checked_scalars(offset, factor)
    check_arguments(geometry, (*tensors, output), offset)
    return (*tensors, offset, factor)


def require_cuda(device: torch.device) -> None:
    """Raise ValueError for tensors on the CPU; for solutions whose kernels need a GPU.

    An emulator of CuTe DSL's kernels, whose memory is the CPU's, says so in torch.cuda.emulated.
    """
    if device.type != "cuda" and not getattr(torch.cuda, "emulated", False):
        raise ValueError(f"routing_logits: expected a tensor on a CUDA device, got one on {device}")


def capturing(device: torch.device) -> bool:
    """Whether the current stream's calls are captured into a CUDA graph instead of run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError in a capture; for solutions that wait for the device in between."""
    if capturing(device):
        raise RuntimeError(
            "expected a call outside the capture of a CUDA graph, got one in it: this solution "
            "waits for the device to tell how many rows each expert has"
        )


def _check_layout(geometry: Geometry, tensors: tuple) -> _Passed:
    """Check all but addresses, tensor by tensor, and remember what passed."""
    device = _check_each(geometry, tensors)
    logits, index = tensors[0], device.index if device.type == "cuda" else None
    guards = None
    if TensorGuards is not None:
        guards = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
        )
    passed = _Passed(geometry, logits.shape[0], index, guards)
    if guards is not None:
        if len(_passed) >= MOST_GUARDS:
            _passed.clear()
        _passed[logits.numel()] = passed
    return passed


def _check_each(geometry: Geometry, tensors: tuple) -> torch.device:
    """Raise for the first tensor that is wrong; returns the device of all."""
    logits = tensors[0]
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"routing_logits: expected a torch.Tensor, got {type(logits).__name__}")
    if logits.dim() != 2:
        raise ValueError(
            f"routing_logits: expected shape [T, {geometry.num_experts}], got {list(logits.shape)}"
        )
    device = logits.device
    layout = _layout(geometry, logits.shape[0])
    for tensor, (name, shape, dtype) in zip(tensors, layout, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype is not dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())} "
                f"for shape {list(shape)}"
            )
        if tensor.device != device:
            raise ValueError(
                f"{name}: expected device {device}, that of routing_logits, got {tensor.device}"
            )
    return device


def _raise_misaligned(geometry: Geometry, addresses: list[int]) -> None:
    names = [name for name, _, _ in _layout(geometry, 1)]
    name, address = next((n, a) for n, a in zip(names, addresses, strict=True) if a % ALIGNMENT)
    raise ValueError(f"{name}: expected a {ALIGNMENT}-byte aligned address, got {address:#x}")
