"""Run the padded GEMM's tiles for sm_100a in the emulator; a JSON line of facts per tile and case.

Arguments: how many random orders, then cases as K:ROWS, the numbers of rows of the experts with
commas between them. A tile is compiled once and run on every case, eagerly, as late as possible and
in the random orders, with the race checker, on the batch as v1 and as v2 pads it: what lies past
an expert's rows is NaN or holds other values.
"""

import ctypes
import json
import os
import sys
import tempfile
from itertools import accumulate

SCRATCH = tempfile.mkdtemp()
os.environ.update(CUTE_DSL_ARCH="sm_100a", CUTE_DSL_DUMP_DIR=SCRATCH)

import cutlass.cute as cute  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from padded_batch import N, digest, operands  # noqa: E402

from emulator import (  # noqa: E402
    EAGER,
    LAZY,
    Buffers,
    Emulator,
    HostProgram,
    emulated_launch,
    random_schedules,
)
from solutions.common.cutedsl.sm100.padded_gemm import TILES, PaddedGemmKernel  # noqa: E402
from solutions.torch_moe.main import dequantize  # noqa: E402

BLOCKS = 4  # multiprocessors of the device


def emulate(host: HostProgram, rows: list[int], k: int, random: int) -> dict:
    offsets = np.array([0, *accumulate(rows)] + [0] * (32 - len(rows)), np.int32)
    digests, errors = [], []
    for padding_is_nan in (True, False):
        a, a_scale, b, b_scale = operands(k, rows, padding_is_nan)
        buffers = Buffers()
        bits = [tensor.view(torch.uint8).numpy() for tensor in (a, a_scale, b, b_scale)]
        arrays = [buffers.array(array) for array in (*bits, offsets)]
        c = buffers.unwritten((len(rows), a.shape[1], N), np.int16)
        arguments = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, c)]
        arguments += [ctypes.c_int32(size) for size in (len(rows), a.shape[1], N, k)]
        arguments.append(ctypes.c_void_p(0))
        for schedule in [EAGER, LAZY, *random_schedules(random)]:
            c[:] = -1
            (run,) = emulated_launch(host, arguments, buffers.ranges, Emulator(schedule, race=True))
            digests.append(digest(c, rows))
        result = torch.from_numpy(c).view(torch.bfloat16).double()
        for expert, count in enumerate(rows):
            if count:
                x = dequantize(a[expert, :count], a_scale[:, expert, :count].t(), 128).double()
                expected = x @ dequantize(b[expert], b_scale[expert], 128).double().t()
                error = (result[expert, :count] - expected).norm() / expected.norm()
                errors.append(error.item())
    return {
        "digests": digests,
        "error": max(errors),
        "multiply_adds": run.multiply_adds,
        "counts": dict(run.counts),
    }


def main():
    random, *cases = sys.argv[1:]
    os.chdir(SCRATCH)
    for tile in TILES:
        host = HostProgram(PaddedGemmKernel(tile, BLOCKS).compile(cute.KeepPTX))
        for case in cases:
            k, rows = case.split(":")
            facts = emulate(host, [int(count) for count in rows.split(",")], int(k), int(random))
            print(json.dumps({"tile": str(tile), "case": case} | facts), flush=True)


if __name__ == "__main__":
    main()
