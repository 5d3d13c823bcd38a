"""Has PyTorch for CPUs mark forks as its CUDA build does: those of a process that counted GPUs.

To be run before anything else in a process; see `poison_fork` in PyTorch's
torch/csrc/cuda/Module.cpp. A CUDA build marks them by itself and is left as it is.
"""

import os
from functools import cache

import torch

marked: list[int] = []


@cache
def count_devices():
    os.register_at_fork(after_in_child=lambda: marked.append(os.getpid()))
    return 0


if not hasattr(torch._C, "_cuda_getDeviceCount"):
    torch._C._cuda_getDeviceCount = count_devices
    torch.cuda._is_in_bad_fork = lambda: bool(marked)
