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
typedef struct { int id, reserved; unsigned value[16]; } Attribute;  // cudaLaunchAttribute
Config config;
unsigned cluster[3];
unsigned char descriptors[32][128];
int wanted, kernel_number, launches;

int _cudaLaunchKernelEx(const Config *given, void *kernel, void **arguments) {
    if (launches++ != kernel_number) return 0;
    config = *given;
    cluster[0] = cluster[1] = cluster[2] = 1;
    for (unsigned i = 0; i < given->count; i++) {
        const Attribute *attribute = (const Attribute *)given->attributes + i;
        if (attribute->id == 4) memcpy(cluster, attribute->value, sizeof cluster);
    }
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

    def launch(
        self, pointers: list[int], integers: list[int], descriptors: int, kernel: int = 0
    ) -> dict:
        """Call with addresses, 32-bit integers and a null stream; look at one of its launches.

        Returns how many launches there were and, of launch number `kernel`, its grid, block,
        cluster, shared memory and the first 64 bytes of its first `descriptors` arguments (TMA
        descriptors) as 32-bit words.
        """
        for name, value in (("wanted", descriptors), ("kernel_number", kernel), ("launches", 0)):
            ctypes.c_int.in_dll(self._library, name).value = value
        result = ctypes.c_int(-1)
        values = [
            *map(ctypes.c_void_p, pointers), *map(ctypes.c_int32, integers), ctypes.c_void_p(0),
            result,
        ]  # fmt: skip
        arguments = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self._entry(arguments, len(values))
        assert result.value == 0
        config = (ctypes.c_uint32 * 8).in_dll(self._library, "config")
        memory = (ctypes.c_uint32 * 32 * 32).in_dll(self._library, "descriptors")
        return {
            "launches": ctypes.c_int.in_dll(self._library, "launches").value,
            "grid": config[0:3],
            "block": config[3:6],
            "cluster": (ctypes.c_uint32 * 3).in_dll(self._library, "cluster")[:],
            "shared": config[6],
            "descriptors": [memory[i][:16] for i in range(descriptors)],
        }
