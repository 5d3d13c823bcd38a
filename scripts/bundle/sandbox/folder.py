"""A solution's own folder: how much is in it, and how to be rid of it whatever is in it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

REMOVE_SECONDS = 60


def free_bytes(path: Path) -> int:
    """What a user may still write there; 0 if the folder has gone."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def size_of(path: Path) -> int:
    """Bytes that the files below take on the disk."""
    command = ["du", "--summarize", "--block-size=1", "--one-file-system", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    fields = done.stdout.split()
    return int(fields[0]) if fields else 0


def remove_folder(folder: tempfile.TemporaryDirectory) -> None:
    """Remove it with all that is in it; what cannot be removed stays."""
    path = Path(folder.name)
    with suppress(RecursionError):  # deeper than Python's function for it can follow
        folder.cleanup()  # made with ignore_cleanup_errors
    if path.is_symlink() or not path.exists():
        return
    for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf", "--one-file-system"]):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, path], timeout=REMOVE_SECONDS, stderr=subprocess.DEVNULL, check=False
            )
