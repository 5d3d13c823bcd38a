"""The host side of a compiled CuTe DSL kernel, run without a GPU.

The host code is exported as an object file and linked with functions that take the CUDA runtime's
place: they succeed, and keep what the launch was given.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

# cudaLaunchConfig_t: grid, block, dynamic shared memory, stream, attributes
SOURCE = """
#include <string.h>
#include <stddef.h>
typedef struct { unsigned grid[3], block[3]; size_t shared; void *stream, *attributes;
                 unsigned count; } Config;
Config config;
unsigned char descriptors[16][128];
int wanted;

int _cudaLaunchKernelEx(const Config *given, void *kernel, void **arguments) {
    config = *given;
    for (int i = 0; i < wanted; i++) memcpy(descriptors[i], arguments[i], 64);
    return 0;
}
int _cudaLibraryLoadData(void **library) { *library = (void *)1; return 0; }
int _cudaLibraryGetKernel(void **kernel) { *kernel = (void *)1; return 0; }
int _cuKernelGetAttribute(int *value) { *value = 0; return 0; }
int _cudaDeviceGetAttribute(int *value) { *value = 232448; return 0; }
int _cudaGetDevice(int *device) { *device = 0; return 0; }
int _cudaFuncSetAttribute() { return 0; }
int _cudaKernelSetAttributeForDevice() { return 0; }
"""


class MockRuntime:
    """A kernel compiled without TVM-FFI, ready to be launched any number of times."""

    built = 0

    def __init__(self, compiled, folder: Path):
        MockRuntime.built += 1
        name = f"kernel{MockRuntime.built}"
        compiled.export_to_c(file_path=str(folder), file_name=name, function_prefix=name)
        (folder / "mock.c").write_text(SOURCE)
        objects = [folder / "mock.c", folder / f"{name}.o"]
        library = folder / f"{name}.so"
        # symbolic: the DSL has loaded the real functions under the same names
        flags = ["-shared", "-fPIC", "-w", "-Wl,-Bsymbolic"]
        subprocess.run(["cc", *flags, "-o", library, *objects], check=True)
        self._library = ctypes.CDLL(library)
        header = (folder / f"{name}.h").read_text()
        self._entry = getattr(self._library, re.search(r"void (_mlir_\w+_ciface_\w+)\(", header)[1])
        self._load(getattr(self._library, f"_mlir_{name}_cuda_init"))

    def _load(self, init) -> None:
        self._handle, result = ctypes.c_void_p(), ctypes.c_int(-1)
        place = ctypes.pointer(self._handle)
        init((ctypes.c_void_p * 2)(ctypes.addressof(place), ctypes.addressof(result)))
        assert result.value == 0

    def launch(self, pointers: list[int], integers: list[int], descriptors: int) -> dict:
        """Call with addresses, 32-bit integers and a null stream.

        Returns grid, block, shared and, of the kernel's first `descriptors` arguments (TMA
        descriptors), the first 64 bytes as 32-bit words.
        """
        ctypes.c_int.in_dll(self._library, "wanted").value = descriptors
        result = ctypes.c_int(-1)
        values = [
            *map(ctypes.c_void_p, pointers), *map(ctypes.c_int32, integers), ctypes.c_void_p(0),
            result,
        ]  # fmt: skip
        arguments = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self._entry(arguments, len(values))
        assert result.value == 0
        config = (ctypes.c_uint32 * 8).in_dll(self._library, "config")
        memory = (ctypes.c_uint32 * 32 * 16).in_dll(self._library, "descriptors")
        return {
            "grid": config[0:3],
            "block": config[3:6],
            "shared": config[6],
            "descriptors": [memory[i][:16] for i in range(descriptors)],
        }
