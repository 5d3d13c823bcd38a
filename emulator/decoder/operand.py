"""Where the operands of a kernel's instructions are, and the registry of instruction forms.

A warp's register file consists of slots of 32 lanes of 32 bits; 64-bit values take two. Constants
and special registers have slots of their own, which are filled when a warp starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ..errors import UnsupportedInstruction
from ..ptx import Instruction, Kernel

NO_SLOT = 0xFFFF

# InitialKind of scheduler.c
(CONSTANT, WIDE_CONSTANT, THREAD, THREADS, CTA, CTAS, CTA_IN_CLUSTER, CTAS_IN_CLUSTER, CLUSTER,
 CLUSTERS, RANK, CLUSTER_SIZE, LANE, WARP, SHARED, PARAMETER) = range(16)  # fmt: skip

_SPECIAL = {
    "%laneid": LANE, "%warpid": WARP, "%cluster_ctarank": RANK, "%cluster_nctarank": CLUSTER_SIZE,
}  # fmt: skip
_SPECIAL_BY_AXIS = {
    "%tid": THREAD, "%ntid": THREADS, "%ctaid": CTA, "%nctaid": CTAS,
    "%cluster_ctaid": CTA_IN_CLUSTER, "%cluster_nctaid": CTAS_IN_CLUSTER, "%clusterid": CLUSTER,
    "%nclusterid": CLUSTERS,
}  # fmt: skip
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]$")


@dataclass(frozen=True)
class Initial:
    """What a slot holds when a warp starts."""

    slot: int
    kind: int
    axis: int = 0
    value: int = 0


@dataclass
class Op:
    """An operation of the runtime: see Op in machine.h. slots: the entries of its list."""

    name: str
    to: int = NO_SLOT
    a: int = NO_SLOT
    b: int = NO_SLOT
    c: int = NO_SLOT
    _: KW_ONLY
    to2: int = NO_SLOT
    slots: tuple[int, ...] = ()
    x: int = 0
    y: int = 0
    offset: int = 0


Handler = Callable[["Operands", re.Match, Instruction], Op]
_FORMS: list[tuple[re.Pattern, Handler]] = []


def form(*patterns: str) -> Callable[[Handler], Handler]:
    """Register a handler for the instruction forms that one of the patterns matches entirely."""

    def register(handler: Handler) -> Handler:
        _FORMS.extend((re.compile(pattern), handler) for pattern in patterns)
        return handler

    return register


def find_form(name: str) -> tuple[re.Match, Handler] | None:
    for pattern, handler in _FORMS:
        match = pattern.fullmatch(name)
        if match:
            return match, handler
    return None


@dataclass
class Operands:
    """Slots of one kernel's registers, constants and special registers."""

    kernel: Kernel
    initials: list[Initial] = field(default_factory=list)
    num_slots: int = 0
    instruction: Instruction = field(init=False)
    _registers: dict[str, int] = field(default_factory=dict)
    _constants: dict[tuple, int] = field(default_factory=dict)

    def unsupported(self, reason: str) -> UnsupportedInstruction:
        i = self.instruction
        return UnsupportedInstruction(i.form, i.line, self.kernel.name, reason)

    def is_wide(self, operand: str) -> bool:
        return self.kernel.widths.get(operand) == 64

    def _allocate(self, wide: bool) -> int:
        if wide:
            self.num_slots += self.num_slots % 2
        slot = self.num_slots
        self.num_slots += 2 if wide else 1
        if self.num_slots >= NO_SLOT:
            raise self.unsupported("the kernel has too many registers")
        return slot

    def _register(self, name: str) -> int:
        if name not in self.kernel.widths:
            raise self.unsupported(f"unknown operand {name}")
        if name not in self._registers:
            self._registers[name] = self._allocate(self.is_wide(name))
        return self._registers[name]

    def _initial(self, kind: int, axis: int = 0, value: int = 0) -> int:
        key = kind, axis, value
        if key not in self._constants:
            slot = self._allocate(kind in (WIDE_CONSTANT, PARAMETER))
            self._constants[key] = slot
            self.initials.append(Initial(slot, kind, axis, value))
        return self._constants[key]

    def constant(self, value: int) -> int:
        return self._initial(CONSTANT, value=value & 0xFFFFFFFF)

    def narrow(self, operand: str) -> int:
        """Slot of up to 32 bits, or of the lower half of a 64-bit register."""
        if operand in _SPECIAL:
            return self._initial(_SPECIAL[operand])
        base, _, axis = operand.partition(".")
        if base in _SPECIAL_BY_AXIS and axis in ("x", "y", "z"):
            return self._initial(_SPECIAL_BY_AXIS[base], "xyz".index(axis))
        if operand.startswith("%"):
            if self.is_wide(operand):
                raise self.unsupported(f"{operand} has 64 bits")
            return self._register(operand)
        if operand in self.kernel.shared:
            return self._initial(SHARED, value=self.kernel.shared[operand])
        if operand.startswith("0f"):
            return self.constant(int(operand.removeprefix("0f"), 16))
        if _INTEGER.match(operand):
            return self.constant(self.integer(operand))
        raise self.unsupported(f"operand {operand}")

    def wide(self, operand: str) -> int:
        """Slot of 64 bits."""
        parameter = next((p for p in self.kernel.parameters if p.name == operand), None)
        if parameter is not None:
            return self._initial(PARAMETER, value=parameter.offset)
        if operand.startswith("%"):
            if not self.is_wide(operand):
                raise self.unsupported(f"{operand} has not 64 bits")
            return self._register(operand)
        if _INTEGER.match(operand):
            return self._initial(WIDE_CONSTANT, value=self.integer(operand) & (1 << 64) - 1)
        raise self.unsupported(f"operand {operand}")

    def value(self, operand: str, kind: str) -> int:
        """Slot of an operand of a type such as "s64" or "b32"."""
        return self.wide(operand) if kind.endswith("64") else self.narrow(operand)

    def target(self, register: str) -> int:
        """Slot of a register that is written; "_" is none."""
        if register == "_":
            return self._allocate(wide=True)
        return self._register(register)

    @staticmethod
    def integer(operand: str) -> int:
        return int(operand.rstrip("U"), 0)

    def immediate(self, operand: str) -> int:
        if not _INTEGER.match(operand):
            raise self.unsupported(f"{operand} is not a constant")
        return self.integer(operand)

    def address(self, operand: str, wide: bool) -> tuple[int, int]:
        """Slot and displacement of `[register+displacement]`."""
        match = _ADDRESS.match(operand)
        if not match:
            raise self.unsupported(f"address {operand}")
        base = self.wide(match[1]) if wide else self.narrow(match[1])
        return base, self.integer(match[2]) if match[2] else 0

    def shared(self, operand: str) -> dict[str, Any]:
        """`a` and `offset` of an Op at an address in shared memory."""
        base, offset = self.address(operand, wide=False)
        return {"a": base, "offset": offset}

    def memory(self, operand: str) -> dict[str, Any]:
        """`a` and `offset` of an Op at a 64-bit address."""
        base, offset = self.address(operand, wide=True)
        return {"a": base, "offset": offset}

    @staticmethod
    def elements(operand: str) -> list[str]:
        """The registers of a vector operand, or the one of a scalar."""
        if operand.startswith("{"):
            return [name.strip() for name in operand.strip("{}").split(",")]
        return [operand]
