"""Argument checks of a solution's entry function.

They read shapes, dtypes, strides and devices only: a check on values would have to wait for the
GPU. NaN and Inf in the data therefore take the arithmetic's course, as in the reference.
"""

from functools import lru_cache
from numbers import Integral, Real

import torch

from .geometry import Geometry

FP32_MAX = torch.finfo(torch.float32).max


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
    if not abs(routed_scaling_factor) <= FP32_MAX:
        raise ValueError(
            f"routed_scaling_factor: expected a finite fp32 value, got {routed_scaling_factor}"
        )
    return int(local_expert_offset), float(routed_scaling_factor)


def check_arguments(geometry: Geometry, tensors: tuple, local_expert_offset: int) -> None:
    """Check the nine tensors (inputs in the definition's order, then output) and the offset.

    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, stride, device or
    offset; the message names the argument, what was expected and what was given.
    """
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
        if tensor.data_ptr() % 16:
            raise ValueError(
                f"{name}: expected a 16-byte aligned address, got {tensor.data_ptr():#x}"
            )
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ValueError(
            f"routing_logits: expected the current device cuda:{torch.cuda.current_device()}, "
            f"got {device}"
        )
    last = geometry.num_experts - geometry.num_local_experts
    if not 0 <= local_expert_offset <= last:
        raise ValueError(
            f"local_expert_offset: expected a value in [0, {last}], got {local_expert_offset}"
        )
