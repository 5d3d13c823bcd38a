#!/usr/bin/env python3
"""Build the part of FlashInfer's Hopper module that solutions/flashinfer_moe calls.

FlashInfer would compile the whole module at the first call: 182 sources in 0.6.13, an estimated 20
minutes on 16 cores. Of these the layer runs two: its grouped GEMMs, fp8_blockscale_gemm.cu, and
one of the 25 runner classes, that of bf16 activations and fp8 weights. This script compiles these
and what they need, 15 sources, 6 minutes on one core, and puts functions that raise where the
other runners were. FlashInfer finds the result where it looks for ahead-of-time builds, in its own
package, and loads it as it is.

Run it again after an interruption: what is compiled stays. MAX_JOBS limits the compilations at a
time, each of which takes up to 4 GB. Needs CUDA's nvcc and headers; more flags for the compilers
can be given in FLASHINFER_EXTRA_CFLAGS, FLASHINFER_EXTRA_CUDAFLAGS and FLASHINFER_EXTRA_LDFLAGS.
A GPU is not needed.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

INSTANTIATION = """\
#include "fused_moe/cutlass_backend/cutlass_fused_moe_kernels.cuh"
#include "moe_kernels.h"

namespace tensorrt_llm::kernels::cutlass_kernels {
template class CutlassMoeFCRunner<__nv_bfloat16, __nv_fp8_e4m3, __nv_bfloat16>;
}
"""
RAISING = """\
#include <stdexcept>
#define RAISING(symbol)                                                             \\
  extern "C" void symbol() {                                                        \\
    throw std::runtime_error(                                                       \\
        #symbol " is left out: this build of FlashInfer's module holds the runner " \\
                "of bf16 activations and block-scaled fp8 weights only");           \\
  }
"""


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    # FlashInfer calls ninja, which pip installs beside Python
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        from flashinfer.jit import dsv3_optimizations, fused_moe
    except ModuleNotFoundError as error:
        if error.name != "flashinfer":
            raise
        print('error: FlashInfer is missing: pip install ".[flashinfer]"', file=sys.stderr)
        return 2
    install(dsv3_optimizations.gen_dsv3_fused_routing_module(), build)
    install(fused_moe.gen_cutlass_fused_moe_sm90_module(), build_reduced)
    return 0


def install(module, build_library) -> None:
    """Put the library that build_library(module) makes where FlashInfer looks for it first."""
    if module.is_aot:
        print(f"{module.name}: {module.get_library_path()} is there already")
        return
    library = build_library(module)
    module.aot_path.parent.mkdir(parents=True, exist_ok=True)
    # a copy under another name first: nobody must load half a library
    partial = module.aot_path.with_suffix(".partial")
    shutil.copyfile(library, partial)
    partial.rename(module.aot_path)
    print(f"{module.name}: installed as {module.aot_path}")


def build(module) -> Path:
    """Compile and link a FlashInfer JitSpec's sources; ninja skips what is up to date."""
    sources = len(module.sources)
    print(f"{module.name}: {sources} sources, objects in {module.build_dir}", flush=True)
    module.build(verbose=False)
    return module.jit_library_path


def build_reduced(module) -> Path:
    """`build`, less the runners that the layer does not call."""
    reduced = dataclasses.replace(module, name=f"{module.name}_block_scale")
    reduced.build_dir.mkdir(parents=True, exist_ok=True)
    instantiation = reduced.build_dir / "block_scale_instantiation.cu"
    write(instantiation, INSTANTIATION)
    reduced.sources = [*needed(module.sources), instantiation]
    # A shared library may lack symbols when it is linked: this one tells which ones it lacks.
    raising = reduced.build_dir / "missing_runners.cpp"
    write(raising, raising_functions(missing_symbols(build(reduced))))
    reduced.sources.append(raising)
    return build(reduced)


def needed(sources: list[Path]) -> list[Path]:
    """The sources without the kernels and runners of other types."""
    return [
        source
        for source in sources
        if not source.name.endswith(".generated.cu")
        and source.name != "cutlass_fused_moe_instantiation.cu"
        and (source.name == "moe_gemm_kernels_bf16_fp8.cu"
             or not source.name.startswith("moe_gemm_kernels_"))
    ]  # fmt: skip


def missing_symbols(library: Path) -> list[str]:
    """Mangled names of TensorRT-LLM's functions that a library calls and nobody defines."""
    command = ["nm", "--dynamic", "--undefined-only", "--format=just-symbols", str(library)]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return sorted(symbol for symbol in symbols if "12tensorrt_llm" in symbol)


def raising_functions(symbols: list[str]) -> str:
    """C++ source of a function per mangled name that raises."""
    return RAISING + "".join(f"RAISING({symbol})\n" for symbol in symbols)


def write(path: Path, text: str) -> None:
    """Write a source unless it is the same already, so that ninja need not compile it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
