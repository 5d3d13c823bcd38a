"""The harness's model of a trace, without PyTorch, which its package imports as a whole.

What only reads traces starts in a fraction of a second with it, not in several.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PASSED = "PASSED"
"""The harness's status of a solution that was right, and timed."""
PACKAGE = "flashinfer_bench"
ALONE = "bundle_trace_model"
"""The name under which the harness's folder of models is imported by itself."""


@cache
def trace_model() -> Any:
    """The harness's class Trace: its own, if it is imported anyway; the same code else."""
    if PACKAGE not in sys.modules:
        try:
            return _alone()
        except (ImportError, AttributeError):  # a version with other files
            sys.modules.pop(ALONE, None)
    return import_module(f"{PACKAGE}.data").Trace


def _alone() -> Any:
    """Raises ImportError or AttributeError where the model needs the rest of the package."""
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ImportError(PACKAGE)
    folder = ModuleType(ALONE)
    folder.__path__ = [str(Path(package.origin).parent / "data")]
    sys.modules.setdefault(ALONE, folder)
    return import_module(f"{ALONE}.trace").Trace
