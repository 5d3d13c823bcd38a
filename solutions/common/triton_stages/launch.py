"""Launches of Triton kernels, at little host time.

flashinfer-bench starts its clock before it calls a solution, so the host's work up to the first
kernel counts. `kernel[grid](...)` inspects every argument on each call; here a launch looks up
what was compiled, and hands it addresses.
"""

import torch
from triton import knobs

from ..once import COMPILER

INTERPRETING = knobs.runtime.interpret  # which Triton decides when it decorates a kernel


class Launcher:
    """Launches one Triton kernel; compiles it at the first call with new constants.

    pointers: dtype of each pointer argument by name. A compiled kernel is reused for any pointers
    (16-byte aligned) and any integers, which must be in the kernel's do_not_specialize list.
    """

    def __init__(self, kernel, **pointers: torch.dtype):
        self._kernel = kernel
        self._pointers = pointers
        self._compiled: dict[tuple, tuple] = {}

    def __call__(self, grid: tuple, arguments: tuple, constants: tuple, **options) -> None:
        """Launch on the current device and stream.

        grid: three ints. arguments: addresses (or tensors), descriptors and numbers in the
        kernel's order, then constants. options: num_warps, launch_pdl.
        """
        if INTERPRETING:
            self._kernel[grid](*arguments, *constants)
            return
        device = torch._C._cuda_getDevice()
        launch, function, metadata = self.compiled(device, arguments, constants, options)
        stream = torch._C._cuda_getCurrentRawStream(device)
        launch(*grid, stream, function, metadata, None, None, None, *arguments, *constants)

    def prepare(self, grid: tuple, constants: tuple, **options) -> "Launch":
        """The same in two steps: the second, with the arguments, takes less time."""
        return Launch(self, grid, constants, options)

    def compiled(self, device: int, arguments: tuple, constants: tuple, options: dict) -> tuple:
        """Triton's launching function, the kernel's handle, and what the launch must know of it."""
        key = (device, constants, *options.values())
        compiled = self._compiled.get(key)
        if compiled is None:
            with COMPILER:
                compiled = self._compiled.get(key) or self._compile(arguments, constants, options)
                self._compiled[key] = compiled
        return compiled

    def _compile(self, arguments: tuple, constants: tuple, options: dict) -> tuple:
        names = self._kernel.arg_names
        given = zip(names, arguments, strict=False)  # constants follow
        typed = [self._pointers.get(name, value) for name, value in given]
        compiled = self._kernel.warmup(*typed, *constants, grid=(1, 1, 1), **options)
        compiled._init_handles()
        return compiled.run, compiled.function, compiled.packed_metadata


class Launch:
    """A kernel with its grid and constants, see `Launcher.prepare`."""

    def __init__(self, launcher: Launcher, grid: tuple, constants: tuple, options: dict):
        self._launcher = launcher
        self._grid = grid
        self._constants = constants
        self._options = options
        self._compiled: dict[int, tuple] = {}  # by device

    def __call__(self, *arguments) -> None:
        """Launch on the current device and stream."""
        if INTERPRETING:
            self._launcher(self._grid, arguments, self._constants)
            return
        device = torch._C._cuda_getDevice()
        compiled = self._compiled.get(device)
        if compiled is None:
            compiled = self._launcher.compiled(device, arguments, self._constants, self._options)
            self._compiled[device] = compiled
        launch, function, metadata = compiled
        stream = torch._C._cuda_getCurrentRawStream(device)
        launch(*self._grid, stream, function, metadata, None, None, None, *arguments,
               *self._constants)  # fmt: skip


def addresses(*tensors: torch.Tensor) -> tuple:
    """What launches take for tensors at less host time; Triton's interpreter needs the tensors."""
    return tensors if INTERPRETING else tuple([tensor.data_ptr() for tensor in tensors])
