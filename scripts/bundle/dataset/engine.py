"""A solution as engines load it: one small dataset with a single entry that needs no package.

Two engines substitute kernels by a definition's name: `flashinfer_bench.apply`, and FlashInfer's
own `flashinfer.trace_apply` (since 0.7). The latter imports the entry file alone, so that relative
imports fail; passes everything by keyword, with more than the definition has; and expects the
output as the result. The entry written here suits both.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from flashinfer_bench.data import (
    Definition,
    Solution,
    SourceFile,
    TraceSet,
    save_json_file,
    save_jsonl_file,
)

from ..paths import BadInput
from .loading import load_definition
from .manifest import read_config
from .packing import pack

ENTRY_FILE = "engine_entry.py"
# What FlashInfer's trace template passes beside the inputs of a definition, and which of its own
# constants that is; the name of such a definition says it too (topk8_ng8_kg4).
ROUTING_CONSTANTS = {"top_k": 8, "n_group": 8, "topk_group": 4}

ENTRY = '''\
"""{name} for an engine that imports this file alone, and wants the output returned."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch

CONSTANTS = {constants}

# the files beside this one are a package of their own, whatever this module's name is
_package = ModuleType(__name__ + "_files")
_package.__path__ = [str(Path(__file__).parent)]
sys.modules[_package.__name__] = _package
_solution = importlib.import_module(_package.__name__ + ".{module}").{function}


def {function}({inputs}, **others):
    for name, value in others.items():
        if value != CONSTANTS.get(name):
            raise ValueError(f"{{name}}: expected {{CONSTANTS.get(name)}}, got {{value}}")
    device = {first}.device
{allocations}
    _solution({inputs}, {outputs})
    return {outputs}
'''


def engine_solution(solution: Solution, definition: Definition) -> Solution:
    """`solution`, which writes to its outputs, behind an entry that returns them.

    The name stays, so that traces of the solution are traces of this one.
    """
    if not solution.spec.destination_passing_style:
        raise BadInput(f"{solution.name}: expected destination_passing_style = true, got false")
    file, _, function = solution.spec.entry_point.partition("::")
    entry = ENTRY.format(
        name=solution.name,
        constants=ROUTING_CONSTANTS,
        module=file.removesuffix(".py").replace("/", "."),
        function=function,
        inputs=", ".join(definition.inputs),
        outputs=", ".join(definition.outputs),
        first=next(name for name, spec in definition.inputs.items() if spec.shape),
        allocations="\n".join(
            f"    {name} = torch.empty({_shape(spec.shape, definition)}, "
            f"dtype=torch.{spec.dtype.value}, device=device)"
            for name, spec in definition.outputs.items()
        ),
    )
    spec = solution.spec.model_copy(
        update={"entry_point": f"{ENTRY_FILE}::{function}", "destination_passing_style": False}
    )
    sources = [*solution.sources, SourceFile(path=ENTRY_FILE, content=entry)]
    return solution.model_copy(update={"spec": spec, "sources": sources})


def write_engine_dataset(folder: Path, root: Path, into: Path) -> list[Path]:
    """Pack `folder` of the bundle at `root` into a dataset of its own at `into`.

    It holds the definition, the solution and what the bundle has of its traces, by which
    `flashinfer_bench.apply` chooses. An earlier one of the same solution is replaced. Returns the
    files; raises BadInput if `into` is anything else, PackError if the folder does not pack.
    """
    definition = load_definition(root, read_config(folder).definition)
    solution = pack(folder, definition)
    packed = into / "solutions" / f"{solution.name}.json"
    if into.exists() and not packed.exists():
        raise BadInput(
            f"--into: expected a new folder, or one that has {solution.name} alone, got {into}"
        )
    shutil.rmtree(into, ignore_errors=True)
    by_type = Path(definition.op_type) / definition.name
    files = {
        packed: engine_solution(solution, definition),
        into / "definitions" / by_type.with_suffix(".json"): definition,
    }
    for path, value in files.items():
        save_json_file(value, path)
    traces = TraceSet.from_path(str(root)).traces.get(definition.name, [])
    if mine := [trace for trace in traces if trace.solution == solution.name]:
        path = into / "traces" / by_type.with_suffix(".jsonl")
        save_jsonl_file(mine, path)
        return [*files, path]
    return [*files]


def _shape(axes: Sequence[str], definition: Definition) -> str:
    """A shape's source text: constants as they are, variable axes off the first input with them."""
    lengths = {axis: str(length) for axis, length in definition.const_axes.items()}
    for axis, (name, position) in definition.var_axes_bindings.items():
        lengths[axis] = f"{name}.shape[{position}]"
    return f"({', '.join(lengths[axis] for axis in axes)},)"
