"""Buffers of a call, at little host time: every torch.empty costs as much as a launch could."""

import math

import torch


class Workspace:
    """Layout of a call's buffers in one allocation; each starts at a multiple of 256 bytes."""

    def __init__(self, *buffers: tuple):
        """buffers: (dtype, *shape) each."""
        self._places = []
        self._size = 0
        for dtype, *shape in buffers:
            size = math.prod(shape) * dtype.itemsize
            self._places.append((self._size, self._size + size, dtype, shape))
            self._size += -(-size // 256) * 256

    def tensors(self, block: torch.Tensor) -> list:
        """The buffers of an allocation as tensors."""
        return [block[a:b].view(dtype).view(shape) for a, b, dtype, shape in self._places]

    def allocate(self, device: torch.device) -> tuple:
        """A new allocation, to be kept until the last launch, and its buffers, uninitialised.

        The buffers are addresses, which launches take for tensors. Triton's interpreter, on the
        CPU, needs the tensors themselves.
        """
        block = torch.empty(self._size, dtype=torch.uint8, device=device)
        if device.type == "cpu":
            return block, self.tensors(block)
        base = block.data_ptr()
        return block, [base + start for start, *_ in self._places]
