"""Compile the padded GEMM's smaller tiles all at once, a thread each, then one after the other;
prints a JSON object with the hashes of both."""

import json
import os
import tempfile
from hashlib import sha256
from threading import Barrier, Thread

os.environ.update(CUTE_DSL_ARCH="sm_90a", CUTE_DSL_DUMP_DIR=tempfile.mkdtemp())

import cutlass.cute as cute

from solutions.common.cutedsl.sm90 import padded_gemm

TILES = padded_gemm.TILES[-2:]  # two meet; more would only take longer


def compiled(tile) -> str:
    kernel = padded_gemm.PaddedGemmKernel(tile, num_sms=132).compile(cute.KeepCUBIN)
    return sha256(kernel.artifacts.CUBIN).hexdigest()


def main():
    os.chdir(os.environ["CUTE_DSL_DUMP_DIR"])  # where the compiler leaves its files
    start = Barrier(len(TILES))
    together = {}

    def work(tile):
        start.wait()
        together[tile] = compiled(tile)

    threads = [Thread(target=work, args=(tile,)) for tile in TILES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [compiled(tile) for tile in TILES]
    print(json.dumps({"alone": alone, "together": [together.get(tile) for tile in TILES]}))


if __name__ == "__main__":
    main()
