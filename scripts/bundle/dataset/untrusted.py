"""Read files that somebody else has written: any bytes, any size, any kind of file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..paths import BadInput

CONFIG_BYTES = 1 << 14
"""Of a solution.toml. To read one key of n parts takes n * n steps: 10 seconds for 40 kB."""
SOURCE_BYTES = 4 << 20
"""Of one source file; what is packed travels inside a JSON file."""
TREE_BYTES = 16 << 20
"""Of all files of one solution."""
TREE_ENTRIES = 2000
"""Files of one solution."""
JSON_BYTES = 1 << 30
"""Of a file of the dataset: definitions, packed solutions, workloads."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_text(path: Path, limit: int, within: Path | None = None) -> str:
    """The text of a regular file of at most `limit` bytes, in UTF-8 with or without a mark for it.

    within: a folder that the file must lie in once links are followed. Raises BadInput, naming the
    path, for everything else; never waits for a pipe and never reads more than `limit`.
    """
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise BadInput(f"{path}: a link to {path.resolve()}, which is not in {within}")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        kind = KINDS.get(stat.S_IFMT(status.st_mode))
        if kind:
            os.close(descriptor)
            raise BadInput(f"{path}: expected a file, found {kind}")
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(limit + 1) if status.st_size <= limit else b""
        if max(status.st_size, len(content)) > limit:
            size = max(status.st_size, len(content))
            raise BadInput(f"{path}: expected at most {limit} bytes, found {size}")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}") from error


def lies_within(path: Path, folder: Path) -> bool:
    """Whether `path`, once links are followed, is in `folder`."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        return False


def is_plain_name(name: str) -> bool:
    """Whether `name` can be one part of a path and leads nowhere else."""
    return (
        name not in (".", "..")
        and 0 < len(name.encode("utf-8", "replace")) < 200
        and name.isprintable()
        and not set(name) & set("/\\")
    )
