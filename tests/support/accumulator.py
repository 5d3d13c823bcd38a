"""Where wgmma leaves its results."""

from collections.abc import Callable

import cutlass
import cutlass.cute as cute


def places(make_tiled_mma: Callable[[], cute.TiledMma], warpgroups: int) -> list:
    """[row, column] of every thread's every value in one accumulator, thread by thread."""
    found = []

    @cute.jit
    def look():
        mma = make_tiled_mma()
        rows, columns = mma.get_tile_size(0), mma.get_tile_size(1)
        layout = mma.tv_layout_C_tiled
        for thread in cutlass.range_constexpr(128 * warpgroups):
            for value in cutlass.range_constexpr(rows * columns // (128 * warpgroups)):
                index = cute.crd2idx((thread, value), layout)
                found.append([index % rows, index // rows])

    look()
    return found
