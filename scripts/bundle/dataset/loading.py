"""Load a flashinfer-bench dataset strictly.

TraceSet.from_path reads the same files, but creates a missing root, reports a bad file without its
name, and never looks at blobs: a broken one would surface in a worker, as a lost workload.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flashinfer_bench.data import Definition, Solution, Trace, TraceSet, Workload
from pydantic import BaseModel, ValidationError

from ..harness import load_safetensors
from ..paths import BadInput, check_root
from .untrusted import JSON_BYTES, is_plain_name, lies_within, read_text

Model = TypeVar("Model", bound=BaseModel)


def load_dataset(root: Path, problems: list[str] | None = None) -> TraceSet:
    """The definitions, solutions and workloads of the dataset at `root`, without its traces.

    A bad file raises BadInput. With a list for `problems`, it is added there instead and the file
    left out, as long as any definition has workloads.
    """
    root = check_root(root)
    found: list[str] = []
    definitions: dict[str, Definition] = {}
    for definition in _load(root / "definitions", "*.json", Definition, found):
        definitions[definition.name] = definition
    solutions: dict[str, list[Solution]] = {}
    unusable = len(found)
    for solution in _load(root / "solutions", "*.json", Solution, found):
        solutions.setdefault(solution.definition, []).append(solution)
    of_solutions = found[unusable:]
    workloads: dict[str, list[Trace]] = {}

    def check(where: str, row: Trace) -> None:
        _check_workload(where, row, definitions, root)

    for row in _load(root / "workloads", "*.jsonl", Trace, found, check):
        workloads.setdefault(row.definition, []).append(row)
    fatal = [problem for problem in found if problem not in of_solutions]
    if found and problems is None:
        raise BadInput(found[0])
    if fatal and not workloads:
        raise BadInput(fatal[0])
    if problems is not None:
        problems += found
    return TraceSet(root=root, definitions=definitions, solutions=solutions, workloads=workloads)


def check_blobs(definition: Definition, workload: Workload, root: Path) -> None:
    """Load a workload's safetensors inputs once, so that a missing or damaged file is named."""
    try:
        load_safetensors(definition, workload, root)
    except Exception as error:  # safetensors raises its own kind for a damaged file
        paths = {spec.path for spec in workload.inputs.values() if spec.type == "safetensors"}
        raise BadInput(
            f"workload {workload.uuid} ({describe(workload)}), {', '.join(sorted(paths))}: {error}"
        ) from error


def describe(workload: Workload) -> str:
    """A workload's name for people: its variable axes and its integer arguments."""
    scalars = {name: spec.value for name, spec in workload.inputs.items() if spec.type == "scalar"}
    integers = {name: value for name, value in scalars.items() if type(value) is int}
    return " ".join(f"{name}={value}" for name, value in {**workload.axes, **integers}.items())


def _load(
    folder: Path,
    pattern: str,
    model: type[Model],
    problems: list[str],
    check: Callable[[str, Model], None] | None = None,
) -> list[Model]:
    """The objects of all good files below `folder`, each name or uuid once."""
    loaded: list[Model] = []
    names: set[str] = set()
    for path in sorted(folder.rglob(pattern)):
        if path.is_dir():
            continue
        try:
            rows = list(_read(path, model))
            new: set[str] = set()
            for where, item in rows:
                if check:
                    check(where, item)
                named: Any = item  # a model of the harness
                name = named.workload.uuid if isinstance(item, Trace) else named.name
                kind = "workload uuid" if isinstance(item, Trace) else f"{model.__name__} name"
                if name in names | new:
                    raise BadInput(f"{where}: duplicate {kind.lower()} {name!r}")
                if not is_plain_name(name):
                    raise BadInput(f"{where}: expected a {kind} for a file, got {name[:200]!r}")
                if isinstance(item, Definition) and not is_plain_name(item.op_type):
                    raise BadInput(f"{where}: op_type: expected a folder's name, got {name!r}")
                new.add(name)
        except BadInput as error:
            problems.append(str(error))
        else:
            names |= new
            loaded += [item for _, item in rows]
    return loaded


def _read(path: Path, model: type[Model]) -> Iterator[tuple[str, Model]]:
    """Every object in a file with the place it comes from: one of a .json, many of a .jsonl."""
    text = read_text(path, JSON_BYTES)
    documents = text.split("\n") if path.suffix == ".jsonl" else [text]
    for number, document in enumerate(documents, start=1):
        where = f"{path}:{number}" if path.suffix == ".jsonl" else str(path)
        if document.strip():
            try:
                yield where, model.model_validate_json(document)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = ".".join(map(str, first["loc"]))
                raise BadInput(f"{where}: {key}: {first['msg']}") from error
            except (ValueError, RecursionError, MemoryError) as error:  # in a reference's source
                raise BadInput(f"{where}: {type(error).__name__}: {error}") from error


def _check_workload(where: str, row: Trace, definitions: dict[str, Definition], root: Path) -> None:
    """A row belongs to a known definition, has its axes, no input that it lacks, no far files."""
    if not row.is_workload_trace():
        raise BadInput(f"{where}: expected a workload, got a result of solution {row.solution!r}")
    definition = definitions.get(row.definition)
    if definition is None:
        raise BadInput(
            f"{where}: definition: expected one of {sorted(definitions)}, got {row.definition!r}"
        )
    if set(row.workload.axes) != set(definition.var_axes):
        raise BadInput(
            f"{where}: axes: expected {definition.var_axes}, the variable axes of "
            f"{definition.name}, got {list(row.workload.axes)}"
        )
    unknown = set(row.workload.inputs) - set(definition.inputs)
    if unknown:
        raise BadInput(
            f"{where}: inputs: expected inputs of {definition.name}, got {sorted(unknown)}"
        )
    for name, spec in row.workload.inputs.items():
        if spec.type == "safetensors" and not lies_within(root / spec.path, root):
            where += f": inputs.{name}.path"
            raise BadInput(f"{where}: expected one in {root}, got {spec.path!r}")


def load_definition(root: Path, name: str) -> Definition:
    """The definition `name` of the dataset at `root`."""
    paths = sorted((root / "definitions").rglob("*.json"))
    for path in paths:
        if path.stem == name:
            ((_, definition),) = _read(path, Definition)
            return definition
    known = ", ".join(path.stem for path in paths) or "none"
    raise BadInput(f"definition: {root} has no {name!r}; it has {known}")
