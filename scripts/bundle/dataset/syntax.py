"""What packing needs to know of a Python file: what it imports, and its functions' parameters.

To parse a file of somebody else's can take any time and memory: one of 0.5 MB, an f-string of
170,000 fields, takes Python 3.11 half a minute, and four times that at twice the length. Small
files are parsed here; larger ones by this module as a script, in a process with limits.
"""

from __future__ import annotations

import ast
import json
import math
import os
import resource
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass

SMALL = 1 << 14
"""Characters of what is parsed in this process: takes 25 ms and 15 MB at worst."""
MEMORY_BYTES = 2 << 30
"""For the process that parses a larger file. Its syntax tree takes up to 900 times its size."""


class SyntaxProblem(Exception):
    """Why a file cannot be parsed."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True)
class Import:
    line: int
    level: int
    """The dots before it; 0: absolute."""
    module: str
    """Empty in `from . import x`."""
    names: list[str]
    """What is imported from it; of `import a, b` nothing."""


@dataclass(frozen=True)
class Function:
    """At the top level of a file; the last of its name, as in Python."""

    line: int
    parameters: list[str]
    """With * or ** before those that take any number."""


@dataclass(frozen=True)
class Syntax:
    imports: list[Import]
    functions: dict[str, Function]


def read_syntax(text: str, seconds: float) -> Syntax:
    """Raises SyntaxProblem if it is no Python, or takes more than so many seconds to parse."""
    if len(text) <= SMALL:
        return parse(text)
    finished = subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(max(math.ceil(seconds), 1))],
        check=False, input=text.encode(), capture_output=True,
    )  # fmt: skip
    if finished.returncode:
        raise SyntaxProblem("Python cannot parse it: takes too much time or memory")
    found = json.loads(finished.stdout)
    if "problem" in found:
        raise SyntaxProblem(found["problem"], found["line"])
    return Syntax(
        [Import(**fields) for fields in found["imports"]],
        {name: Function(**fields) for name, fields in found["functions"].items()},
    )


def parse(text: str) -> Syntax:
    """In this process, however long it takes; raises SyntaxProblem."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python will warn where the file is imported
            module = ast.parse(text)
    except SyntaxError as error:
        raise SyntaxProblem(f"syntax error: {error.msg}", error.lineno) from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = error or "nested too deeply, or takes too much memory"
        raise SyntaxProblem(f"Python cannot parse it: {reason}") from error
    imports: list[Import] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            imports += [Import(node.lineno, 0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            imports.append(Import(node.lineno, node.level, node.module or "", names))
    functions: dict[str, Function] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = Function(node.lineno, _parameters(node.args))
    return Syntax(imports, functions)


def processor_seconds() -> float:
    """Of this process and the children that it has waited for."""
    return sum(os.times()[:4])


def _parameters(arguments: ast.arguments) -> list[str]:
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return names


def _serve(seconds: int) -> None:
    """Parse what comes on stdin within limits, and write what was found, as JSON."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        found = asdict(parse(sys.stdin.buffer.read().decode()))
    except SyntaxProblem as problem:
        found = {"problem": str(problem), "line": problem.line}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
