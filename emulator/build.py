"""Compiles the C runtime once per compiler, processor and source text."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import CompilerMissing, EmulatorError
from .tables import mapped

RUNTIME = Path(__file__).parent / "runtime"
_FLAGS: tuple[str, ...] = (
    "-O3", "-march=native", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno",
    "-Wno-psabi", "-shared", "-fPIC",
)  # fmt: skip
if platform.machine() == "x86_64":
    _FLAGS = (*_FLAGS, "-mprefer-vector-width=512")


def compiler() -> str:
    """The C compiler: $CC, or else cc, gcc or clang. Raises CompilerMissing."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = name and shutil.which(name)
        if path:
            return path
    raise CompilerMissing("the emulator needs a C compiler (cc, gcc or clang, or $CC): none found")


def cache_folder() -> Path:
    """Where compiled libraries stay: $MOE_EMULATOR_CACHE, or else in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("MOE_EMULATOR_CACHE") or base / "moe-bundle-emulator")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compile_library(output: Path, sources: list[Path], flags: tuple[str, ...] = _FLAGS) -> None:
    """Raises EmulatorError with the compiler's own words."""
    command = [compiler(), *flags, "-o", str(output), *map(str, sources), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(f"{' '.join(command)} failed:\n{done.stderr}")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, compiled at its first use on this machine."""
    sources = sorted(RUNTIME.glob("*.c"))
    texts = [path.read_text() for path in sorted(RUNTIME.glob("*.[ch]"))]
    version = subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    key = hashlib.sha256("\0".join([*texts, version, _processor(), *_FLAGS]).encode()).hexdigest()
    path = cache_folder() / f"runtime-{key[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compile_library(Path(folder) / path.name, sources)
            (Path(folder) / path.name).replace(path)  # another process may do the same
    library = ctypes.CDLL(str(path))
    for name in ("ex2", "rcp"):
        table = mapped(name, path.parent)
        _tables.append(table)
        ctypes.c_void_p.in_dll(library, f"{name}_table").value = table.ctypes.data
    return library


_tables: list = []  # the runtime holds their addresses


@functools.cache
def operations() -> dict[str, int]:
    """Number of each of the runtime's operations by its name."""
    names = ctypes.POINTER(ctypes.c_char_p)
    table = ctypes.cast(
        ctypes.addressof(ctypes.c_char_p.in_dll(runtime(), "OPERATION_NAMES")), names
    )
    found: dict[str, int] = {}
    while table[len(found)] is not None:
        found[table[len(found)].decode()] = len(found)
    return found
