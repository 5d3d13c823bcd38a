"""Parses the PTX text of a module into its kernels' instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import PtxError

KNOWN_VERSIONS = range(8, 10)  # major versions of the PTX ISA
KNOWN_TARGETS = ("sm_90a", "sm_100a", "sm_103a")

_ENTRY = re.compile(r"(?:\.visible )?\.entry ([\w$]+)\s*\(")
_PARAMETER = re.compile(
    r"\.param (?:\.align (?P<align>\d+) )?\.(?P<type>\w+)(?: \.ptr[ .\w]*?(?:\.align \d+)?)? "
    r"(?P<name>[\w$]+)(?:\[(?P<size>\d+)\])?,?$"
)
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+(.*)")
_LABEL = re.compile(r"([\w$]+):(?!:)\s*")
_GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")
_NAME = re.compile(r"[%$]?[\w$]+")
_SHARED = re.compile(r"(?:\.extern )?\.shared (?:\.align (\d+) )?\.b8 ([\w$]+)\[(\d*)\]")


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter and its place among them, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Instruction:
    """guard: a predicate, with "!" in front where it is negated. source: "file:line" or None."""

    form: str
    operands: tuple[str, ...]
    guard: str | None
    line: int
    source: str | None = None


@dataclass
class Kernel:
    """An entry of the module.

    body: instructions and, as plain strings, labels. widths: bits of each register by its name.
    shared: offset of each shared variable from the first byte.
    """

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    body: list[Instruction | str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    threads: tuple[int, ...] | None = None

    @property
    def parameter_bytes(self) -> int:
        return self.parameters[-1].offset + self.parameters[-1].size if self.parameters else 0

    @property
    def instructions(self) -> list[Instruction]:
        return [item for item in self.body if isinstance(item, Instruction)]


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside of brackets."""
    operands, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            operands.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        operands.append(text[start:].strip())
    return tuple(operands)


def parse(text: str) -> list[Kernel]:
    """The kernels of a module. Raises PtxError for an unknown version or target."""
    return list(_Parser(text).kernels())


