"""Integer and floating-point arithmetic, logic, comparisons, moves and conversions."""

from __future__ import annotations

import re

from ..ptx import Instruction
from .operand import Op, Operands, form

_BITS = {"pred": "32"}  # a predicate is a mask


def _width(kind: str) -> str:
    return _BITS.get(kind, kind[1:])


def _plain(o: Operands, i: Instruction, name: str, kind: str) -> Op:
    """An operation whose result and operands all have the type."""
    to, *sources = i.operands
    slots = [o.value(source, kind) for source in sources]
    return Op(name, o.target(to), *slots)


# --------------------------------------------------------------------------------------- moves
@form(r"mov\.(b16|u16|b32|u32|s32|f32|b64|u64|s64|pred)")
def move(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, source = i.operands
    kind = m[1]
    if to.startswith("{"):
        parts = o.elements(to)
        if len(parts) != 2 or kind not in ("b32", "b64"):
            raise o.unsupported(f"{len(parts)} parts")
        targets = [o.target(part) for part in parts]
        return Op(f"unpack_{kind[1:]}", targets[0], o.value(source, kind), to2=targets[1])
    if source.startswith("{"):
        parts = o.elements(source)
        if len(parts) != 2 or kind not in ("b16", "b32", "b64"):
            raise o.unsupported(f"{len(parts)} parts")
        return Op(f"pack_{kind[1:]}", o.target(to), *map(o.narrow, parts))
    if kind == "pred" and not source.startswith("%"):
        return Op("mov_32", o.target(to), o.constant(-1 if o.immediate(source) else 0))
    return Op(f"mov_{_width(kind)}", o.target(to), o.value(source, kind))


@form(r"selp\.(b16|b32|u32|s32|f32|b64)")
def select(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, yes, no, predicate = i.operands
    name = "select_64" if m[1] == "b64" else "select_32"
    return Op(name, o.target(to), o.value(yes, m[1]), o.value(no, m[1]), o.narrow(predicate))


@form(r"cvta\.(?:param|global|shared|to\.global|to\.shared|to\.shared::cluster)\.u64")
def convert_address(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, "mov_64", "b64")


# ------------------------------------------------------------------------------------ integers
@form(
    r"(add|sub)\.[su](16|32|64)",
    r"(mul)\.lo\.[su](16|32|64)",
    r"(mad)\.lo\.[su](32|64)",
    r"(not)\.b(16|32|64)",
    r"(neg)\.s(16|32|64)",
)
def integer(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_{m[2]}", f"b{m[2]}")


@form(r"(and|or|xor|not)\.(b16|b32|b64|pred)")
def logic(o: Operands, m: re.Match, i: Instruction) -> Op:
    width = "64" if m[2] == "b64" else "32"
    return _plain(o, i, f"{m[1]}_{width}", m[2])


@form(
    r"(abs)\.(s32)",
    r"(max|min)\.(s16|s32|u32)",
    r"(div|rem)\.(s32|u32)",
)
def signed(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_{m[2]}", m[2])


@form(r"mul\.(hi)\.(u16|s32|u32)", r"mul\.(wide)\.(s16|u16|s32|u32)")
def product(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"mul_{m[1]}_{m[2]}", m[2])


@form(r"mad\.wide\.(s32|u32)")
def multiply_add_wide(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, a, b, c = i.operands
    return Op(f"mad_wide_{m[1]}", o.target(to), o.narrow(a), o.narrow(b), o.wide(c))


@form(r"(shl)\.b(16|32|64)", r"(shr)\.([bsu])(16|32|64)")
def shift(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, a, by = i.operands
    bits = m.groups()[-1]
    if m[1] == "shl":
        name = f"shl_{bits}"
    elif m[2] == "s":
        name = f"shr_s{bits}"
    else:  # the upper half of a 16-bit value is clear
        name = "shr_u64" if bits == "64" else "shr_u32"
    return Op(name, o.target(to), o.value(a, f"b{bits}"), o.narrow(by))


@form(r"(popc|clz|prmt)\.b32")
def bits(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, m[1], "b32")


# ---------------------------------------------------------------------------------------- fp32
@form(
    r"(add|sub|mul)(?:\.rn)?\.f32",
    r"(fma)\.(rn|rm)\.f32",
    r"(div)\.rn\.f32",
    r"(max|min|neg|abs)\.f32",
    r"(ex2|rcp)\.approx\.ftz\.f32",
)
def real(o: Operands, m: re.Match, i: Instruction) -> Op:
    rounding = f"_{m[2]}" if m[1] == "fma" else ""
    return _plain(o, i, f"{m[1]}{rounding}_f32", "f32")


@form(r"(add|sub)(?:\.rn)?\.f32\.bf16", r"(fma)\.rn\.f32\.bf16")
def real_and_bf16(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_f32_bf16", "f32")


@form(r"(add|mul|fma)(?:\.rn)?\.f32x2")
def pairs(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_f32x2", "b64")


# --------------------------------------------------------------------------------- comparisons
@form(r"setp\.(eq|ne|lt|le|gt|ge|lo|ls|hi|hs)\.([bsu])(16|32|64)")
def compare(o: Operands, m: re.Match, i: Instruction) -> Op:
    name = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(m[1], m[1])
    if m[2] == "s":
        kind = f"s{m[3]}"
    else:
        kind = "u64" if m[3] == "64" else "u32"
    to, a, b = i.operands
    return Op(f"{name}_{kind}", o.target(to), o.value(a, kind), o.value(b, kind))


@form(r"setp\.(eq|ne|lt|le|gt|ge)(u?)\.f32", r"setp\.(num|nan)()\.f32")
def compare_real(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_{'unordered_' if m[2] else ''}f32", "f32")


# --------------------------------------------------------------------------------- conversions
@form(r"cvt\.([su])(8|16|32|64)\.([su])(8|16|32|64)")
def convert_integer(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, a = i.operands
    from_bits, to_bits = int(m[4]), int(m[2])
    source = o.wide(a) if from_bits == 64 else o.narrow(a)
    return Op(
        "convert_integer",
        o.target(to),
        source,
        x=-from_bits if m[3] == "s" else from_bits,
        y=-to_bits if m[1] == "s" else to_bits,
    )


@form(
    r"cvt\.(f32)\.(bf16)",
    r"cvt\.rn\.(f32)\.(s32|u32)",
    r"cvt\.rn\.(bf16)\.(f32)",
    r"cvt\.rn\.(bf16x2)\.(f32)",
    r"cvt\.rn\.satfinite\.(e4m3x2)\.(f32)",
)
def convert(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, f"{m[1]}_from_{m[2]}", "b32")


@form(r"cvt\.sat\.f32\.f32")
def saturate(o: Operands, m: re.Match, i: Instruction) -> Op:
    return _plain(o, i, "sat_f32", "f32")
