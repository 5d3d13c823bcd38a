"""Random calls from several threads and streams against the fp32 reference, for as long as wanted.

    python tests/soak.py [--calls 10000] [--seconds 600] [--threads 4] [--seed 0] [SOLUTION]

SOLUTION is cutedsl_moe_fp8_v3 unless one is named. Needs a GPU. A call has a random number of
tokens, kind of routing, expert offset and size of scales. Prints one JSON line: calls, tokens,
mismatches, the largest error in units of what requantising the intermediate to e4m3 may cost, and
by how many bytes the allocated memory grew after the first calls, without the workspaces that
cuBLAS has for the reference. Exit status 0 means that nothing was wrong. A hang is for `timeout` to
find.
"""

import argparse
import importlib
import json
import math
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from solutions.common.geometry import DEEPSEEK_V3_EP8 as G  # noqa: E402
from solutions.torch_moe.main import dequantize, route  # noqa: E402

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
MOST_TOKENS = 3000
# e4m3 has 3 bits of mantissa: its rounding errors have a standard deviation of 2.6 % in the worst
# binade; summed over GEMM2's columns they are a row's error relative to its own size, in fp64
# 0.024. Errors of different rows are independent.
ROW_ERROR = 0.024
LIMIT = 2.5  # of a token's error, in units of the expected one
KINDS = ("normal", "coarse", "hot expert", "all local", "none local", "very negative")


def scales(generator, spread: float, *shape: int) -> torch.Tensor:
    sign = torch.randn(shape, generator=generator, device="cuda")
    return sign * torch.exp(spread * torch.randn(shape, generator=generator, device="cuda"))


def weights(generator) -> dict:
    def codes(*shape):
        return torch.randn(shape, generator=generator, device="cuda").to(FP8)

    e, h, i = G.num_local_experts, G.hidden_size, G.intermediate_size
    return {
        "gemm1_weights": torch.stack([codes(2 * i, h) for _ in range(e)]),
        "gemm1_weights_scale": 0.1 * scales(generator, 0.3, e, 2 * i // 128, h // 128),
        "gemm2_weights": torch.stack([codes(h, i) for _ in range(e)]),
        "gemm2_weights_scale": 0.1 * scales(generator, 0.3, e, h // 128, i // 128),
    }


def arguments_of(rng: random.Random, given: dict) -> dict:
    """Of one call, in the definition's order."""
    generator = torch.Generator("cuda").manual_seed(rng.randrange(2**31))
    tokens = max(1, int(math.exp(rng.uniform(0, math.log(MOST_TOKENS)))))
    offset, kind = rng.randrange(G.num_experts - G.num_local_experts + 1), rng.choice(KINDS)
    local = slice(offset, offset + G.num_local_experts)
    logits = torch.randn(tokens, G.num_experts, generator=generator, device="cuda")
    bias = 0.1 * torch.randn(G.num_experts, generator=generator, device="cuda")
    if kind == "coarse":
        logits = logits.round()
    elif kind == "hot expert":
        bias[offset + rng.randrange(G.num_local_experts)] += 2.0
    elif kind == "all local":
        bias[local] += 4.0
    elif kind == "none local":
        logits[:, local] -= 30.0
    elif kind == "very negative":
        logits -= rng.uniform(10.0, 60.0)
    hidden = torch.randn(tokens, G.hidden_size, generator=generator, device="cuda").to(FP8)
    hidden_scale = scales(generator, rng.choice((0.0, 1.0)), G.hidden_size // 128, tokens)
    return {
        "routing_logits": logits,
        "routing_bias": bias.to(BF16),
        "hidden_states": hidden,
        "hidden_states_scale": hidden_scale,
        **given,
        "local_expert_offset": offset,
        "routed_scaling_factor": rng.choice((1.0, 2.5)),
    }


def reference(a: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The output in fp32, and the error that each of its tokens is expected to have."""
    ids, shares = route(a["routing_logits"], a["routing_bias"], a["routed_scaling_factor"], G)
    total = torch.zeros(a["hidden_states"].shape, device="cuda")
    variance = torch.zeros(len(total), device="cuda")
    for expert in range(G.num_local_experts):
        tokens, slots = (ids == a["local_expert_offset"] + expert).nonzero(as_tuple=True)
        if tokens.numel() == 0:
            continue
        scale = a["hidden_states_scale"].t()[tokens]
        x = dequantize(a["hidden_states"][tokens], scale, G.block)
        w1 = dequantize(a["gemm1_weights"][expert], a["gemm1_weights_scale"][expert], G.block)
        w2 = dequantize(a["gemm2_weights"][expert], a["gemm2_weights_scale"][expert], G.block)
        up, gate = (x @ w1.T).chunk(2, dim=-1)
        rows = (torch.nn.functional.silu(gate) * up) @ w2.T * shares[tokens, slots, None]
        total.index_add_(0, tokens, rows)
        variance.index_add_(0, tokens, (ROW_ERROR * rows.norm(dim=1)) ** 2)
    return total, variance.sqrt()


def worst_error(output: torch.Tensor, a: dict) -> float:
    """The largest error of a token, in units of the expected one; infinite for what is not 0 where
    it must be, and for NaN."""
    expected, error = reference(a)
    rounding = 2**-9 * expected.norm(dim=1)  # to bf16
    difference = (output.float() - expected).norm(dim=1)
    ratio = torch.where(difference == 0, 0.0, difference / (error + rounding))
    return ratio.nan_to_num(nan=math.inf).max().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("solution", nargs="?", default="cutedsl_moe_fp8_v3")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    run = importlib.import_module(f"solutions.{options.solution}.main").run
    given = weights(torch.Generator("cuda").manual_seed(options.seed))
    torch.cuda.synchronize()
    end, lock = time.monotonic() + options.seconds, threading.Lock()
    told = {"calls": 0, "tokens": 0, "mismatches": [], "worst": 0.0}
    memory = []

    def work(number: int) -> None:
        rng = random.Random(f"{options.seed} {len(memory)} {number}")
        with torch.cuda.stream(torch.cuda.Stream(priority=-(number % 2))):
            while time.monotonic() < end:
                with lock:
                    if told["calls"] >= options.calls:
                        return
                    told["calls"] += 1
                    call = told["calls"]
                a = arguments_of(rng, given)
                shape = a["hidden_states"].shape
                output = torch.full(shape, math.nan, dtype=BF16, device="cuda")
                run(*a.values(), output)
                error = worst_error(output, a)
                with lock:
                    told["tokens"] += len(output)
                    told["worst"] = max(told["worst"], error)
                    if not error <= LIMIT:
                        told["mismatches"].append({"call": call, "T": len(output), "error": error})
                del a, output

    def round_of(calls: int) -> None:
        """Up to this many calls in all, then what stays allocated."""
        most, options.calls = options.calls, min(calls, options.calls)
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(work, range(options.threads)))
        options.calls = most
        torch.cuda.synchronize()
        # torch keeps one per handle and stream, and each round has streams of its own
        torch._C._cuda_clearCublasWorkspaces()
        memory.append(torch.cuda.memory_allocated())

    round_of(options.threads * 10)
    round_of(options.calls)
    told["memory_growth"] = memory[1] - memory[0]
    print(json.dumps(told))
    return int(bool(told["mismatches"]))


if __name__ == "__main__":
    sys.exit(main())
