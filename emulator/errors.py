"""What can go wrong, each with what a user needs to find the cause."""

from __future__ import annotations


class EmulatorError(Exception):
    """Base of all errors of the emulator."""


class PtxError(EmulatorError):
    """PTX text that cannot be parsed, or of an unknown version or target."""


class UnsupportedInstruction(EmulatorError):
    """An instruction form that the emulator does not know; it never guesses.

    form: the instruction with its modifiers, such as "add.rn.f32.bf16". line: of the PTX text.
    """

    def __init__(self, form: str, line: int, kernel: str, reason: str = ""):
        self.form, self.line, self.kernel = form, line, kernel
        because = f" ({reason})" if reason else ""
        super().__init__(f"{form}{because} at PTX line {line} of {kernel} is not emulated")


class CompilerMissing(EmulatorError):
    """There is no C compiler on this machine."""


class KernelError(EmulatorError):
    """A kernel did what it must not: a bad address, a race, a deadlock, too many instructions.

    kernel: its name. line: the PTX line, where one is to blame. source: the line of the CuTe DSL
    program it comes from, "file:line", where the PTX tells.
    """

    def __init__(self, message: str, kernel: str, line: int | None, source: str | None):
        self.kernel, self.line, self.source = kernel, line, source
        place = f"\n  from {source}" if source else ""
        super().__init__(f"{kernel}: {message}{place}")
