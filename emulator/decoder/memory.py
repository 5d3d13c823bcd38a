"""Loads, stores, atomics, cp.async and TMA."""

from __future__ import annotations

import re

from ..ptx import Instruction
from .operand import NO_SLOT, Op, Operands, form

_TYPE = r"[bsuf](?P<bits>8|16|32|64)"
_VECTOR = r"(?:\.v[248])?"
# Atomic of machine.h
_ATOMICS = {
    "add.u32": 0, "add.s32": 0, "max.s32": 1, "min.s32": 2, "and.b32": 3, "or.b32": 4,
    "exch.b32": 5, "cas.b32": 6,
}  # fmt: skip


@form(
    rf"ld\.(?P<space>param|global|shared){_VECTOR}\.{_TYPE}",
    rf"ld\.(?P<space>global)\.nc(?:\.L1::no_allocate)?{_VECTOR}\.{_TYPE}",
    rf"ld\.(?P<space>acquire)\.(?:gpu|sys)\.global{_VECTOR}\.{_TYPE}",
)
def load(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source = i.operands
    place = o.shared(source) if m["space"] == "shared" else o.memory(source)
    name = "load_parameter" if m["space"] == "param" else f"load_{m['space']}"
    registers, size = o.elements(to), int(m["bits"])
    wide = any(map(o.is_wide, registers)) or size == 64
    if wide and not all(name == "_" or o.is_wide(name) for name in registers):
        raise o.unsupported("into registers of other widths")
    if ".s8" in i.form or ".s16" in i.form or (".s32" in i.form and wide):
        raise o.unsupported("which extends the sign")
    slots = tuple(map(o.target, registers))
    return Op(name, slots=slots, x=size // 8, y=wide, **place)


@form(rf"st\.(global|shared|shared::cluster){_VECTOR}\.{_TYPE}")
def store(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source = i.operands
    place = o.memory(to) if m[1] == "global" else o.shared(to)
    registers, size = o.elements(source), int(m["bits"])
    wide = size == 64 or any(map(o.is_wide, registers))
    slots = tuple(map(o.wide if wide else o.narrow, registers))
    name = "store_global" if m[1] == "global" else "store_shared"
    return Op(name, slots=slots, x=size // 8, y=wide, **place)


@form(r"stmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared(?:::cta)?\.b16")
def store_matrices(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source = i.operands
    slots = tuple(map(o.narrow, o.elements(source)))
    return Op("store_matrices", slots=slots, x=bool(m[1]), **o.shared(to))


@form(rf"st\.async\.shared::cluster\.mbarrier::complete_tx::bytes{_VECTOR}\.[bsuf]32")
def store_async(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source, mbarrier = i.operands
    slots = tuple(map(o.narrow, o.elements(source)))
    barrier, displacement = o.address(mbarrier, wide=False)
    return Op("store_async", b=barrier, x=displacement, slots=slots, **o.shared(to))


@form(r"(atom|red)(?:\.(relaxed|acquire|release|acq_rel))?(?:\.gpu)?\.global\.(\w+\.\w+)")
def atomic(o: Operands, m: re.Match, i: Instruction) -> Op:
    if m[3] not in _ATOMICS:
        raise o.unsupported("operation")
    to, at, value, *swap = ("_", *i.operands) if m[1] == "red" else i.operands
    acquires, releases = m[2] in ("acquire", "acq_rel"), m[2] in ("release", "acq_rel")
    return Op(
        "atomic_global",
        o.target(to),
        b=o.narrow(value),
        c=o.narrow(swap[0]) if swap else o.constant(0),
        x=_ATOMICS[m[3]],
        y=acquires + 2 * releases,
        **o.memory(at),
    )


@form(r"prefetch\.(?:global\.L2|tensormap)", r"cp\.async\.bulk\.prefetch\.tensor\..*")
def prefetch(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("nothing")


# ------------------------------------------------------------------------------------ cp.async
@form(r"cp\.async\.c[ag]\.shared\.global")
def copy(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source, size, *rest = i.operands
    target, displacement = o.address(to, wide=False)
    address, offset = o.address(source, wide=True)
    source_bytes = o.narrow(rest[0] if rest else size)
    return Op(
        "copy_async", a=target, b=address, c=source_bytes, x=o.immediate(size), y=displacement,
        offset=offset,
    )  # fmt: skip


@form(r"cp\.async\.mbarrier\.arrive\.noinc\.shared\.b64")
def copy_arrive(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("copy_arrive", **o.shared(i.operands[0]))


@form(r"cp\.async\.(commit_group)", r"cp\.async\.bulk\.(commit_group)")
def commit(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("store_commit" if "bulk" in i.form else "copy_commit")


@form(r"cp\.async\.wait_group", r"cp\.async\.bulk\.wait_group(?:\.read)?")
def wait(o: Operands, m: re.Match, i: Instruction) -> Op:
    name = "store_wait" if "bulk" in i.form else "copy_wait"
    return Op(name, x=o.immediate(i.operands[0]))


# ----------------------------------------------------------------------------------------- TMA
_MODIFIERS = (
    r"(?:(?P<multicast>\.multicast::cluster)|(?P<hint>\.L2::cache_hint)|(?P<pair>\.cta_group::2))*"
)


@form(
    r"cp\.async\.bulk\.tensor\.[1-5]d\.shared::(?:cta|cluster)\.global(?:\.tile)?"
    rf"(?P<gather>::gather4)?\.mbarrier::complete_tx::bytes{_MODIFIERS}"
)
def tma_load(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, tensor, mbarrier, *rest = i.operands
    descriptor, coordinates = _tensor(o, tensor)
    shared, offset = o.address(to, wide=False)
    barrier, displacement = o.address(mbarrier, wide=False)
    return Op(
        "tma_load",
        a=descriptor,
        b=shared,
        c=barrier,
        to2=o.narrow(rest[0]) if m["multicast"] else NO_SLOT,
        slots=coordinates,
        x=displacement,
        y=bool(m["pair"]) + 2 * bool(m["gather"]),
        offset=offset,
    )


@form(
    r"cp\.async\.bulk\.tensor\.[1-5]d\.global\.shared::cta(?:\.tile)?\.bulk_group"
    r"(?:\.L2::cache_hint)?"
)
def tma_store(o: Operands, m: re.Match, i: Instruction) -> Op:
    tensor, source = i.operands[:2]
    descriptor, coordinates = _tensor(o, tensor)
    shared, offset = o.address(source, wide=False)
    return Op("tma_store", a=descriptor, b=shared, slots=coordinates, offset=offset)


def _tensor(o: Operands, operand: str) -> tuple[int, tuple[int, ...]]:
    """Slots of descriptor and coordinates of `[descriptor, {x, y, ...}]`."""
    match = re.fullmatch(r"\[\s*(%?[\w$]+)\s*,\s*\{([^}]*)\}\s*\]", operand)
    if not match:
        raise o.unsupported(f"tensor {operand}")
    return o.wide(match[1]), tuple(o.narrow(x.strip()) for x in match[2].split(","))
