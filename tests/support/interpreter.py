"""Triton's interpreter, without work that a test needs no second time.

It runs the programs of a launch one after the other in Python. Results are the same.
"""

from functools import cache


@cache
def builtins_of(package) -> list[str]:
    """Names of a module or class of triton.language that the interpreter replaces."""
    from triton.language.core import is_builtin

    return [name for name in dir(package) if is_builtin(getattr(package, name, None))]


def look_once() -> None:
    """For what it replaces, the interpreter looks through whole modules at every call of a jitted
    function, which takes half of its time: remember the names."""
    from triton.runtime import interpreter

    def patch_builtin(package, builder, scope):
        for name in builtins_of(package):
            member = getattr(package, name)
            if interpreter.tl.core.is_builtin(member):  # else it is replaced already
                interpreter._patch_attr(package, name, member, builder, scope)

    if hasattr(interpreter, "_patch_builtin"):
        interpreter._patch_builtin = patch_builtin


def few_programs(number: int = 7) -> None:
    """Launch no more of the programs that share out rows: those without a row take as long as
    others here. A program has several rows then, as it has on a GPU."""
    from solutions.common.triton_stages import swiglu
    from solutions.deepgemm_moe import swiglu as swiglu_of_deepgemm

    swiglu.MAX_PROGRAMS = swiglu_of_deepgemm.MAX_PROGRAMS = number
