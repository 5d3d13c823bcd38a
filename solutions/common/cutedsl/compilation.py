"""Compiles a launching function once for every size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cuda.bindings.driver as cuda
import cutlass.cute as cute
from cutlass.cute.runtime import make_ptr

from ..once import COMPILER


def compile_launch(
    launch: Callable, pointers: Sequence[type], numbers: Sequence, decorators: tuple, options: str
):
    """`launch` takes global pointers to these dtypes, aligned to 16 bytes, then numbers of these
    types, then a stream; what is compiled takes addresses, plain integers and a stream's handle."""
    examples = [make_ptr(dtype, 16, cute.AddressSpace.gmem, assumed_align=16) for dtype in pointers]
    compiler = cute.compile[decorators] if decorators else cute.compile
    with COMPILER:
        return compiler(launch, *examples, *numbers, cuda.CUstream(0), options=options)
