"""Can this solution run on this machine? If not, why, and how to install what it lacks."""

from importlib.util import find_spec
from pathlib import Path

import torch
from flashinfer_bench.data import Solution

from ..dataset.manifest import CONFIG_FILE, RequiredFile, Requires, read_config
from ..hardware import Device
from ..paths import ROOT
from . import emulation


def current_device() -> Device:
    """The first CUDA device, or the CPU."""
    if not torch.cuda.is_available():
        return Device("CPU", None)
    major, minor = torch.cuda.get_device_capability(0)
    return Device(torch.cuda.get_device_name(0), 10 * major + minor)


def why_not(requires: Requires, device: Device) -> str | None:
    """Why a solution with these requirements cannot run on `device`; None if it can."""
    reasons = []
    supported = requires.compute_capabilities
    if not device.is_cuda and not requires.cpu:
        reason = emulation.why_not(requires.modules, supported, device.emulated)
        if reason is not None:
            reasons.append(reason)
    elif device.is_cuda and supported and device.compute_capability not in supported:
        wanted = " or ".join(f"sm_{capability}" for capability in supported)
        reasons.append(f"needs {wanted}, this is sm_{device.compute_capability} ({device.name})")
    missing = [module for module in requires.modules if not _is_importable(module)]
    if missing:
        noun = "module" if len(missing) == 1 else "modules"
        reasons.append(f"needs the {noun} {', '.join(missing)}: {requires.install}")
    for file in requires.files:
        if file.compute_capability == device.compute_capability and not _has_file(file):
            reasons.append(f"needs {file.path} in {file.package}: {file.install}")
    return "; ".join(reasons) or None


def refusals(solutions: list[Solution], root: Path, device: Device) -> dict[str, str]:
    """Those of a dataset's solutions that cannot run on this machine, and why."""
    reasons = {s.name: why_not(requirements_of(s, root), device) for s in solutions}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def requirements_of(solution: Solution, root: Path) -> Requires:
    """From solution.toml: the dataset's own, or this bundle's for a solution that was packed into
    another dataset. One that is nothing but JSON tells by its target hardware if it needs CUDA.
    """
    for folder in (root / "solutions" / solution.name, ROOT / "solutions" / solution.name):
        if (folder / CONFIG_FILE).exists():
            return read_config(folder).requires
    return Requires(cpu="cpu" in solution.spec.target_hardware)


def _has_file(file: RequiredFile) -> bool:
    spec = find_spec(file.package) if _is_importable(file.package) else None
    folders = (spec and spec.submodule_search_locations) or []
    return any((Path(folder) / file.path).exists() for folder in folders)


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
