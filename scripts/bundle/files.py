"""Files that are replaced as a whole, and sections of them."""

import os
import tempfile
from pathlib import Path

from .paths import BadInput


def replace_section(text: str, section: str, name: str = "results") -> str:
    """`text` with what stands between `<!-- name:begin -->` and `<!-- name:end -->` replaced.

    Raises BadInput unless each marker is there once and in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if not (text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)):
        raise BadInput(
            f"expected {begin} once and {end} once after it, found {text.count(begin)} and "
            f"{text.count(end)}" + (" in the wrong order" if text.count(begin) else "")
        )
    before, after = text.split(begin, maxsplit=1)[0], text.split(end)[1]
    return f"{before}{begin}\n{section.strip()}\n{end}{after}"


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: whatever happens, it holds the old text or the new, whole."""
    path = path.resolve()  # a link stays a link
    mode = path.stat().st_mode if path.exists() else 0o644
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        unfinished.write_text(text, encoding="utf-8")
        unfinished.chmod(mode)
        unfinished.replace(path)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, under a name of its own until it is whole and on the disk.

    A link is replaced, not followed: a folder from elsewhere may hold one that leads anywhere.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, 0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """What new files are masked with; there is no way to ask for it alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
