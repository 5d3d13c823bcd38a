"""Which stage of the layer a GPU kernel belongs to, told by its name.

Solutions are not changed for this: torch.profiler sees the kernels that they launch. One table
serves all solutions; a kernel that it does not know is shown as `other`, by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from ..machine import Model
from .profiler import Launch

ROUTING = "routing"
GEMM1 = "GEMM1"
SWIGLU = "SwiGLU + requant"
GEMM2 = "GEMM2"
FINALIZE = "finalize"
OTHER = "other"
STAGES = (ROUTING, GEMM1, SWIGLU, GEMM2, FINALIZE, OTHER)
JOIN = " + "

# Told by its place: a GEMM kernel that serves both GEMMs is GEMM1 before and GEMM2 after SwiGLU;
# quantising belongs to SwiGLU after it, and before it to none of the stages.
GEMM = "GEMM1 or GEMM2"
QUANTIZE = "quantise"

# (pattern searched in the kernel's name, stage or stages in one kernel); the first match counts.
# `routing` includes the permutation: ranking, gathering rows, offsets of the experts.
KERNELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # this bundle's Triton kernels
    (r"^(select|permute|route|count|scan|gather)\w*_kernel", (ROUTING,)),
    (r"^gemm1_swiglu\w*_kernel", (GEMM1, SWIGLU)),
    (r"^gemm1\w*_kernel", (GEMM1,)),
    (r"^gemm2\w*_kernel", (GEMM2,)),
    (r"^(swiglu|silu)\w*_kernel", (SWIGLU,)),
    (r"^(combine|finalize)\w*_kernel", (FINALIZE,)),
    # this bundle's CuTe DSL kernels: kernel_cutlass_<function>_<module and class>...
    (r"^kernel_cutlass.*(Moe|Adaptive)Gemms", (GEMM1, SWIGLU, GEMM2, FINALIZE)),
    (r"^kernel_cutlass.*RoutePermute", (ROUTING,)),
    (r"^kernel_cutlass.*Gemm", (GEMM,)),
    # sgl-kernel and FlashInfer
    (r"apply_shuffle_mul_sum|finalizeMoeRouting|moe_sum", (FINALIZE,)),
    (r"moe_fused_gate|compute_problem_sizes|compute_expert_(blockscale_)?offsets", (ROUTING,)),
    (r"compute_arg_sorts|shuffle_?[rR]ows|deepseek_v3_topk|noaux_tc|[rR]outing", (ROUTING,)),
    (r"(fused|block)(Build|Merge|Expert)\w*Kernel|expandInputRows", (ROUTING,)),
    (r"act_and_mul|silu|doActivation", (SWIGLU,)),
    (r"per_token_group_quant|scale_1x128", (QUANTIZE,)),
    (r"get_group_gemm_starts|groupwise_gemm|es_sm90|GemmUniversal", (GEMM,)),
    # PyTorch
    (r"[sS]igmoid|[sS]ort|gatherTopK|scatter_gather", (ROUTING,)),
    (r"indexFunc\w*Index|index_add", (FINALIZE,)),
    (r"gemm|gemv|sm\d+_xmma|nvjet|cutlass::", (GEMM,)),
)


class KernelTime(Model):
    """All launches of one kernel in one call of a solution."""

    name: str
    stage: str
    launches: float
    us: float
    """Median over the calls of the time in which no earlier kernel was still running."""


def stages_of(names: Sequence[str]) -> list[str]:
    """The stage of each kernel of one call, in the order of launch.

    A solution that visits one expert after the other repeats the stages: after a finalizing
    kernel the next GEMM is GEMM1 again.
    """
    labels, after_swiglu = [], False
    for name in names:
        found = next((stages for pattern, stages in KERNELS if re.search(pattern, name)), (OTHER,))
        if found == (GEMM,):
            found = (GEMM2,) if after_swiglu else (GEMM1,)
        elif found == (QUANTIZE,):
            found = (SWIGLU,) if after_swiglu else (OTHER,)
        after_swiglu = (after_swiglu or SWIGLU in found) and FINALIZE not in found
        labels.append(JOIN.join(found))
    return labels


def parts(label: str) -> frozenset[str]:
    """The stages in a label; `SwiGLU + requant` is one."""
    return frozenset(stage for stage in STAGES if stage in label)


def position(label: str) -> int:
    """Sorts labels in the order of the pipeline."""
    return min(STAGES.index(stage) for stage in parts(label))


def summarize(calls: Sequence[Sequence[Launch]]) -> tuple[dict[str, float], list[KernelTime]]:
    """Medians over the calls: microseconds by stage, in pipeline order, and by kernel."""
    by_stage: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(calls))
    by_kernel: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(calls))
    launches: dict[tuple[str, str], int] = defaultdict(int)
    for number, call in enumerate(calls):
        labels = stages_of([launch.name for launch in call])
        for launch, label in zip(call, labels, strict=True):
            by_stage[label][number] += launch.us
            by_kernel[launch.name, label][number] += launch.us
            launches[launch.name, label] += 1
    kernels = [
        KernelTime(name=name, stage=label, launches=launches[name, label] / len(calls), us=us)
        for (name, label), us in _medians(by_kernel)
    ]
    return dict(sorted(_medians(by_stage), key=lambda item: position(item[0]))), kernels


def _medians(times: dict) -> Iterable[tuple]:
    return [(key, median(values)) for key, values in times.items()]


def comparable_us(label: str, stages: dict[str, float]) -> float | None:
    """The time that another solution's `stages` need for what `label` does; None if one of its
    kernels does part of that and something else, too.
    """
    wanted = parts(label)
    sharing = {name: us for name, us in stages.items() if parts(name) & wanted}
    if not sharing or any(not parts(name) <= wanted for name in sharing):
        return None
    return sum(sharing.values())
