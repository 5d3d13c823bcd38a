"""Which solutions can run here, and what is said about those that cannot."""

import pytest
from bundle.dataset.manifest import Requires
from bundle.hardware import Device
from bundle.runs import requirements
from bundle.runs.requirements import current_device, why_not

CPU = Device("CPU", None)
A100 = Device("NVIDIA A100", 80)
H100 = Device("NVIDIA H100", 90)
EMAIL = {"compute_capability": 90, "package": "email", "install": "make it"}


@pytest.mark.parametrize(
    ("requires", "device", "reason"),
    [
        ({}, H100, None),
        ({}, CPU, "needs a CUDA device"),
        ({"cpu": True}, CPU, None),
        ({"cpu": True}, H100, None),
        ({"compute_capabilities": [90, 100]}, H100, None),
        (
            {"compute_capabilities": [90, 100]},
            A100,
            "needs sm_90 or sm_100, this is sm_80 (NVIDIA A100)",
        ),
        ({"cpu": True, "compute_capabilities": [90]}, CPU, None),
        ({"modules": ["json", "email.mime"]}, H100, None),
        (
            {"modules": ["json", "no_such_one"], "install": "pip install it"},
            H100,
            "needs the module no_such_one: pip install it",
        ),
        (
            {"modules": ["none.at_all", "nothing"], "install": "pip install both"},
            CPU,
            "needs a CUDA device; needs the modules none.at_all, nothing: pip install both",
        ),
        ({"files": [EMAIL | {"path": "mime/base.py"}]}, H100, None),
        (
            {"files": [EMAIL | {"path": "no/such.so"}]},
            H100,
            "needs no/such.so in email: make it",
        ),
        ({"files": [EMAIL | {"path": "no/such.so"}]}, A100, None),
        (
            {"files": [EMAIL | {"package": "no_such_one", "path": "a.so"}]},
            H100,
            "needs a.so in no_such_one: make it",
        ),
    ],
)
def test_why_not(requires, device, reason):
    assert why_not(Requires(**requires), device) == reason


CUTE_DSL = Requires(modules=["cutlass"], compute_capabilities=[90, 100])


def test_cute_dsl_without_a_compiler_is_refused_with_the_reason(monkeypatch, tmp_path):
    device = Device("CPU", None, "sm_90a")
    monkeypatch.setattr(requirements, "find_spec", lambda name: name)  # is installed
    assert why_not(CUTE_DSL, device) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert why_not(CUTE_DSL, device) == (
        "needs a CUDA device, or a C compiler: the emulator needs a C compiler (cc, gcc or clang, "
        "or $CC): none found"
    )


@pytest.mark.gpu
def test_current_device_is_the_gpu():
    device = current_device()
    assert device.is_cuda and device.compute_capability >= 70
