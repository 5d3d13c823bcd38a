"""Where things are, in this bundle or in another flashinfer-bench dataset."""

from pathlib import Path

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