class _Parser:
    """State while a module is read; `{ }` within a kernel open a scope for registers and labels."""

    def __init__(self, text: str):
        self._lines = text.split("\n")
        self._files: dict[str, str] = {}
        self._shared: dict[str, int] = {}
        self._scopes: list[dict[str, str]] = []
        self._scopes_opened = 0
        self._source: str | None = None
        self._check_header(text)

    def _check_header(self, text: str) -> None:
        version = re.search(r"^\.version (\d+)\.(\d+)", text, re.MULTILINE)
        target = re.search(r"^\.target ([\w]+)", text, re.MULTILINE)
        if not version or not target:
            raise PtxError("no .version and .target: this is not a PTX module")
        if int(version[1]) not in KNOWN_VERSIONS:
            raise PtxError(f"PTX version {version[1]}.{version[2]}: expected 8.x or 9.x")
        if target[1] not in KNOWN_TARGETS:
            raise PtxError(f"target {target[1]}: expected one of {', '.join(KNOWN_TARGETS)}")
        self._files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))

    def kernels(self) -> Iterator[Kernel]:
        kernel, in_body, pending = None, False, ""
        for number, raw in enumerate(self._lines, 1):
            text = raw.split("//")[0].strip()
            if not text:
                continue
            if kernel is None:
                self._module_scope(text)
                entry = _ENTRY.match(text)
                if entry:
                    kernel, in_body = Kernel(entry[1], shared=dict(self._shared)), False
            elif not in_body:
                in_body = text == "{"
                if in_body:
                    self._scopes, self._source = [{}], None
                else:
                    self._header(kernel, text, number)
            else:
                pending = self._statements(kernel, f"{pending}{text}", number)
                if not self._scopes:
                    yield kernel
                    kernel = None
        if kernel is not None:
            raise PtxError(f"the text ends within {kernel.name}")

    def _module_scope(self, text: str) -> None:
        shared = _SHARED.match(text)
        if shared:
            if shared[3]:
                raise PtxError(f"{shared[2]}: static shared memory is not emulated")
            self._shared[shared[2]] = 0

    def _header(self, kernel: Kernel, text: str, number: int) -> None:
        parameter = _PARAMETER.match(text)
        if parameter:
            scalar = int(parameter["type"][1:]) // 8
            size = int(parameter["size"]) if parameter["size"] else scalar
            align = int(parameter["align"] or size)
            offset = -(-kernel.parameter_bytes // align) * align
            kernel.parameters.append(Parameter(parameter["name"], offset, size))
        elif text.startswith(".reqntid"):
            threads = [int(n) for n in re.findall(r"\d+", text)]
            kernel.threads = tuple(threads + [1] * (3 - len(threads)))
        elif not text.startswith(
            (")", ".minnctapersm", ".maxntid", ".maxnreg", ".reqnctapercluster",
             ".explicitcluster", ".maxclusterrank", ".blocksareclusters"),
        ):  # fmt: skip
            raise PtxError(f"line {number}: {text!r} in the header of {kernel.name}")

    def _statements(self, kernel: Kernel, text: str, number: int) -> str:
        """Consume what is complete; the rest belongs to the next line."""
        while text:
            if text[0] == "{":
                self._scopes_opened += 1
                self._scopes.append({})
                text = text[1:].strip()
                continue
            if text[0] == "}":
                self._scopes.pop()
                text = text[1:].strip()
                continue
            if text.startswith(".loc"):
                self._locate(text)
                return ""
            label = _LABEL.match(text)
            if label:
                kernel.body.append(self._label(label[1]))
                text = text[label.end() :]
                continue
            statement, separator, rest = text.partition(";")
            if not separator:
                return text + " "
            self._statement(kernel, statement.strip(), number)
            text = rest.strip()
        return ""

    def _locate(self, text: str) -> None:
        where = re.match(r"\.loc\s+(\d+)\s+(\d+)", text)
        if where:
            self._source = f"{self._files.get(where[1], where[1])}:{where[2]}"

    def _label(self, name: str) -> str:
        return name if name.startswith("$") else f"{name}__{self._scopes_opened}"

    def _statement(self, kernel: Kernel, text: str, number: int) -> None:
        if not text:
            return
        registers = _REGISTERS.match(text)
        if registers:
            self._declare(kernel, registers[1], registers[2])
            return
        if text.startswith((".pragma", ".branchtargets")):
            return
        if text.startswith("."):
            raise PtxError(f"line {number}: {text!r} in {kernel.name}")
        guard = _GUARD.match(text)
        if guard:
            text = text[guard.end() :]
        form, _, rest = text.partition(" ")
        form, _, tail = form.partition("\t")
        operands = split_operands(self._rename(f"{tail} {rest}".strip()))
        if form.startswith("bra") and not operands[0].startswith("$"):
            operands = (self._label(operands[0]),)
        kernel.body.append(
            Instruction(
                form,
                operands,
                guard[1] + self._rename(guard[2]) if guard else None,
                number,
                self._source,
            )
        )

    def _declare(self, kernel: Kernel, kind: str, names: str) -> None:
        width = 1 if kind == "pred" else int(kind[1:])
        for name in split_operands(names):
            block = re.match(r"(%[\w$]+)<(\d+)>", name)
            if block:
                kernel.widths |= {f"{block[1]}{i}": width for i in range(int(block[2]))}
                continue
            unique = f"%{name.lstrip('%')}__{self._scopes_opened}"
            if len(self._scopes) > 1:
                self._scopes[-1][name] = unique
            kernel.widths[unique if len(self._scopes) > 1 else name] = width

    def _rename(self, text: str) -> str:
        """Registers of the open scopes by their unique names."""
        local = {old: new for scope in self._scopes for old, new in scope.items()}
        if not local:
            return text
        return _NAME.sub(lambda name: local.get(name[0], name[0]), text)
