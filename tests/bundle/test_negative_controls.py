"""Wrong solutions get the status they deserve: from our CPU runner as from the harness."""

from dataclasses import replace
from unittest import mock

import pytest
from bundle.dataset.loading import load_dataset
from bundle.runs.cpu_runner import build_baseline, cpu_benchmark, default_limits
from bundle.runs.jobs import Job, evaluate
from bundle.runs.trials import tensors_of
from bundle.sandbox.changes import apply
from bundle.sandbox.launcher import Launcher
from flashinfer_bench.bench import Benchmark, BenchmarkConfig
from flashinfer_bench.bench.evaluators import LowBitEvaluator, resolve_evaluator
from flashinfer_bench.compile import BuilderRegistry, BuildError
from flashinfer_bench.data import EvaluationStatus, Solution, SourceFile, TraceSet
from torch import full, nan
from toy_bundle import DEFINITION, control, make_bundle, packed

# no_write comes first: the harness leaves outputs uninitialised, and on CUDA a later no-op might be
# given the memory of an earlier right answer
EXPECTED = {
    "no_write": "INCORRECT_NUMERICAL",
    "good": "PASSED",
    "scaled": "INCORRECT_NUMERICAL",
    "zeroed": "INCORRECT_NUMERICAL",
    "nan": "INCORRECT_NUMERICAL",
    "wrong_dtype": "INCORRECT_DTYPE",
    "wrong_shape": "INCORRECT_SHAPE",
    "raises": "RUNTIME_ERROR",
    "wrong_signature": "COMPILE_ERROR",
    "missing_module": "COMPILE_ERROR",
}
# The harness's own tolerances: the bundle's would let 6 % of zeroed elements pass.
CONFIG = BenchmarkConfig(
    warmup_runs=0, iterations=1, num_trials=1, rtol=1e-2, atol=1e-2, timeout_seconds=60
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """(root, solutions by name); the ones that pack refuses are changed after packing."""
    refused = {"wrong_signature", "missing_module"}
    mains = {name: control("good" if name in refused else name) for name in EXPECTED}
    root = make_bundle(tmp_path_factory.mktemp("bundle"), mains, num_tokens=(8,))
    solutions = {solution.name: solution for solution in packed(root)}
    broken = {"wrong_signature": control("wrong_signature"), "missing_module": "import no_such_one"}
    for name, text in broken.items():
        sources = [SourceFile(path=f"{name}/main.py", content=text)]
        solutions[name] = Solution(**{**dict(solutions[name]), "sources": sources})
    return root, solutions


def run_statuses(benchmark, root, solutions) -> dict[str, str]:
    dataset = load_dataset(root)
    job = Job(dataset.definitions[DEFINITION], dataset.workloads[DEFINITION][0], solutions)
    traces = evaluate(benchmark, job)
    return {trace.solution: trace.evaluation.status.value for trace in traces}


def test_cpu_runner(bundle):
    root, solutions = bundle
    benchmark = cpu_benchmark(TraceSet(root=root), CONFIG)
    try:
        ordered = [solutions[name] for name in EXPECTED]
        assert run_statuses(benchmark, root, ordered) == EXPECTED
    finally:
        benchmark.close()


@pytest.mark.gpu
def test_harness_on_cuda(bundle):
    root, solutions = bundle
    benchmark = Benchmark(TraceSet(root=root), CONFIG)
    try:
        ordered = [solutions[name] for name in EXPECTED]
        assert run_statuses(benchmark, root, ordered) == EXPECTED
    finally:
        benchmark.close()


@pytest.fixture(scope="module")
def baseline(bundle):
    """Inputs and expected outputs of one call."""
    root, _ = bundle
    dataset = load_dataset(root)
    definition = dataset.definitions[DEFINITION]
    launcher = Launcher.start()
    try:
        (trial,) = build_baseline(
            definition,
            dataset.workloads[DEFINITION][0].workload,
            CONFIG,
            root,
            launcher,
            default_limits(CONFIG),
        ).trials
    finally:
        launcher.close()
    call = trial.calls[-1]
    apply(call.change, tensors_of(trial.inputs))
    return definition, [trial.inputs], [call.expected]


@pytest.mark.parametrize("name", EXPECTED)
def test_harness_evaluator_on_cpu(bundle, baseline, name, tmp_path):
    """The real LowBitEvaluator, whose only use of CUDA in these checks is to synchronise."""
    _, solutions = bundle
    definition, inputs, outputs = baseline
    assert resolve_evaluator(definition) is LowBitEvaluator
    try:
        runnable = BuilderRegistry.get_instance().build(definition, solutions[name])
    except BuildError:
        assert EXPECTED[name] == "COMPILE_ERROR"
        return
    # torch.empty may return memory that holds the right answer; the harness would then pass a no-op
    poison = mock.patch("torch.empty", lambda *a, **k: full(*a, nan, **k))
    with mock.patch("torch.cuda.synchronize"), poison:
        _, evaluation = LowBitEvaluator.check_correctness(
            definition,
            runnable,
            inputs,
            outputs,
            CONFIG,
            str(tmp_path / "log"),
            "cpu",
        )
    assert (evaluation.status.value if evaluation else "PASSED") == EXPECTED[name]


def test_tolerance_decides(bundle):
    """6.25 % of zeroed elements: within a matched ratio of 0.93, not within the default of 0.95."""
    root, solutions = bundle
    config = replace(CONFIG, required_matched_ratio=0.93)
    benchmark = cpu_benchmark(TraceSet(root=root), config)
    try:
        statuses = run_statuses(benchmark, root, [solutions["zeroed"]])
    finally:
        benchmark.close()
    assert statuses == {"zeroed": "PASSED"}


@pytest.mark.parametrize("make_benchmark", [
    cpu_benchmark,
    pytest.param(Benchmark, marks=pytest.mark.gpu),
])  # fmt: skip
def test_crash_and_hang_stop_no_other(make_benchmark, tmp_path):
    """The worker dies twice; the solutions after it are judged all the same.

    On CUDA this is where 0.1.2 blames them for its dead baseline, and where they are run again.
    """
    names = ["exits", "good", "hangs", "scaled"]
    root = make_bundle(tmp_path, {name: control(name) for name in names}, num_tokens=(8,))
    solutions = {solution.name: solution for solution in packed(root)}
    ordered = [solutions[name] for name in names]
    benchmark = make_benchmark(TraceSet(root=root), replace(CONFIG, timeout_seconds=10))
    try:
        statuses = run_statuses(benchmark, root, ordered)
    finally:
        benchmark.close()
    assert statuses == {
        "exits": EvaluationStatus.RUNTIME_ERROR.value,
        "good": EvaluationStatus.PASSED.value,
        "hangs": EvaluationStatus.TIMEOUT.value,
        "scaled": EvaluationStatus.INCORRECT_NUMERICAL.value,
    }
