"""Load a flashinfer-bench dataset strictly.

TraceSet.from_path reads the same files, but creates a missing root, reports a bad file without its
name, and never looks at blobs: a broken one would surface in a worker, as a lost workload.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from flashinfer_bench.bench.utils import load_safetensors
from flashinfer_bench.data import Definition, Solution, Trace, TraceSet, Workload, load_json_file
from pydantic import BaseModel, ValidationError

from ..paths import BadInput, check_root

Model = TypeVar("Model", bound=BaseModel)


def load_dataset(root: Path) -> TraceSet:
    """The definitions, solutions and workloads of the dataset at `root`, without its traces."""
    root = check_root(root)
    definitions: dict[str, Definition] = {}
    for where, definition in _read(root / "definitions", "*.json", Definition):
        if definition.name in definitions:
            raise BadInput(f"{where}: duplicate definition name {definition.name!r}")
        definitions[definition.name] = definition

    solutions: dict[str, list[Solution]] = {}
    names: set[str] = set()
    for where, solution in _read(root / "solutions", "*.json", Solution):
        if solution.name in names:
            raise BadInput(f"{where}: duplicate solution name {solution.name!r}")
        names.add(solution.name)
        solutions.setdefault(solution.definition, []).append(solution)

    workloads: dict[str, list[Trace]] = {}
    uuids: set[str] = set()
    for where, row in _read(root / "workloads", "*.jsonl", Trace):
        _check_workload(where, row, definitions)
        if row.workload.uuid in uuids:
            raise BadInput(f"{where}: duplicate workload uuid {row.workload.uuid!r}")
        uuids.add(row.workload.uuid)
        workloads.setdefault(row.definition, []).append(row)
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


def _read(folder: Path, pattern: str, model: type[Model]) -> Iterator[tuple[str, Model]]:
    """Every object below `folder` with the place it comes from: one per .json, many per .jsonl."""
    for path in sorted(folder.rglob(pattern)):
        text = path.read_text("utf-8")
        documents = text.splitlines() if path.suffix == ".jsonl" else [text]
        for number, document in enumerate(documents, start=1):
            where = f"{path}:{number}" if path.suffix == ".jsonl" else str(path)
            if document.strip():
                try:
                    yield where, model.model_validate_json(document)
                except ValidationError as error:
                    first = error.errors(include_url=False)[0]
                    key = ".".join(map(str, first["loc"]))
                    raise BadInput(f"{where}: {key}: {first['msg']}") from error


def _check_workload(where: str, row: Trace, definitions: dict[str, Definition]) -> None:
    """A row belongs to a known definition and has its axes, and no input that it lacks."""
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


def load_definition(root: Path, name: str) -> Definition:
    """The definition `name` of the dataset at `root`."""
    paths = sorted((root / "definitions").rglob("*.json"))
    for path in paths:
        if path.stem == name:
            try:
                return load_json_file(Definition, path)
            except ValidationError as error:
                raise BadInput(f"{path}: not a definition: {error}") from error
    known = ", ".join(path.stem for path in paths) or "none"
    raise BadInput(f"definition: {root} has no {name!r}; it has {known}")
