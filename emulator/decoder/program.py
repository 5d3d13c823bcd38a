"""A kernel as basic blocks of operations, in the layout that the runtime reads."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field

from ..errors import UnsupportedInstruction
from ..ptx import Instruction, Kernel
from . import arithmetic, memory, tensor_cores  # noqa: F401  they register their forms
from .operand import NO_SLOT, Op, Operands, find_form
from .register_fences import unfenced
from .synchronisation import BLOCKING, CONVERGENT, SYNCHRONISATION

_BRANCH = re.compile(r"bra(\.uni)?")
FALL_THROUGH, BRANCH, EXIT = range(3)  # Ending of machine.h


class _Op(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_void_p),
        *((n, ctypes.c_uint16) for n in ("function", "guard", "to", "to2", "a", "b", "c", "n")),
        ("list", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("x", "y", "line")),
        ("guard_negated", ctypes.c_uint8),
        ("synchronises", ctypes.c_uint8),
        ("offset", ctypes.c_int64),
    ]  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("first", "end", "ending", "target")),
        ("guard", ctypes.c_uint16),
        ("guard_negated", ctypes.c_uint8),
        ("convergent", ctypes.c_uint8),
        ("instructions", ctypes.c_uint32),
    ]


class _Initial(ctypes.Structure):
    _fields_ = [
        ("slot", ctypes.c_uint16),
        ("kind", ctypes.c_uint16),
        ("axis", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    ]


class _Program(ctypes.Structure):
    _fields_ = [
        ("ops", ctypes.POINTER(_Op)),
        ("blocks", ctypes.POINTER(_Block)),
        ("initials", ctypes.POINTER(_Initial)),
        ("pool", ctypes.POINTER(ctypes.c_uint16)),
        *((n, ctypes.c_uint32) for n in ("num_ops", "num_blocks", "num_initials", "num_slots")),
    ]


@dataclass(frozen=True)
class Program:
    """A decoded kernel.

    native: what the runtime reads. blocks: its basic blocks; successors: numbers of those that may
    follow each. sources: "file:line" of a PTX line, where the PTX tells.
    """

    kernel: Kernel
    native: _Program
    blocks: list[list[Instruction]]
    successors: list[list[int]]
    sources: dict[int, str]
    _unfenced: dict[int, int | None] = field(default_factory=dict)

    def synchronisations(self) -> list[Instruction]:
        """The instructions that can be left out of a run."""
        return [i for i in self.kernel.instructions if SYNCHRONISATION.match(i.form)]

    def unfenced(self, omitted: int = 0) -> int | None:
        """See `register_fences.unfenced`."""
        if omitted not in self._unfenced:
            self._unfenced[omitted] = unfenced(self.blocks, self.successors, omitted)
        return self._unfenced[omitted]


def decode(kernel: Kernel, functions: dict[str, int]) -> Program:
    """functions: number of each operation in the runtime.

    Raises UnsupportedInstruction at the first form that is not known.
    """
    operands = Operands(kernel)
    blocks, labels = _split(kernel)
    ops: list[_Op] = []
    native_blocks: list[_Block] = []
    pool: list[int] = []
    for block in blocks:
        first = len(ops)
        ending = _Block(ending=FALL_THROUGH, guard=NO_SLOT)
        for instruction in block:
            operands.instruction = instruction
            if _BRANCH.fullmatch(instruction.form) or instruction.form == "ret":
                ending = _ending(operands, instruction, labels)
            else:
                ops.append(_native(operands, instruction, functions, pool))
        ending.first, ending.end, ending.instructions = first, len(ops), len(block)
        ending.convergent = any(CONVERGENT.match(i.form) for i in block)
        native_blocks.append(ending)
    initials = [_Initial(i.slot, i.kind, i.axis, i.value) for i in operands.initials]
    native = _Program(
        (_Op * len(ops))(*ops),
        (_Block * len(blocks))(*native_blocks),
        (_Initial * len(initials))(*initials),
        (ctypes.c_uint16 * len(pool))(*pool),
        len(ops), len(blocks), len(initials), operands.num_slots,
    )  # fmt: skip
    sources = {i.line: i.source for i in kernel.instructions if i.source}
    return Program(kernel, native, blocks, _successors(blocks, labels), sources)


def _split(kernel: Kernel) -> tuple[list[list[Instruction]], dict[str, int]]:
    """Basic blocks, and the block that each label starts."""
    blocks: list[list[Instruction]] = [[]]
    labels = {}
    for item in kernel.body:
        if isinstance(item, str):
            if blocks[-1]:
                blocks.append([])
            labels[item] = len(blocks) - 1
            continue
        blocks[-1].append(item)
        if _BRANCH.fullmatch(item.form) or item.form == "ret" or BLOCKING.match(item.form):
            blocks.append([])
    return blocks if blocks[-1] else blocks[:-1], labels


def _successors(blocks: list[list[Instruction]], labels: dict[str, int]) -> list[list[int]]:
    found: list[list[int]] = []
    for number, block in enumerate(blocks):
        last = block[-1]
        following = [number + 1] if number + 1 < len(blocks) else []
        if last.form == "ret":
            found.append([])
        elif _BRANCH.fullmatch(last.form):
            found.append([labels[last.operands[0]], *(following if last.guard else [])])
        else:
            found.append(following)
    return found


def _guard(operands: Operands, instruction: Instruction) -> tuple[int, bool]:
    """Slot of the guard, and whether it is negated."""
    if instruction.guard is None:
        return NO_SLOT, False
    return operands.narrow(instruction.guard.lstrip("!")), instruction.guard.startswith("!")


def _native(operands: Operands, instruction: Instruction, functions: dict, pool: list[int]) -> _Op:
    known = find_form(instruction.form)
    if known is None:
        raise UnsupportedInstruction(instruction.form, instruction.line, operands.kernel.name)
    match, handler = known
    op: Op = handler(operands, match, instruction)
    guard, negated = _guard(operands, instruction)
    pool.extend(op.slots)
    return _Op(
        function=functions[op.name], guard=guard, to=op.to, to2=op.to2, a=op.a, b=op.b, c=op.c,
        n=len(op.slots), list=len(pool) - len(op.slots), x=op.x, y=op.y, line=instruction.line,
        guard_negated=negated, synchronises=bool(SYNCHRONISATION.match(instruction.form)),
        offset=op.offset,
    )  # fmt: skip


def _ending(operands: Operands, instruction: Instruction, labels: dict[str, int]) -> _Block:
    guard, negated = _guard(operands, instruction)
    if instruction.form == "ret":
        if guard != NO_SLOT:
            raise operands.unsupported("with a guard")
        return _Block(ending=EXIT, guard=guard)
    return _Block(ending=BRANCH, target=labels[instruction.operands[0]], guard=guard,
                  guard_negated=negated)  # fmt: skip
