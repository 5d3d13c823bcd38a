"""Calls a solution on a GPU that is not there, and prints its launches: one JSON line each.

Usage: python dry_run.py SOLUTION CAPABILITY SEQ_LEN (capability: 80, 90, 100, 103)

PyTorch, Triton and the CuTe DSL are told of a device of that compute capability; the memory is the
host's, and all zeros. Everything up to a launch happens: dispatch, compilation of every kernel for
the device, the arguments. In a launch's place its name, grid and arguments are noted. What a
library would launch is one line by the library's name.
"""

import functools
import importlib
import json
import os
import sys
from types import ModuleType, SimpleNamespace

NAME, CAPABILITY, SEQ_LEN = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ["CUTE_DSL_ARCH"] = f"sm_{CAPABILITY}a"  # before the DSL is imported

import torch  # noqa: E402
import triton  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import CompiledKernel  # noqa: E402

SMS = {80: 108, 90: 132, 100: 148, 103: 148}[CAPABILITY]
DEVICE = torch.device("cuda", 0)


def note(kind: str, name: str, **facts) -> None:
    print(json.dumps({"kind": kind, "name": name, **facts}), flush=True)


class DeviceTensor(torch.Tensor):
    """A tensor on the CPU that says it is on DEVICE."""

    device, is_cuda = DEVICE, True


class OnDevice(TorchFunctionMode):
    """New tensors are DeviceTensors, and zero."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("device"), torch.device):
            kwargs["device"] = "cpu"
        if function is torch.empty:
            function = torch.zeros
        result = function(*args, **kwargs)
        return result.as_subclass(DeviceTensor) if type(result) is torch.Tensor else result


class Driver:
    """What Triton asks of a CUDA driver until it loads a kernel."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def init_handles(kernel: CompiledKernel) -> None:
    """In place of Triton's, which loads the kernel."""

    def launch(x, y, z, stream, function, metadata, a, b, c, *arguments):
        note("triton", kernel.name, grid=[x, y, z], arguments=len(arguments),
             shared=kernel.metadata.shared, arch=kernel.metadata.target.arch)  # fmt: skip

    kernel.function, kernel._run = 1, launch


def fake_cuda() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = torch._C._cuda_getDevice = lambda: 0
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)
    torch.cuda.get_device_capability = lambda device=None: divmod(CAPABILITY, 10)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=SMS
    )
    triton.runtime.driver.set_active(Driver())
    CompiledKernel._init_handles = init_handles


def fake_cutedsl() -> None:
    """The host code runs on a CUDA runtime that only notes launches."""
    import cutlass.cute as cute

    compile_really = cute.compile

    class Compile:
        def __getitem__(self, decorators):
            return functools.partial(self, decorators=decorators)

        def __call__(self, launch, *examples, decorators=(), **options):
            compile_really[decorators](launch, *examples, **options)

            def call(*arguments):
                note("cutedsl", f"{type(launch).__module__}.{type(launch).__name__}",
                     arguments=len(arguments))  # fmt: skip

            return call

    cute.compile = Compile()


def fake_libraries() -> None:
    """sgl-kernel's ops write nothing here; their parameters are the real ones."""
    import sgl_standin

    def noted(name: str):
        def op(*arguments):
            note("sgl_kernel", name, arguments=len(arguments))
            weights = torch.zeros(SEQ_LEN, 8)
            return [weights, weights.int()] if name == "moe_fused_gate" else None

        return op

    library = torch.library.Library("sgl_kernel", "DEF")
    for schema in sgl_standin.SCHEMAS:
        library.define(schema)
        name = schema.partition("(")[0]
        library.impl(name, noted(name), "CPU")
    module = ModuleType("sgl_kernel")
    module.__version__, module.library = "noted", library
    sys.modules["sgl_kernel"] = module


def inputs() -> dict:
    shapes = {
        "routing_logits": ((SEQ_LEN, 256), torch.float32),
        "routing_bias": ((256,), torch.bfloat16),
        "hidden_states": ((SEQ_LEN, 7168), torch.float8_e4m3fn),
        "hidden_states_scale": ((56, SEQ_LEN), torch.float32),
        "gemm1_weights": ((32, 4096, 7168), torch.float8_e4m3fn),
        "gemm1_weights_scale": ((32, 32, 56), torch.float32),
        "gemm2_weights": ((32, 7168, 2048), torch.float8_e4m3fn),
        "gemm2_weights_scale": ((32, 56, 16), torch.float32),
    }
    with OnDevice():
        tensors = {
            name: torch.empty(shape, dtype=dtype, device=DEVICE)
            for name, (shape, dtype) in shapes.items()
        }
    return tensors | {"local_expert_offset": 32, "routed_scaling_factor": 2.5}


def main() -> None:
    fake_cuda()
    fake_libraries()
    if NAME.startswith("cutedsl"):
        fake_cutedsl()
    arguments = inputs()
    with OnDevice():
        output = torch.empty(SEQ_LEN, 7168, dtype=torch.bfloat16, device=DEVICE)
    solution = importlib.import_module(f"solutions.{NAME}.main")
    if NAME == "flashinfer_moe":
        solution.blackwell.trtllm_fp8_block_scale_moe = lambda **given: (
            note("flashinfer", "trtllm_fp8_block_scale_moe", arguments=len(given)),
            output,
        )[1]
    with OnDevice():
        solution.run(*arguments.values(), output)


if __name__ == "__main__":
    main()
