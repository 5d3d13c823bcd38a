"""Files that are replaced as a whole, and sections of them."""

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
