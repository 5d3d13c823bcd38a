"""Runs what CuTe DSL compiles for sm_90a and sm_100a on a CPU: see README.md."""

from .buffers import Buffers
from .compiled import EmulatedFunction
from .errors import (
    CompilerMissing,
    EmulatorError,
    KernelError,
    PtxError,
    UnsupportedInstruction,
)
from .host import HostProgram, emulated_launch
from .launch import Emulator, KernelRun, LaunchConfig, Module
from .mutation import Mutant, mutants
from .schedule import EAGER, LAZY, Schedule, random_schedules

__all__ = [
    "EAGER", "LAZY", "Buffers", "CompilerMissing", "EmulatedFunction", "Emulator", "EmulatorError",
    "HostProgram", "KernelError", "KernelRun", "LaunchConfig", "Module", "Mutant", "PtxError",
    "Schedule", "UnsupportedInstruction", "emulated_launch", "mutants", "random_schedules",
]  # fmt: skip
