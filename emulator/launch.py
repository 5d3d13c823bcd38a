"""Runs decoded kernels on the C runtime."""

from __future__ import annotations

import ctypes
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .buffers import merged
from .build import operations, runtime
from .decoder import Program, decode
from .errors import KernelError
from .ptx import parse
from .schedule import EAGER, Schedule

SHARED_BASE = 1024  # the system's own bytes come first
MAX_DYNAMIC_SHARED = 227 * 1024
MAX_INSTRUCTIONS = 2_000_000_000
_MESSAGE_BYTES = 16384


@dataclass(frozen=True)
class LaunchConfig:
    """A kernel's launch as the host code asked for it.

    parameters: all of them at their places in the kernel's parameter space. overlaps: with the
    launch before, whose end it waits for itself (programmatic dependent launch).
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes
    overlaps: bool = False


class _Launch(ctypes.Structure):  # Launch of scheduler.c
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("shared_base", ctypes.c_uint32),
        ("parameters", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("num_ranges", ctypes.c_uint32),
        ("parameter_bytes", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("schedule", "slice", "omitted", "race", "overlaps")),
        ("seed", ctypes.c_uint64),
        ("max_instructions", ctypes.c_uint64),
        ("conflicts", ctypes.c_void_p),
    ]


_COUNTERS = (  # Counters of machine.h
    "instructions", "multiply_adds", "proxy_violations", "races", "rounds", "tma_load_bytes",
    "tma_store_bytes", "copy_bytes", "global_load_bytes", "global_store_bytes",
    "shared_load_bytes", "shared_store_bytes", "tma_loads", "tma_stores", "unordered_load_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class KernelRun:
    """What a launch did. seconds: its share of those of all launches that ran with it.

    instructions: by warps. multiply_adds: of the tensor cores. counts: how often warps executed
    each instruction form. lines: of the PTX that were executed. counters: the runtime's, by name
    (bytes by TMA, loads and stores).
    bank_conflicts: per PTX line, if they were counted: for each load from or store to shared memory
    by a warp, the turns it took beyond those that its bytes need.
    """

    config: LaunchConfig
    seconds: float
    instructions: int
    multiply_adds: int
    counts: Counter = field(repr=False)
    lines: frozenset[int] = field(repr=False)
    counters: dict[str, int] = field(repr=False)
    bank_conflicts: Counter = field(repr=False)


class Module:
    """The kernels of one PTX module, decoded at their first launch."""

    def __init__(self, ptx: str):
        """Raises PtxError where the text is not known PTX."""
        self.kernels = {kernel.name: kernel for kernel in parse(ptx)}
        self._programs: dict[str, Program] = {}

    def program(self, kernel: str) -> Program:
        """Raises UnsupportedInstruction for an instruction form that is not known."""
        if kernel not in self._programs:
            self._programs[kernel] = decode(self.kernels[kernel], operations())
        return self._programs[kernel]


@dataclass(frozen=True)
class Emulator:
    """How kernels are run.

    race: check that accesses to shared memory, tensor memory and global memory are ordered, and
    that a wgmma.fence lies between a register's use and a wgmma that accumulates in it.
    bank_conflicts: count them. max_instructions: of all warps of a launch together.
    omit: PTX line of a synchronisation that is left out, for mutation tests.
    """

    schedule: Schedule = EAGER
    race: bool = False
    max_instructions: int = MAX_INSTRUCTIONS
    omit: int | None = None
    bank_conflicts: bool = False

    def run(self, module: Module, config: LaunchConfig, ranges: list[tuple[int, int]]) -> KernelRun:
        """Run one launch; `ranges` are the first byte and the end of each accessible buffer.

        Raises KernelError for whatever the kernel must not do.
        """
        return self.run_stream(module, [config], ranges)[0]

    def run_stream(
        self, module: Module, configs: Sequence[LaunchConfig], ranges: list[tuple[int, int]]
    ) -> list[KernelRun]:
        """Run launches that lie behind each other in a stream. Those that overlap do so where the
        schedule is not eager."""
        count = len(configs)
        programs = [module.program(config.kernel) for config in configs]
        for program, config in zip(programs, configs, strict=True):
            _check_shape(program, config)
            line = program.unfenced(self.omit or 0) if self.race else None
            if line:
                raise self._error(program, f"race: registers, no wgmma.fence (PTX line {line})")
        bounds = [bound for pair in merged(ranges) for bound in pair]
        native_bounds = (ctypes.c_uint64 * len(bounds))(*bounds)
        parameters = [_aligned(config.parameters, 64) for config in configs]
        conflicts = [(ctypes.c_uint64 * _lines(program))() for program in programs]
        executed = [(ctypes.c_uint64 * program.native.num_blocks)() for program in programs]
        launches = (_Launch * count)(*(
            _Launch(
                config.grid, config.block, config.cluster, SHARED_BASE, memory[1],
                ctypes.addressof(native_bounds), len(bounds) // 2, len(config.parameters),
                self.schedule.number, self.schedule.slice, self.omit or 0, self.race,
                config.overlaps, self.schedule.seed, self.max_instructions,
                ctypes.addressof(turns) if self.bank_conflicts else None,
            )
            for config, memory, turns in zip(configs, parameters, conflicts, strict=True)
        ))  # fmt: skip
        counters = (ctypes.c_uint64 * len(_COUNTERS) * count)()
        message, failed = ctypes.create_string_buffer(_MESSAGE_BYTES), ctypes.c_int()
        start = time.perf_counter()
        ended = not count or runtime().run_grids(
            count, _addresses(program.native for program in programs), launches, counters,
            _addresses(executed), message, ctypes.byref(failed),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        text = message.value.decode()
        if not ended or text:
            raise self._error(programs[failed.value], text)
        return [
            _result(*each, seconds / count)
            for each in zip(configs, programs, counters, executed, conflicts, strict=True)
        ]

    @staticmethod
    def _error(program: Program, text: str) -> KernelError:
        lines = re.findall(r"PTX line (\d+)", text)
        line = int(lines[-1]) if lines else None
        source = program.sources.get(line) if line else None
        return KernelError(text, program.kernel.name, line, source)


def _result(config, program, counters, executed, conflicts, seconds: float) -> KernelRun:
    named = dict(zip(_COUNTERS, counters, strict=True))
    counts: Counter = Counter()
    for times, block in zip(executed, program.blocks, strict=True):
        for instruction in block:
            counts[instruction.form] += times
    blocks = zip(executed, program.blocks, strict=True)
    lines = frozenset(i.line for times, block in blocks if times for i in block)
    return KernelRun(
        config, seconds, named["instructions"], named["multiply_adds"], counts, lines, named,
        Counter({line: turns for line, turns in enumerate(conflicts) if turns}),
    )  # fmt: skip


def _lines(program: Program) -> int:
    return 1 + max(instruction.line for instruction in program.kernel.instructions)


def _addresses(structures: Iterable) -> ctypes.Array:
    pointers = [ctypes.addressof(structure) for structure in structures]
    return (ctypes.c_void_p * len(pointers))(*pointers)


def _check_shape(program: Program, config: LaunchConfig) -> None:
    if config.shared_bytes > MAX_DYNAMIC_SHARED:
        raise Emulator._error(
            program,
            f"{config.shared_bytes} bytes of dynamic shared memory, at most "
            f"{MAX_DYNAMIC_SHARED} exist",
        )
    threads = config.block[0] * config.block[1] * config.block[2]
    expected = program.kernel.threads
    if expected is not None and tuple(config.block) != expected:
        raise Emulator._error(program, f"a block of {config.block} threads, {expected} expected")
    if threads % 32 or not 0 < threads <= 1024:
        raise Emulator._error(program, f"a block of {threads} threads is not whole warps")
    for size, cluster in zip(config.grid, config.cluster, strict=True):
        if not size or size % cluster:
            raise Emulator._error(
                program, f"a grid of {config.grid} is not whole clusters of {config.cluster}"
            )


def _aligned(data: bytes, alignment: int) -> tuple[ctypes.Array, int]:
    """A copy, and its address."""
    memory = ctypes.create_string_buffer(len(data) + alignment)
    address = -(-ctypes.addressof(memory) // alignment) * alignment
    ctypes.memmove(address, data, len(data))
    return memory, address
