"""Run the whole layer of cutedsl_moe_fp8_v3 in the emulator; one JSON line of facts per call.

Arguments: the backend (90 or 100), then calls as JSON objects, see `Call`. All are run in one
process, which compiles a configuration for a geometry once.
"""

import ctypes
import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache

BACKEND = int(sys.argv[1]) if len(sys.argv) > 1 else 100
SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH=f"sm_{BACKEND}a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from emulator import (  # noqa: E402
    EAGER,
    LAZY,
    Buffers,
    Emulator,
    HostProgram,
    emulated_launch,
    mutants,
    random_schedules,
)
from solutions.common.cutedsl.config import (  # noqa: E402
    CONFIGS,
    CONFIGS_100,
    Candidate,
    candidates_for,
    choose,
    only,
)
from solutions.common.cutedsl.layer import MoeLayer  # noqa: E402
from solutions.common.cutedsl.operands import scratch_size  # noqa: E402
from solutions.common.geometry import Geometry  # noqa: E402
from solutions.torch_moe.main import dequantize  # noqa: E402

EXPERTS, LOCAL, OFFSET, FACTOR, TOP_K = 256, 32, 64, 2.5, 8
E4M3_MAX, MIN_AMAX = 448.0, 1e-10
FP8 = torch.float8_e4m3fn
MOST_INSTRUCTIONS = 10_000_000  # of a kernel without a synchronisation
ALL = CONFIGS if BACKEND == 90 else CONFIGS_100


@dataclass(frozen=True)
class Call:
    """One call of the layer in some orders.

    config: number among the backend's configurations, or -1: the device chooses among those for so
    many tokens, or for kernel_for tokens if these are more. hot: a local expert that every token
    prefers, or -1; local: how much the tokens prefer the local experts to others. random: how many
    random orders, besides eager and lazy; race: with the race checker. blocks: multiprocessors of
    the device. mutate: also leave out every synchronisation of the GEMMs' kernel in turn.
    """

    config: int
    tokens: int
    hidden: int = 512
    intermediate: int = 256
    hot: int = -1
    local: float = 1.5
    random: int = 0
    race: bool = False
    blocks: int = 4
    mutate: bool = False
    kernel_for: int = 0
    seed: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry(EXPERTS, LOCAL, self.hidden, self.intermediate, TOP_K, 4, 8)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        if self.config < 0:
            return candidates_for(max(self.tokens, self.kernel_for), BACKEND)
        return only(ALL[self.config])


@cache
def program(
    geometry: Geometry, candidates: tuple[Candidate, ...], blocks: int
) -> tuple[MoeLayer, HostProgram]:
    layer = MoeLayer(geometry, candidates, blocks, BACKEND)
    return layer, HostProgram(layer.compile(cute.KeepPTX))


