"""Decodes PTX kernels to the operations of the C runtime."""

from .program import Program, decode

__all__ = ["Program", "decode"]
