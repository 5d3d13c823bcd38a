"""Compiles the Triton kernels of every shipped configuration without a GPU; prints JSON lines.

A process of its own: the test session interprets kernels, and Triton decides that at its import.
Usage: python compile_triton.py CAPABILITY (90 or 100)
"""

import json
import re
import sys
from pathlib import Path

import torch
import triton
from sass import inspect, usage_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from solutions.common.geometry import DEEPSEEK_V3_EP8 as G
from solutions.common.triton_stages import combine, gather, routing, swiglu
from solutions.deepgemm_moe import gather as deepgemm_gather
from solutions.deepgemm_moe import swiglu as deepgemm_swiglu
from solutions.sglang_fp8_blockwise_moe import permute as sgl_permute
from solutions.triton_fused_moe_v3 import main
from solutions.triton_fused_moe_v3 import tiles as triton_tiles

TYPES = {
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}
INSTRUCTIONS = ("QGMMA", "UTCQMMA", "UTMALDG")  # that a GEMM may have


def compile_kernel(launcher, constants: tuple, capability: int, num_warps: int):
    """The compiled kernel for 16-byte aligned pointers and unspecialised numbers."""
    kernel = launcher._kernel
    names = kernel.arg_names
    runtime = names[: len(names) - len(constants)]
    signature = dict.fromkeys(names, "constexpr")
    for name in runtime:
        if name in launcher._pointers:
            signature[name] = TYPES[launcher._pointers[name]]
        else:
            signature[name] = {
                "w": f"tensordesc<fp8e4nv[{G.block}, {G.block}]>",
                "routed_scaling_factor": "fp32",
                "factor": "fp32",
            }.get(name, "i32")
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(runtime) if signature[n][0] == "*"
    }
    values = {(len(runtime) + i,): value for i, value in enumerate(constants)}
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps}
    )


def report(name: str, compiled, folder: Path) -> None:
    cubin, counts = compiled.asm["cubin"], {}
    if name.startswith("gemm"):
        usage, sass = inspect(cubin, folder)
        counts = {i: len(re.findall(rf"\b{i}\b", sass)) for i in INSTRUCTIONS}
    else:
        usage = usage_of(cubin, folder)
    stack = re.search(r"STACK:(\d+)", usage)
    print(json.dumps({"kernel": name, "shared": compiled.metadata.shared,
                      "stack": int(stack.group(1)), **counts}))  # fmt: skip


def shipped(capability: int):
    """(name, launcher, constants, warps) of every kernel a call can launch."""
    h, i, experts = G.hidden_size, G.intermediate_size, G.num_local_experts
    for tokens in (1, 1000, 10_000):
        block = routing.blocks_for(tokens)
        select = (block.tokens, G.num_experts, experts, G.num_groups, G.num_top_groups, G.top_k)
        yield f"select_{block.tokens}", routing._select_picks, (*select, True), block.warps
        permute = (block.tokens, block.chunk, experts, G.top_k, 1, True)
        yield f"permute_{block.tokens}", routing._permute, permute, 4
    for weighted in (False, True):
        constants = (h, G.top_k, 1024, weighted, True)
        yield f"combine_{'weighted' if weighted else 'plain'}", combine._combine, constants, 4
    yield "gather", gather._gather, (h, i, experts, G.top_k, G.block, 8192, True), 4
    yield "swiglu_quantize", swiglu._swiglu_quantize, (i, experts, G.block, True), swiglu.NUM_WARPS
    if capability == 90:  # DeepGEMM is for Hopper alone
        constants = (h, G.top_k, G.block, 8192, True)
        yield "deepgemm_gather", deepgemm_gather._gather, constants, 4
        for rows in (16, 32, 64, 128):
            constants = (i, experts, G.block, rows, True)
            warps = swiglu.NUM_WARPS
            yield f"deepgemm_swiglu_{rows}", deepgemm_swiglu._swiglu_quantize, constants, warps
            block = routing.blocks_for(1)
            permute = (block.tokens, block.chunk, experts, G.top_k, rows, True)
            yield f"permute_to_{rows}", routing._permute, permute, 4
    few, many = sgl_permute.blocks_for(1), sgl_permute.blocks_for(1000)
    yield "sgl_count", sgl_permute._count, (many.tokens * G.top_k, experts, True), many.warps
    for block in (few, many):
        pairs = block.tokens * G.top_k
        constants = (
            pairs,
            block.chunk,
            G.num_experts,
            experts,
            G.top_k,
            h,
            8192,
            block == many,
            True,
        )
        yield f"sgl_permute_{block.tokens}", sgl_permute._permute, constants, block.warps
    for tiles in triton_tiles.SM_90 if capability == 90 else triton_tiles.SM_100:
        for name, launcher in (("gemm1", main._gemm1), ("gemm2", main._gemm2)):
            tile = getattr(tiles, name)
            halves = (tile.halves,) if name == "gemm1" else ()
            shape = (h, i, experts, G.block, tile.block_t, tile.swap_ab)
            constants = (*shape, *halves, tile.num_stages, True)
            yield f"{name}_{tiles.max_tokens}", launcher, constants, tile.num_warps


if __name__ == "__main__":
    import tempfile

    capability = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for name, launcher, constants, warps in shipped(capability):
            compiled = compile_kernel(launcher, constants, capability, warps)
            report(name, compiled, Path(folder))
