"""How far a result is off, and how far fp8 itself must be: the layer in fp64, with and without
requantisation.

The inputs are fp8, so an fp32 or fp64 layer takes them as exact. What an fp8 kernel loses comes
from rounding the intermediate to e4m3 (unavoidable, and in the model) and from its own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..machine import Model
from .problem import BLOCK, FP8, dequantize

E4M3_MAX = 448.0
# atol / rtol: the published tolerance, the contest's, and two that fp8 does not meet
TOLERANCES = ((0.1, 0.2), (1.0, 0.3), (0.1, 0.05), (0.01, 0.01))


class Errors(Model):
    """Distance of a result from a reference, both taken as real numbers."""

    cosine: float
    relative_l2: float
    max_absolute: float
    max_relative: float
    matched: dict[str, float]
    """Share of elements within either tolerance, by `atol / rtol`."""


def errors_of(result: torch.Tensor, reference: torch.Tensor) -> Errors:
    """Distance of a result from a reference of the same shape, in fp64.

    An element matches if its absolute or its relative error is within tolerance, as in
    flashinfer-bench; a NaN in the result matches nothing.
    """
    x, y = result.double(), reference.double()
    absolute = (x - y).abs()
    relative = absolute / (y.abs() + 1e-8)
    return Errors(
        cosine=F.cosine_similarity(x.flatten(), y.flatten(), dim=0).item(),
        relative_l2=((x - y).norm() / y.norm().clamp_min(1e-30)).item(),
        max_absolute=absolute.max().item(),
        max_relative=relative.max().item(),
        matched={
            f"{atol:g} / {rtol:g}": ((absolute <= atol) | (relative <= rtol)).double().mean().item()
            for atol, rtol in TOLERANCES
        },
    )


def differing_share(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of elements whose bits differ; equal NaNs are equal."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[one.element_size()]
    return (one.view(integers) != other.view(integers)).double().mean().item()


def quantize(values: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, K] -> e4m3 [rows, K] and scales [rows, K / block] with values = codes * scales."""
    blocks = values.unflatten(1, (-1, block))
    scales = blocks.abs().amax(dim=2).clamp_min(1e-10) / E4M3_MAX
    # fp64 -> e4m3 goes through fp32, whose rounding is 2^20 times finer
    codes = (blocks / scales[:, :, None]).float().to(FP8)
    return codes.flatten(1), scales


@dataclass(frozen=True)
class Layer:
    """A layer's results stage by stage; row p is one (token, local expert) pair."""

    tokens: torch.Tensor
    """int64 [P], of each row."""
    weights: torch.Tensor
    """[P], combine weight of each row."""
    activation: torch.Tensor
    """[P, I]: after SwiGLU, before requantisation."""
    requantized: torch.Tensor
    """[P, I]: what GEMM2 multiplies."""
    output: torch.Tensor
    """[T, H], not rounded."""


@torch.no_grad()
def simulate(
    arguments: dict, route: Callable, block: int = 0, dtype: torch.dtype = torch.float64
) -> Layer:
    """The layer of any geometry in `dtype`, expert by expert.

    route: the reference's, (logits, bias, factor) -> ids [T, top_k], weights [T, top_k].
    block: columns that share a scale when the intermediate is requantised; 0: it is not.
    """
    hidden, scale = arguments["hidden_states"], arguments["hidden_states_scale"]
    ids, weights = route(
        arguments["routing_logits"], arguments["routing_bias"], arguments["routed_scaling_factor"]
    )
    output = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    rows: list[tuple[torch.Tensor, ...]] = []
    for expert in range(arguments["gemm1_weights"].shape[0]):
        tokens, slots = (ids == arguments["local_expert_offset"] + expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        w1 = dequantize(
            arguments["gemm1_weights"][expert], arguments["gemm1_weights_scale"][expert], dtype
        )
        x = hidden[tokens].to(dtype).unflatten(1, (-1, BLOCK)) * scale.t()[tokens, :, None]
        up, gate = (x.flatten(1).to(dtype) @ w1.T).chunk(2, dim=1)
        del w1
        activation = F.silu(gate) * up
        requantized = activation
        if block:
            codes, scales = quantize(activation, block)
            requantized = codes.to(dtype) * scales.repeat_interleave(block, dim=1)
        w2 = dequantize(
            arguments["gemm2_weights"][expert], arguments["gemm2_weights_scale"][expert], dtype
        )
        weight = weights[tokens, slots].to(dtype)
        output.index_add_(0, tokens, requantized @ w2.T * weight[:, None])
        rows.append((tokens, weight, activation, requantized))
    tokens, weight, activation, requantized = _joined(rows, arguments, dtype)
    return Layer(tokens, weight, activation, requantized, output)


def _joined(rows: Iterable[tuple], arguments: dict, dtype: torch.dtype) -> list[torch.Tensor]:
    """The experts' rows one after the other; without any, empty tensors."""
    parts = [*zip(*rows, strict=True)]
    if parts:
        return [torch.cat(part) for part in parts]
    device, i = arguments["hidden_states"].device, arguments["gemm2_weights"].shape[2]
    empty = torch.empty(0, i, dtype=dtype, device=device)
    return [empty[:, 0].long(), empty[:, 0], empty, empty]


# The intermediate of a solution ----------------------------------------------------------------


def identity_gemm2(arguments: dict) -> dict:
    """The arguments with identity matrices as GEMM2's weights: the first I columns of the output
    are then the requantised intermediate itself, times the combine weight.
    """
    weights = arguments["gemm2_weights"]
    identity = torch.eye(*weights.shape[1:], device=weights.device).to(FP8)
    return arguments | {
        "gemm2_weights": identity.expand_as(weights).contiguous(),
        "gemm2_weights_scale": torch.ones_like(arguments["gemm2_weights_scale"]),
    }


def seen_intermediate(output: torch.Tensor, model: Layer) -> torch.Tensor:
    """The intermediate [P, I] in an output under `identity_gemm2`, up to bf16 rounding.

    Every token must have at most one local expert; the rows are those of `model`.
    """
    columns = model.activation.shape[1]
    return output[model.tokens, :columns].double() / model.weights[:, None].double()


def code_mismatch(intermediate: torch.Tensor, model: Layer, block: int) -> float:
    """Share of e4m3 codes of an intermediate that are not those of the model with this block.

    bf16's rounding, 2^-9, cannot move a value between neighbouring codes, 2^-4 apart or more.
    """
    codes, scales = quantize(model.activation, block)
    scaled = intermediate.unflatten(1, (-1, block)) / scales[:, :, None]
    seen = scaled.flatten(1).float().clamp(-E4M3_MAX, E4M3_MAX).to(FP8)
    # -0 and 0 are the same value
    return (seen.float() != codes.float()).double().mean().item()
