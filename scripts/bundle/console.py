"""Text from elsewhere on a terminal, and output that cannot be written."""

import os
import sys
import unicodedata


def open_output() -> None:
    """Make standard output and error take any text, and be there if they were closed.

    What a terminal's encoding lacks is shown as an escape: no name of a file ends a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str, limit: int = 400) -> str:
    """`text` on one line, without what would move a cursor or hide other text, and not without end.

    limit: characters.
    """
    shown = "".join(
        character
        if character.isprintable() or character == " "
        else " "
        if unicodedata.category(character) == "Zs" or character == "\t"
        else character.encode("unicode_escape").decode()
        for character in text[:limit]
    )
    return shown + ("..." if len(text) > limit else "")
