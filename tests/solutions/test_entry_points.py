"""`run` of every solution: what it refuses, and that a call without tokens is none."""

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from bundle.dataset.packing import read_config, solution_folders
from bundle.paths import ROOT
from layers import DEVICE

SOLUTIONS = {folder.name: read_config(folder) for folder in solution_folders(ROOT)}
SHAPES = {
    "routing_logits": (("T", 256), torch.float32),
    "routing_bias": ((256,), torch.bfloat16),
    "hidden_states": (("T", 7168), torch.float8_e4m3fn),
    "hidden_states_scale": ((56, "T"), torch.float32),
    "gemm1_weights": ((32, 4096, 7168), torch.float8_e4m3fn),
    "gemm1_weights_scale": ((32, 32, 56), torch.float32),
    "gemm2_weights": ((32, 7168, 2048), torch.float8_e4m3fn),
    "gemm2_weights_scale": ((32, 56, 16), torch.float32),
    "local_expert_offset": 32,
    "routed_scaling_factor": 2.5,
    "output": (("T", 7168), torch.bfloat16),
}


def arguments(num_tokens: int) -> dict:
    """Of the real geometry; the memory is never touched."""

    def value(wanted):
        if not isinstance(wanted, tuple):
            return wanted
        shape, dtype = wanted
        sizes = [num_tokens if size == "T" else size for size in shape]
        return torch.empty(sizes, dtype=dtype, device=DEVICE)

    return {name: value(wanted) for name, wanted in SHAPES.items()}


@pytest.fixture(params=SOLUTIONS, scope="module")
def run(request):
    """The entry point, where the modules that it needs are there or have a stand-in."""
    config = SOLUTIONS[request.param]
    for module in config.requires.modules:
        if find_spec(module) is None:
            pytest.skip(f"needs the module {module}: {config.requires.install}")
    file, _, function = config.entry_point.partition("::")
    name = file.removesuffix(".py").replace("/", ".")
    return getattr(import_module(f"solutions.{request.param}.{name}"), function)


def test_a_call_without_tokens(run):
    run(**arguments(0))


@pytest.mark.parametrize("name", SHAPES)
def test_refused_by_name(run, name):
    """A wrong value in each place: every solution hands its arguments to the check in order."""
    wrong = arguments(0)
    if isinstance(wrong[name], torch.Tensor):
        shape = wrong[name].shape
        wrong[name] = torch.empty((*shape, 1), dtype=wrong[name].dtype, device=DEVICE)
        with pytest.raises(ValueError, match=f"^{name}: expected shape .*got "):
            run(**wrong)
        wrong[name] = list(shape)
        with pytest.raises(TypeError, match=f"^{name}: expected a torch.Tensor, got list"):
            run(**wrong)
    else:
        wrong[name] = "many"
        with pytest.raises(TypeError, match=f"^{name}: expected .*got str"):
            run(**wrong)


@pytest.mark.parametrize("offset", [-1, 225])
def test_local_experts_that_are_not_there(run, offset):
    wrong = arguments(0) | {"local_expert_offset": offset}
    with pytest.raises(ValueError, match=rf"local_expert_offset: .*\[0, 224\], got {offset}"):
        run(**wrong)


@pytest.mark.skipif(DEVICE == "cuda", reason="is about machines without a GPU")
def test_cpu_tensors_are_refused_by_name(run, monkeypatch):
    """Unless the solution runs there; in the tests Triton's does, interpreted."""
    name = run.__module__.split(".")[1]
    if SOLUTIONS[name].requires.cpu:
        pytest.skip("runs on the CPU")
    monkeypatch.setattr(sys.modules[run.__module__], "INTERPRETING", False, raising=False)
    with pytest.raises(
        ValueError, match="^routing_logits: expected a tensor on a CUDA device, got"
    ):
        run(**arguments(1))
