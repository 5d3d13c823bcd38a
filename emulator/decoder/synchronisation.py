"""What lanes, warps and CTAs do together: barriers, mbarriers, shuffles, votes, fences."""

from __future__ import annotations

import re

from ..ptx import Instruction
from .operand import NO_SLOT, Op, Operands, form

# Instructions at which all of a warp's living lanes must meet.
CONVERGENT = re.compile(
    r"shfl\.sync|vote\.sync|redux\.sync|elect\.sync|bar\.|barrier\.|wgmma|setmaxnreg|stmatrix"
    r"|tcgen05\.(ld|st|alloc|dealloc|wait|relinquish)"
)
# After these a warp may have to wait: they end their basic block.
BLOCKING = re.compile(
    r"bar\.sync|barrier\.(cta\.)?sync|barrier\.cluster\.wait|griddepcontrol\.wait"
)
# What a mutation test leaves out.
SYNCHRONISATION = re.compile(
    r"mbarrier\.(init|arrive|try_wait|test_wait|expect_tx)|fence\.|bar\.|barrier\."
    r"|cp\.async\.(wait|mbarrier|commit|bulk\.(wait|commit))|wgmma\.(wait|commit|fence)"
    r"|tcgen05\.(commit|wait|fence)"
    r"|griddepcontrol\.wait"
)

_SHUFFLES = {"idx": 0, "up": 1, "down": 2, "bfly": 3}  # Shuffle of machine.h
# Reduction of machine.h
_REDUCTIONS = {
    "add": 0, "max.s32": 1, "min.s32": 2, "max.u32": 3, "min.u32": 4, "and": 5, "or": 6, "xor": 7,
}  # fmt: skip
_ORDER = r"(?:\.(?:release|acquire|relaxed)\.(?:cta|cluster))?"
_SHARED = r"\.shared(?:::cta|::cluster)?\.b64"


# ------------------------------------------------------------------------------------ mbarrier
@form(r"mbarrier\.init\.shared(?:::cta)?\.b64")
def init(o: Operands, m: re.Match, i: Instruction) -> Op:
    at, count = i.operands
    return Op("mbarrier_init", b=o.narrow(count), **o.shared(at))


@form(rf"mbarrier\.arrive(\.expect_tx)?{_ORDER}{_SHARED}")
def arrive(o: Operands, m: re.Match, i: Instruction) -> Op:
    _, at, *count = i.operands  # waits by parity do not need the state
    name = "mbarrier_arrive_expect" if m[1] else "mbarrier_arrive"
    return Op(name, b=o.narrow(count[0] if count else "1"), **o.shared(at))


@form(rf"mbarrier\.expect_tx{_ORDER}{_SHARED}")
def expect(o: Operands, m: re.Match, i: Instruction) -> Op:
    at, count = i.operands
    return Op("mbarrier_expect", b=o.narrow(count), **o.shared(at))


@form(rf"mbarrier\.(?:try|test)_wait\.parity{_ORDER}{_SHARED}")
def test(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, at, parity = i.operands[:3]  # a time limit may follow
    return Op("mbarrier_test", o.target(to), b=o.narrow(parity), **o.shared(at))


@form(r"mapa\.shared::cluster\.u32")
def map_to_cta(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, at, rank = i.operands
    return Op("map_to_cta", o.target(to), o.narrow(at), o.narrow(rank))


# -------------------------------------------------------------------------------------- fences
@form(r"fence\.proxy\.async(?:\.(shared::cta|shared::cluster|global))?")
def fence_proxy(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("fence_proxy", x=m[1] != "global", y=m[1] in (None, "global"))


@form(r"fence\.mbarrier_init\.release\.cluster")
def fence_inits(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("fence_inits")


@form(
    # what it orders happens in order here
    r"tcgen05\.fence::(?:before|after)_thread_sync",
    r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32",
)
def nothing(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("nothing")


@form(r"griddepcontrol\.(wait|launch_dependents)")
def depend(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("wait_for_launch" if m[1] == "wait" else "trigger_launch")


# ------------------------------------------------------------------------------------ barriers
@form(r"bar\.warp\.sync")
def sync_lanes(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("sync_lanes")


@form(r"bar(?:rier)?(?:\.cta)?\.(sync|arrive)(?:\.aligned)?")
def sync_threads(o: Operands, m: re.Match, i: Instruction) -> Op:
    barrier, *threads = i.operands
    count = o.narrow(threads[0] if threads else "0")
    return Op("sync_threads", a=o.narrow(barrier), b=count, x=m[1] == "sync")


@form(r"barrier\.cluster\.arrive(\.release|\.relaxed)?(?:\.aligned)?")
def cluster_arrive(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("cluster_arrive", x=m[1] != ".relaxed")


@form(r"barrier\.cluster\.wait(?:\.acquire)?(?:\.aligned)?")
def cluster_wait(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("cluster_wait")


# ------------------------------------------------------------------------------- between lanes
@form(r"shfl\.sync\.(idx|up|down|bfly)\.b32")
def shuffle(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, value, by, clamp = i.operands[:4]
    registers = to.split("|")
    return Op(
        "shuffle",
        o.target(registers[0]),
        *map(o.narrow, (value, by, clamp)),
        to2=o.target(registers[1]) if len(registers) > 1 else NO_SLOT,
        x=_SHUFFLES[m[1]],
    )


@form(r"vote\.sync\.(ballot\.b32|any\.pred|all\.pred)")
def vote(o: Operands, m: re.Match, i: Instruction) -> Op:
    name = {"ballot.b32": "ballot", "any.pred": "vote_any", "all.pred": "vote_all"}[m[1]]
    to, predicate = i.operands[:2]
    return Op(name, o.target(to), o.narrow(predicate))


@form(r"redux\.sync\.(add)\.[su]32", r"redux\.sync\.((?:max|min)\.[su]32)",
      r"redux\.sync\.(and|or|xor)\.b32")  # fmt: skip
def reduce(o: Operands, m: re.Match, i: Instruction) -> Op:
    to, value = i.operands[:2]
    return Op("reduce", o.target(to), o.narrow(value), x=_REDUCTIONS[m[1]])


@form(r"elect\.sync")
def elect(o: Operands, m: re.Match, i: Instruction) -> Op:
    lane, predicate = i.operands[0].split("|")
    return Op("elect", o.target(lane), to2=o.target(predicate))


@form(r"activemask\.b32")
def active_mask(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("active_mask", o.target(i.operands[0]))


@form(r"nanosleep\.u32")
def sleep(o: Operands, m: re.Match, i: Instruction) -> Op:
    return Op("sleep")
