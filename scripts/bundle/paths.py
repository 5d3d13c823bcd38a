"""Where things are, in this bundle or in another flashinfer-bench dataset."""

from pathlib import Path

from flashinfer_bench.data import Definition, load_json_file
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[2]


class BadInput(Exception):
    """Something the user gave is wrong; the text names it, what was expected and what was found.

    Scripts print it and exit with status 2.
    """


def check_root(root: Path) -> Path:
    """The dataset root, resolved. The harness itself would create a missing folder in silence."""
    if not (root / "definitions").is_dir():
        found = "no definitions/ in it" if root.is_dir() else "no such folder"
        raise BadInput(f"{root}: expected a flashinfer-bench dataset, but there is {found}")
    return root.resolve()


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