def inputs_of(call: Call, buffers: Buffers) -> dict[str, torch.Tensor]:
    """Random inputs in `buffers`; most tokens choose local experts, scales may be negative."""
    g, generator = call.geometry, torch.Generator().manual_seed(call.seed)
    h, i, t = g.hidden_size, g.intermediate_size, call.tokens

    def codes(*shape):
        """All e4m3 values of less than 2, as often as each other: a byte each, also on the way."""
        bits = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return bits.bitwise_and_(0xBF).view(FP8)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    logits = normal(t, EXPERTS)
    logits[:, OFFSET : OFFSET + LOCAL] += call.local
    if call.hot >= 0:
        logits[:, OFFSET + call.hot] += 6
    inputs = {
        "logits": logits,
        "bias": (0.1 * normal(EXPERTS)).to(torch.bfloat16),
        "hidden": normal(t, h).to(FP8),
        "hidden_scale": normal(h // 128, t),
        "w1": codes(LOCAL, 2 * i, h),
        "w1_scale": normal(LOCAL, 2 * i // 128, h // 128) / h**0.5,
        "w2": codes(LOCAL, h, i),
        "w2_scale": normal(LOCAL, h // 128, i // 128) / i**0.5,
    }
    for name, tensor in inputs.items():
        bits = torch.from_numpy(buffers.array(_bits(tensor)))
        inputs[name] = bits.view(tensor.dtype)
    return inputs


def routed(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The token's experts and weights, as the definition's reference says."""
    s = inputs["logits"].sigmoid()
    biased = s + inputs["bias"].float()
    groups = biased.view(len(s), 8, -1)
    best = groups.topk(2, dim=2).values.sum(2).topk(4, dim=1).indices
    allowed = torch.zeros(len(s), 8).scatter_(1, best, 1.0).repeat_interleave(EXPERTS // 8, 1)
    chosen = biased.masked_fill(allowed == 0, float("-inf")).topk(TOP_K, dim=1).indices
    weights = s.gather(1, chosen)
    return chosen, weights / (weights.sum(1, keepdim=True) + 1e-20) * FACTOR


def rows_per_expert(inputs: dict[str, torch.Tensor]) -> list[int]:
    """Of the local experts."""
    chosen, _ = routed(inputs)
    return torch.bincount(chosen.flatten(), minlength=EXPERTS)[OFFSET : OFFSET + LOCAL].tolist()


def reference(inputs: dict[str, torch.Tensor], span: int) -> torch.Tensor:
    """The layer in fp64 but for the activation, which is e4m3 with a scale per `span` columns."""
    chosen, weights = routed(inputs)
    x = dequantize(inputs["hidden"], inputs["hidden_scale"].t(), 128).double()
    output = torch.zeros_like(x)
    for expert in range(LOCAL):
        tokens, place = (chosen == OFFSET + expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        w1 = dequantize(inputs["w1"][expert], inputs["w1_scale"][expert], 128).double()
        w2 = dequantize(inputs["w2"][expert], inputs["w2_scale"][expert], 128).double()
        up, gate = (x[tokens] @ w1.t()).chunk(2, dim=1)
        act = (up * torch.nn.functional.silu(gate)).view(len(tokens), -1, span)
        scale = act.abs().amax(2, keepdim=True).clamp(min=MIN_AMAX) / E4M3_MAX
        act = ((act / scale).float().to(FP8).double() * scale).flatten(1)
        output[tokens] += act @ w2.t() * weights[tokens, place, None].double()
    return output


def run(call: Call) -> dict:
    layer, host = program(call.geometry, call.candidates, call.blocks)
    buffers = Buffers()
    inputs = inputs_of(call, buffers)
    groups = layer.scratch(call.tokens)
    scratch = buffers.unwritten((int(scratch_size(groups)),), np.uint8)
    output = buffers.unwritten((call.tokens, call.hidden), np.uint16)
    arguments = [ctypes.c_void_p(tensor.data_ptr()) for tensor in inputs.values()]
    arguments += [ctypes.c_void_p(array.ctypes.data) for array in (scratch, output)]
    arguments += [ctypes.c_int32(call.tokens), ctypes.c_int32(OFFSET), ctypes.c_float(FACTOR)]
    arguments.append(ctypes.c_void_p(0))

    def emulate(emulator: Emulator) -> list:
        scratch[:], output[:] = 0xFF, 0xFFFF
        return emulated_launch(host, arguments, buffers.ranges, emulator)

    digests, start = [], time.perf_counter()
    schedules = [EAGER, LAZY, *random_schedules(call.random)]
    for schedule in schedules:
        runs = emulate(Emulator(schedule, race=call.race))
        digests.append(_digest(output))
    seconds = time.perf_counter() - start
    result = torch.from_numpy(output.view(np.int16)).view(torch.bfloat16).double()
    rows = rows_per_expert(inputs)
    chosen = choose(layer.candidates, rows)
    expected = reference(inputs, chosen.act_columns)
    facts = {
        **asdict(call),
        "chosen": ALL.index(chosen),
        "rows": rows,
        "error": ((result - expected).norm() / expected.norm()).item(),
        "digests": digests,
        "integers": _integers(groups, scratch, call.tokens),
        "output": result.flatten().tolist() if call.tokens * call.hidden <= 2**16 else None,
        "kernels": [
            {"multiply_adds": run.multiply_adds, "instructions": run.instructions, **run.counters}
            for run in runs
        ],
        "counts": dict(runs[-1].counts),
        "seconds": round(seconds / len(schedules), 2),
    }
    if call.mutate:

        def written(emulator: Emulator) -> str:
            emulate(emulator)
            return _digest(output)

        kernel = host.module.program(runs[-1].config.kernel)
        found = mutants(kernel, written, MOST_INSTRUCTIONS)
        facts["mutants"] = [(each.form, each.line, each.noticed or "nothing") for each in found]
    return facts


def _bits(tensor: torch.Tensor) -> np.ndarray:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return tensor.contiguous().view(integers[tensor.element_size()]).numpy()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _integers(groups, scratch: np.ndarray, tokens: int) -> str:
    """Digest of what the routing has put out: offsets, the rows' tokens and the tokens' rows."""
    place, views = 0, {}
    for group in groups:
        for name, buffer in zip(group._fields, group, strict=True):
            views[name] = scratch[place : place + int(buffer.size())].view(np.int32)
            place += int(buffer.size())
    offsets = views["expert_offsets"][: LOCAL + 1]
    rows = views["row_token"][: offsets[-1]], views["token_rows"][: tokens * TOP_K]
    return _digest(np.concatenate([offsets, *rows]))


def main():
    os.chdir(SCRATCH)
    for text in sys.argv[2:]:
        print(json.dumps(run(Call(**json.loads(text)))), flush=True)


if __name__ == "__main__":
    main()
