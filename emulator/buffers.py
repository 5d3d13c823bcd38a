"""Memory that kernels may access."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

ALIGNMENT = 256  # of an allocation of the CUDA runtime


class Buffers:
    """NumPy arrays with the alignment of device memory, and the bounds of all of them.

    Others' memory, such as a tensor's, can be added to the bounds. Between two buffers lies memory
    that belongs to none, so an access past an end is noticed.
    """

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._kept: list[object] = []

    def array(self, values: np.ndarray) -> np.ndarray:
        """A copy of `values` that kernels may access."""
        values = np.ascontiguousarray(values)
        memory = np.empty(values.nbytes + 2 * ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        copy[...] = values
        self.add(copy.ctypes.data, values.nbytes, memory)
        return copy

    def unwritten(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array of bytes 0xff: NaN in every floating-point type, -1 in the integers."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.array(np.full(size, 0xFF, np.uint8)).view(dtype).reshape(shape)

    def add(self, address: int, size: int, owner: object = None) -> None:
        """Allow accesses to `size` bytes at `address`, which live as long as `owner`."""
        self.ranges.append((address, address + size))
        self._kept.append(owner)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ordered, without those that lie in another."""
    result: list[tuple[int, int]] = []
    for first, end in sorted(set(ranges)):
        if result and first < result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        elif end > first:
            result.append((first, end))
    return result
