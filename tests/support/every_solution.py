"""The `run` of every solution of the bundle, by name."""

import importlib
from collections.abc import Callable

import pytest
from bundle.paths import ROOT

NAMES = sorted(folder.parent.name for folder in (ROOT / "solutions").glob("*/main.py"))

every_solution = pytest.mark.parametrize("name", NAMES)


def run_of(name: str) -> Callable:
    """Skips the test, visibly, where the package that the solution stands on is missing."""
    try:
        return importlib.import_module(f"solutions.{name}.main").run
    except ImportError as error:
        pytest.skip(str(error))
