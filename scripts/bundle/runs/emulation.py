"""Solutions in CuTe DSL on a machine without a GPU: their kernels run on the emulator."""

from __future__ import annotations

import sys

from flashinfer_bench.data import Definition, Solution, SupportedLanguages

from ..paths import ROOT
from ..sandbox.contract import Subject

ARCHITECTURES = {"sm_90a": 90, "sm_100a": 100}
"""What can be emulated, and the compute capability of its GPUs."""
PACKAGE, MODULE = "nvidia-cutlass-dsl", "cutlass"
"""CuTe DSL's, which the solutions need that can be emulated."""


def why_not(modules: list[str], capabilities: list[int], architecture: str | None) -> str | None:
    """Why a solution that needs these modules and one of these compute capabilities (any, if there
    are none) cannot be emulated; None if it can."""
    if architecture is None or MODULE not in modules:
        return "needs a CUDA device"
    if capabilities and ARCHITECTURES[architecture] not in capabilities:
        wanted = " or ".join(f"sm_{capability}" for capability in capabilities)
        return f"needs {wanted}, {architecture} is emulated (see --arch)"
    try:
        _build().compiler()
    except _build().CompilerMissing as error:
        return f"needs a CUDA device, or a C compiler: {error}"
    return None


def is_interpreted(solution: Solution) -> bool:
    """Without a GPU, by Triton."""
    return solution.spec.language is SupportedLanguages.TRITON


def is_simulated(solution: Solution) -> bool:
    """Without a GPU: interpreted or emulated."""
    return is_interpreted(solution) or PACKAGE in solution.spec.dependencies


def subject(definition: Definition, solution: Solution, architecture: str | None) -> Subject:
    """What the solution's process is started for; compiles the emulator's runtime if need be."""
    if architecture is None or PACKAGE not in solution.spec.dependencies:
        return Subject(definition, solution)
    build = _build()
    build.runtime()
    return Subject(definition, solution, False, architecture, str(build.cache_folder()))


def _build():
    """emulator.build; the emulator lies beside the scripts."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from emulator import build

    return build
