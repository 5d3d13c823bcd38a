"""wgmma and tcgen05."""

from __future__ import annotations

import re

from ..ptx import Instruction
from .operand import Op, Operands, form

_SHAPES = {"32x32b": 0, "16x64b": 1, "16x128b": 2, "16x256b": 3}  # TmemShape of machine.h
_REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4}  # of .x1


@form(
    r"wgmma\.fence\.sync\.aligned",
    r"tcgen05\.relinquish_alloc_permit\.cta_group::[12]\.sync\.aligned",
)
def nothing(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("nothing")


@form(r"wgmma\.commit_group\.sync\.aligned")
def commit(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("wgmma_commit")


@form(r"wgmma\.wait_group\.sync\.aligned")
def wait(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("wgmma_wait", x=o.immediate(i.operands[0]))


@form(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k32\.f32\.e4m3\.e4m3")
def warpgroup_mma(o: Operands, m: re.Match, i: Instruction) -> Op:
    accumulators, a, b, accumulate, *scales = i.operands
    if not o.is_wide(a) or [o.immediate(scale) for scale in scales] != [1, 1]:
        raise o.unsupported("A must be in shared memory, and both scales 1")
    slots, columns = tuple(map(o.target, o.elements(accumulators))), int(m[1])
    if len(slots) != columns // 2:
        raise o.unsupported(f"{len(slots)} accumulators")
    return Op("wgmma", a=o.wide(a), b=o.wide(b), c=o.narrow(accumulate), x=columns, slots=slots)


@form(r"tcgen05\.alloc\.cta_group::([12])\.sync\.aligned\.shared::cta\.b32")
def alloc(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, columns = i.operands
    return Op("tcgen05_alloc", b=o.narrow(columns), x=int(m[1]), **o.shared(to))


@form(r"tcgen05\.dealloc\.cta_group::([12])\.sync\.aligned\.b32")
def dealloc(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("tcgen05_dealloc", a=o.narrow(i.operands[0]), b=o.narrow(i.operands[1]), x=int(m[1]))


@form(r"tcgen05\.mma\.cta_group::([12])\.kind::f8f6f4(?:\.collector::a::discard)?")
def mma(o: Operands, m: re.Match, i: Instruction) -> Op:
    d, a, b, instruction, *rest = i.operands
    if not o.is_wide(a):
        raise o.unsupported("A must be in shared memory")
    disabled = o.elements(rest.pop(0)) if rest[0].startswith("{") else []  # masks of output lanes
    return Op(
        "tcgen05_mma", b=o.wide(a), c=o.wide(b), x=int(m[1]),
        slots=tuple(map(o.narrow, (instruction, rest[0], *disabled))), **o.shared(d),
    )  # fmt: skip


@form(
    r"tcgen05\.commit\.cta_group::([12])\.mbarrier::arrive::one\.shared::cluster"
    r"(\.multicast::cluster)?\.b64"
)
def tcgen05_commit(o: Operands, m: re.Match, i: Instruction) -> Op:
    mask = o.narrow(i.operands[1] if m[2] else "0")
    return Op("tcgen05_commit", b=mask, x=int(m[1]), **o.shared(i.operands[0]))


@form(r"tcgen05\.(ld|st)\.sync\.aligned\.(32x32b|16x64b|16x128b|16x256b)\.x(\d+)\.b32")
def transfer(o: Operands, m: re.Match, i: Instruction) -> Op:
    vector, tmem = i.operands if m[1] == "ld" else reversed(i.operands)
    slots = tuple(map(o.target if m[1] == "ld" else o.narrow, o.elements(vector)))
    if len(slots) != int(m[3]) * _REGISTERS[m[2]]:
        raise o.unsupported(f"{len(slots)} registers")
    name = "tcgen05_load" if m[1] == "ld" else "tcgen05_store"
    return Op(name, slots=slots, x=_SHAPES[m[2]], **o.shared(tmem))


@form(r"tcgen05\.wait::(ld|st)\.sync\.aligned")
def transfer_wait(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("tcgen05_wait_loads" if m[1] == "ld" else "tcgen05_wait_stores")
