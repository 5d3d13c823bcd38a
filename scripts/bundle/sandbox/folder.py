"""A solution's own folder: how much is in it, and how to be rid of it whatever is in it."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

REMOVE_SECONDS = 60


class Room(NamedTuple):
    """What may still be written somewhere, or what has been."""

    bytes: int
    files: int
    """Folders and links, too; 0 where the file system has no table of them that can be full."""


def free_room(path: Path) -> Room:
    """What a user may still write there; nothing if the folder has gone."""
    try:
        status = os.statvfs(path)
    except OSError:
        return Room(0, 0)
    return Room(status.f_bavail * status.f_frsize, status.f_favail)


def taken_room(path: Path) -> Room:
    """What is below: bytes that it takes on the disk, and how many files."""
    return Room(_usage(path, "--block-size=1"), _usage(path, "--inodes"))


def _usage(path: Path, unit: str) -> int:
    command = ["du", "--summarize", "--one-file-system", unit, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    fields = done.stdout.split()
    return int(fields[0]) if fields else 0


def remove_folder(path: Path) -> None:
    """Remove it with all that is in it, also what is deeper or more than Python could follow.

    What cannot be removed in time stays.
    """
    remove = ["rm", "-rf", "--one-file-system", str(path)]
    for command in (remove, ["chmod", "-R", "u+rwX", str(path)], remove):
        if path.is_symlink() or not path.exists():
            return
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=REMOVE_SECONDS, stderr=subprocess.DEVNULL, check=False)
