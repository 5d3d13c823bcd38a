"""Compile once per process, one thread at a time.

The CuTe DSL's compiler keeps its state in globals, and functools.cache lets two threads that miss
at the same time both in: the first calls of two threads would crash the process. A Triton kernel,
too, becomes visible to other threads before its handles are there.
"""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any

COMPILER = RLock()  # held by whoever compiles, whatever it is; a compilation may need another


def once(make: Callable) -> Callable:
    """Decorator: as functools.cache of positional arguments, but whoever misses waits for the
    compiler, and finds what another thread has made in the meantime."""
    made: dict[tuple, Any] = {}

    @wraps(make)
    def get(*arguments):
        if arguments not in made:
            with COMPILER:
                if arguments not in made:
                    made[arguments] = make(*arguments)
        return made[arguments]

    cached: Any = get
    cached.cache_clear = made.clear
    return cached
