"""scripts/run.py on a GPU that is not there, then scripts/compare.py on the traces.

Usage: python session_on_paper.py CAPABILITY TRACES [options of run.py]

PyTorch says that there is such a GPU, and what no Python can bring along here is found, empty. In
the place of the harness's worker, a solution is called by dry_run.py: it passes if it comes to a
launch. Prints what the two scripts print, and a JSON line of launches per solution.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from child import run_child

CAPABILITY, TRACES, OPTIONS = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
NAMES = {100: "NVIDIA B200", 103: "NVIDIA B300"}
RATES = ("--bandwidth-tbs", "8", "--fp8-tflops", "4500")  # which compare.py would measure
INSTALLED = ("sgl_kernel", "flashinfer_cubin")  # packages that are there only by name

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_name = lambda device=None: NAMES[CAPABILITY]
torch.cuda.get_device_capability = lambda device=None: divmod(CAPABILITY, 10)
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
    name=NAMES[CAPABILITY], uuid="none", multi_processor_count=148
)

import compare  # noqa: E402
import run  # noqa: E402
from bundle.harness import Runner, benchmark_with, evaluation  # noqa: E402
from bundle.runs import evaluator  # noqa: E402
from flashinfer_bench.data import Correctness, EvaluationStatus, Performance  # noqa: E402


class DryRunner(Runner):
    """In the place of the harness's."""

    def __init__(self) -> None:
        pass

    def run_workload(self, definition, workload, solutions, config, root) -> dict:
        return {solution.name: self.call(solution.name, workload) for solution in solutions}

    def call(self, name: str, workload):
        done = run_child("dry_run.py", name, str(CAPABILITY), str(workload.axes["seq_len"]))
        launches = [json.loads(line) for line in done.stdout.splitlines()]
        print(json.dumps({"solution": name, "launches": launches}), flush=True)
        if done.returncode or not launches:
            status = EvaluationStatus.RUNTIME_ERROR
            return evaluation(status, "cuda:0", done.stderr[-3000:] or "no launch")
        performance = Performance(latency_ms=1.0, reference_latency_ms=1.0, speedup_factor=1.0)
        return evaluation(EvaluationStatus.PASSED, "cuda:0", "", Correctness(), performance)

    def close(self) -> None:
        pass


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for package in INSTALLED:
            (Path(folder) / package).mkdir()
            (Path(folder) / package / "__init__.py").touch()
        sys.path.append(folder)  # what is really installed comes first
        evaluator.Benchmark = lambda trace_set, config: benchmark_with(
            DryRunner(), trace_set, config
        )
        sys.argv = ["run.py", "--traces", TRACES, *OPTIONS]
        status = run.main()
        compare.main([TRACES, *RATES])
    return status


if __name__ == "__main__":
    sys.exit(main())
