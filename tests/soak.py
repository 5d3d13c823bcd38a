"""Random calls from several threads and streams against the fp32 reference, for as long as wanted.

    python tests/soak.py [--calls 10000] [--seconds 600] [--threads 4] [--seed 0] [SOLUTION]

SOLUTION is cutedsl_moe_fp8_v3 unless one is named. Needs a GPU. A call has a random number of
tokens, kind of routing, expert offset, size of scales, and one of its thread's two streams, which
differ in priority. Prints one JSON line: calls, tokens, (token, expert) pairs, seconds, mismatches,
the largest error in units of what requantising the intermediate to e4m3 may cost, and by how many
bytes the allocated memory grew after the first calls, without the workspaces that cuBLAS has for
the reference. Exit status 0 means that nothing was wrong. A hang is for `timeout` to find.

The reference multiplies in fp32 with weights that are dequantised once: every token of every call
is compared, and 10,000 calls take minutes.
"""

import argparse
import importlib
import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from solutions.common.geometry import DEEPSEEK_V3_EP8 as G  # noqa: E402
from solutions.torch_moe.main import dequantize, route  # noqa: E402

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
MOST_TOKENS = 5000
MEMORY = 40 << 30  # bytes; else the allocator would keep what each stream once needed, twice that
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


class Reference:
    """The layer in fp32 with these weights, which it keeps dequantised: 5.6 GB."""

    def __init__(self, given: dict) -> None:
        self.w1, self.w2 = (
            torch.stack([
                dequantize(*each, G.block)
                for each in zip(given[name], given[f"{name}_scale"], strict=True)
            ])
            for name in ("gemm1_weights", "gemm2_weights")
        )  # fmt: skip

    def __call__(self, a: dict) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The output, the error that each of its tokens is expected to have, and the number of
        (token, expert) pairs."""
        ids, shares = route(a["routing_logits"], a["routing_bias"], a["routed_scaling_factor"], G)
        ids = ids - a["local_expert_offset"]
        experts = ids.where((ids >= 0) & (ids < G.num_local_experts), G.num_local_experts)
        order = experts.flatten().argsort(stable=True)  # the rows, grouped by expert
        sizes = experts.flatten().bincount(minlength=G.num_local_experts).tolist()
        sizes = sizes[: G.num_local_experts]
        order = order[: sum(sizes)]
        tokens = order // G.top_k
        total = torch.zeros(a["hidden_states"].shape, device="cuda")
        variance = torch.zeros(len(total), device="cuda")
        if not len(tokens):
            return total, variance, 0
        scale = a["hidden_states_scale"].t()[tokens]
        x = dequantize(a["hidden_states"][tokens], scale, G.block)
        up, gate = self.multiply(x, sizes, self.w1).chunk(2, dim=-1)
        act = torch.nn.functional.silu(gate) * up
        del x, up, gate
        y = self.multiply(act, sizes, self.w2) * shares.flatten()[order, None]
        total.index_add_(0, tokens, y)
        variance.index_add_(0, tokens, (ROW_ERROR * y.norm(dim=1)) ** 2)
        return total, variance.sqrt(), len(tokens)

    @staticmethod
    def multiply(rows: torch.Tensor, sizes: list[int], weights: torch.Tensor) -> torch.Tensor:
        """Rows, grouped by expert, times those of the expert's weights [E, N, K]."""
        groups = zip(rows.split(sizes), weights, strict=True)
        return torch.cat([group @ weight.T for group, weight in groups if len(group)])


def worst_error(output: torch.Tensor, expected: torch.Tensor, error: torch.Tensor) -> float:
    """The largest error of a token, in units of the expected one; infinite for what is not 0 where
    it must be, and for NaN."""
    rounding = 2**-9 * expected.norm(dim=1)  # to bf16
    difference = (output.float() - expected).norm(dim=1)
    ratio = torch.where(difference == 0, 0.0, difference / (error + rounding))
    return ratio.nan_to_num(nan=math.inf).max().item()


class Soak:
    """Calls of a solution's `run` from several threads, and what is found."""

    def __init__(self, run: Callable, seed: int) -> None:
        self.run, self.seed = run, seed
        self.given = weights(torch.Generator("cuda").manual_seed(seed))
        self.reference = Reference(self.given)
        self.lock = threading.Lock()
        self.calls = self.tokens = self.pairs = 0
        self.worst = 0.0
        self.mismatches: list[dict] = []
        torch.cuda.synchronize()

    def round(self, most_calls: int, threads: int, end: float) -> int:
        """Go on until there are so many calls in all, or time.monotonic() is `end`; returns how
        many bytes are allocated then."""
        first = self.calls

        def work(number: int) -> None:
            rng = random.Random(f"{self.seed} {first} {number}")
            streams = [torch.cuda.Stream(priority=priority) for priority in (0, -1)]
            while time.monotonic() < end:
                with self.lock:
                    if self.calls >= most_calls:
                        return
                    self.calls += 1
                    call = self.calls
                with torch.cuda.stream(rng.choice(streams)):
                    self.call(rng, call)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        torch.cuda.synchronize()
        # torch keeps one per handle and stream, and each round has streams of its own
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated()

    def call(self, rng: random.Random, number: int) -> None:
        a = arguments_of(rng, self.given)
        output = torch.full(a["hidden_states"].shape, math.nan, dtype=BF16, device="cuda")
        self.run(*a.values(), output)
        expected, error, pairs = self.reference(a)
        worst = worst_error(output, expected, error)
        with self.lock:
            self.tokens += len(output)
            self.pairs += pairs
            self.worst = max(self.worst, worst)
            if not worst <= LIMIT:
                self.mismatches.append({"call": number, "T": len(output), "error": worst})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("solution", nargs="?", default="cutedsl_moe_fp8_v3")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    run = importlib.import_module(f"solutions.{options.solution}.main").run
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / total))
    soak = Soak(run, options.seed)
    begin = time.monotonic()
    end = begin + options.seconds
    first_calls = min(options.calls, options.threads * 10)
    before = soak.round(first_calls, options.threads, end)
    after = soak.round(options.calls, options.threads, end)
    print(json.dumps({
        "solution": options.solution, "gpu": torch.cuda.get_device_name(), "calls": soak.calls,
        "tokens": soak.tokens, "pairs": soak.pairs,
        "seconds": round(time.monotonic() - begin, 1), "mismatches": soak.mismatches,
        "worst": soak.worst, "memory_growth": after - before,
    }))  # fmt: skip
    return int(bool(soak.mismatches))


if __name__ == "__main__":
    sys.exit(main())
