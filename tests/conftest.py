"""What every test needs before torch, Triton or flashinfer-bench is imported."""

import os
import tempfile

import deepgemm_standin
import interpreter
import pytest
import sgl_standin
import torch
from child import SESSION

HAS_CUDA = torch.cuda.is_available()

if not HAS_CUDA:
    # Triton decides between compiler and interpreter when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    # CuTe DSL takes the architecture when it is imported. The emulator runs Hopper's kernels.
    os.environ["CUTE_DSL_ARCH"] = "sm_90a"
sgl_standin.install()
deepgemm_standin.install()
if not HAS_CUDA:
    interpreter.look_once()
    interpreter.few_programs()

# flashinfer-bench writes built sources and logs here, instead of into the user's cache.
CACHE = tempfile.TemporaryDirectory(prefix="flashinfer_bench_")
os.environ["FIB_CACHE_PATH"] = CACHE.name
os.environ["CUTE_DSL_DUMP_DIR"] = CACHE.name  # the PTX that a test keeps
# pytest-xdist's processes are children of the first and take over its folder.
os.environ.setdefault(SESSION, CACHE.name)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # They share the cores, also with what they start; each has a folder for temporary files.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    tempfile.tempdir = os.environ["TMPDIR"] = CACHE.name


@pytest.fixture(autouse=True)
def seeded():
    """Random inputs are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _launcher():
    from kept_launcher import KeptLauncher

    kept = KeptLauncher()
    yield kept
    kept.end()


@pytest.fixture
def kept_launcher(_launcher, monkeypatch):
    """Runners on the CPU do not start a launcher each."""
    from bundle.runs.cpu_runner import CpuRunner

    monkeypatch.setattr(CpuRunner, "_ready_launcher", lambda _: _launcher.ready())


def pytest_collection_modifyitems(config, items):
    """Skip what is marked `gpu` without a CUDA device, and what is marked `long` unless asked."""
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("long") and "long" not in config.getoption("markexpr"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: -m long"))
