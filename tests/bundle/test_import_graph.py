"""How the modules of scripts/bundle stand on each other; nowhere is a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from bundle.paths import ROOT

SCRIPTS = ROOT / "scripts"
MOST_LEVELS = 6


def modules(folder: Path = SCRIPTS, package: str = "bundle") -> dict[str, Path]:
    """Every module of a package in the folder, by its dotted name."""
    named = {}
    for path in (folder / package).rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, in functions and for types, too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" for alias in node.names} | {origin}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # a package is no module of its own where one of its modules is meant
    return {each for each in found & known.keys() - {name} if known[each].name != "__init__.py"}


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import nothing, then those that import only them, and so on."""
    found, sorter = [], TopologicalSorter(graph)
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        found.append(sorted(ready))
        sorter.done(*ready)
    return found


def drawn(graph: dict[str, set[str]], order: list[list[str]]) -> str:
    """One line per module, under the number of its level."""
    lines = []
    for number, level in enumerate(order, 1):
        lines.append(f"level {number}")
        lines += [f"  {name} -> {', '.join(sorted(graph[name])) or '-'}" for name in level]
    return "\n".join(lines).replace("bundle.", "")


@pytest.mark.parametrize("package", ["bundle", "solutions", "emulator"])
def test_no_circle_and_few_levels(package):
    known = modules(SCRIPTS if package == "bundle" else ROOT, package)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    assert sum(map(bool, graph.values())) > len(graph) / 3, "few modules import another"
    try:
        order = levels(graph)
    except CycleError as error:
        raise AssertionError(f"circle: {' -> '.join(error.args[1])}") from error
    if package == "bundle":
        assert len(order) <= MOST_LEVELS, f"{len(order)} levels\n{drawn(graph, order)}"


def test_the_two_sides_of_the_sandbox():
    """What the parent runs imports nothing of what runs beside a solution."""
    known = modules()
    inside = {f"bundle.sandbox.{name}" for name in ("contestant", "gpu_contestant", "fork_server")}
    for name, path in known.items():
        if name not in inside:
            assert not imports(name, path, known) & inside, name


def test_circles_and_levels_are_found(tmp_path):
    package = tmp_path / "bundle" / "part"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "low.py").write_text("")
    (package / "middle.py").write_text("def f():\n    from .low import x\n")
    (package / "high.py").write_text("from . import middle\nimport bundle.part.low\n")
    known = modules(tmp_path)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    assert levels(graph) == [
        ["bundle.part", "bundle.part.low"], ["bundle.part.middle"], ["bundle.part.high"]
    ]  # fmt: skip
    (package / "low.py").write_text("from ..part.high import y\n")
    graph["bundle.part.low"] = imports("bundle.part.low", package / "low.py", known)
    with pytest.raises(CycleError) as raised:
        levels(graph)
    assert {"bundle.part.low", "bundle.part.high"} <= set(raised.value.args[1])
