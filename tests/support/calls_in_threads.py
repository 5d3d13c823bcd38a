"""Eight threads call the solution named by the first argument, a stream each, at the same time: the
first calls of the process, then warm ones. Prints what went wrong, a JSON list of strings."""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import deepgemm_standin
import sgl_standin
import torch

sgl_standin.install()
deepgemm_standin.install()  # for what `layers` imports, as in conftest.py

from real_layer import real_inputs, run_real  # noqa: E402

from solutions.torch_moe import main as torch_moe  # noqa: E402

THREADS, WARM_CALLS, TOLERANCE = 8, 20, 0.05
SIZES = (58, 901, 7, 300)  # a compilation each in cutedsl_moe_fp8_v3


def main():
    run = importlib.import_module(f"solutions.{sys.argv[1]}.main").run
    calls = []
    for seq_len in SIZES:
        arguments = real_inputs(seq_len)
        calls.append((arguments, run_real(torch_moe.run, arguments).double()))
    torch.cuda.synchronize()
    start = Barrier(THREADS)

    def work(number: int, repeats: int) -> float:
        """Largest relative error."""
        arguments, expected = calls[number % len(calls)]
        with torch.cuda.stream(torch.cuda.Stream()):
            start.wait()
            outputs = [run_real(run, arguments) for _ in range(repeats)]
            errors = [(output.double() - expected).norm() / expected.norm() for output in outputs]
            return max(error.item() for error in errors)

    wrong = []
    for repeats in (1, WARM_CALLS):
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(work, number, repeats) for number in range(THREADS)]
        for future in futures:
            error = future.exception()
            if error is not None or not future.result() < TOLERANCE:
                wrong.append(f"{repeats} calls: {error or future.result()!r}")
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
