"""A device's compute capability decides which kernels it runs."""

import pytest
import torch

from solutions.common.cutedsl.architecture import backend_of


@pytest.fixture
def device_of(monkeypatch):
    """A device that says it has this compute capability."""
    backend_of.cache_clear()
    yield lambda *capability: monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability
    )
    backend_of.cache_clear()


@pytest.mark.parametrize("capability, backend", [((9, 0), 90), ((10, 0), 100), ((10, 3), 100)])
def test_backend(device_of, capability, backend):
    device_of(*capability)
    assert backend_of(0) == backend


def test_no_backend(device_of):
    device_of(12, 0)
    with pytest.raises(ValueError, match="device: expected .* 90, 100, 103, got 120"):
        backend_of(0)
