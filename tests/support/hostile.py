"""Solutions that are hostile, broken or only odd, and what has to be said about each.

Sources are for the toy operator (toy_bundle.py). An honest one is right, whatever else it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from toy_bundle import control

SIGNATURE = "routing_logits, hidden_states, weights, weights_scale, scaling_factor"
RIGHT = f"compute({SIGNATURE})"


@dataclass(frozen=True)
class Case:
    source: str
    status: str
    message: str = ""
    """Part of the last line of the log."""


def taking(body: str, head: str = "") -> str:
    """A solution that takes its output; `{right}` stands for the right one."""
    lines = "\n".join("    " + line for line in body.replace("{right}", RIGHT).splitlines())
    return (
        f"import ctypes, os, signal, socket, subprocess, sys, threading, time\nimport torch\n"
        f"from ..common.moe import compute\n{head}\n\ndef run({SIGNATURE}, output):\n{lines}\n"
    )


def returning(expression: str) -> str:
    return (
        f"import torch\nfrom ..common.moe import compute\n\n"
        f"def run({SIGNATURE}):\n    return {expression.replace('{right}', RIGHT)}\n"
    )


def honest(body: str, head: str = "") -> Case:
    return Case(taking(body, head), "PASSED")


def error(body: str, message: str, head: str = "") -> Case:
    return Case(taking(body, head), "RUNTIME_ERROR", message)


WRITE = "output.copy_({right})\n"
CONTROLS = {
    "cached_output": ("INCORRECT_NUMERICAL", ""),
    "cached_fingerprint": ("PASSED", ""),  # no key is seen twice: it computes every time
    "changes_inputs": ("RUNTIME_ERROR", "changed its input hidden_states"),
    "half_written": ("INCORRECT_NUMERICAL", "never written (NaN): 50 % of the rows"),
    "late_thread": ("INCORRECT_NUMERICAL", "never written (NaN): 100 % of the rows"),
    "patched_clock": ("RUNTIME_ERROR", "replaced time."),
    "patched_harness": ("INCORRECT_NUMERICAL", ""),
    "nan": ("INCORRECT_NUMERICAL", "output: NaN: "),
    "no_write": ("INCORRECT_NUMERICAL", "never written"),
    "scaled": ("INCORRECT_NUMERICAL", "of the elements are within the tolerances"),
    "wrong_dtype": ("INCORRECT_DTYPE", "expected torch.bfloat16, got torch.float32"),
    "wrong_shape": ("INCORRECT_SHAPE", "expected shape [8, 128], got [8, 127]"),
    "second_process": ("PASSED", ""),
    "exits": ("RUNTIME_ERROR", "ended itself with exit status 3"),
}
CASES = {name: Case(control(name), *rest) for name, rest in CONTROLS.items()} | {
    # honest, if odd
    "prints_bytes": honest("os.write(1, bytes(range(256)) * 400)\n" + WRITE),
    "changes_process": honest(
        "os.chdir('/')\ntorch.set_default_dtype(torch.float64)\ntorch.set_num_threads(1)\n"
        "sys.stdout.close()\n" + WRITE
    ),
    "leaves_thread": honest(
        "threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(int, 1)]).start()\n"
        + WRITE
    ),
    "forks": honest("if os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)\n" + WRITE),
    "daemon": honest(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n"
        "    os._exit(0)\nos.wait()\n" + WRITE
    ),
    "returns": Case(returning("{right}.to(torch.bfloat16)"), "PASSED"),
    "returns_list": Case(returning("[{right}.to(torch.bfloat16)]"), "PASSED"),
    # wrong results
    "zeros": Case(taking("output.zero_()"), "INCORRECT_NUMERICAL", "of the elements"),
    "infinite": Case(taking("output.fill_(float('inf'))"), "INCORRECT_NUMERICAL", "infinite: 100"),
    "other_storage": Case(
        taking("output.set_({right}.to(torch.bfloat16))"), "PASSED"
    ),  # what the harness sees, too
    "returns_none": error("", "x"),
    # failures
    "raises_odd_text": error(
        "raise RuntimeError('[red]boo[/] \\x1b[2J \\x00 \\udc80')", "RuntimeError: [red]boo"
    ),
    "raises_50_mb": error("raise ValueError('x' * 50_000_000)", "... (50000000 characters)"),
    "raises_in_str": error(
        "class Odd(Exception):\n    def __str__(self):\n        raise KeyError\nraise Odd",
        "Odd: <KeyError in its __str__>",
    ),
    "interrupt": error("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "sys_exit": error(WRITE + "sys.exit(0)", "called sys.exit(0)"),
    "exits_0": error(WRITE + "os._exit(0)", "ended itself with exit status 0"),
    "segfault": error("ctypes.string_at(0)", "killed by signal 11, SIGSEGV"),
    "kills_itself": error("os.kill(os.getpid(), 9)", "killed by signal 9, SIGKILL (out of memory?"),
    "exits_late": error(
        WRITE + "threading.Thread(target=lambda: (time.sleep(0.1), os._exit(7))).start()",
        "ended itself with exit status 7",
    ),
    "import_exits": Case(taking(WRITE, "os._exit(0)"), "RUNTIME_ERROR", "exit status 0"),
    "import_sys_exits": Case(taking(WRITE, "sys.exit(1)"), "RUNTIME_ERROR", "called sys.exit(1)"),
    "import_fails": Case(taking(WRITE, "import no_such_one"), "COMPILE_ERROR", "no_such_one"),
    "closes_files": error("os.closerange(0, 100)", "exit status"),
    "takes_memory": error("kept = torch.empty(1 << 34)", "allocate"),
    # hangs
    "sleeps": Case(taking("time.sleep(600)"), "TIMEOUT", "no result within"),
    "stops_itself": Case(taking("os.kill(os.getpid(), signal.SIGSTOP)"), "TIMEOUT"),
    "ignores_term": Case(
        taking(
            "for n in range(1, 32):\n    if n not in (9, 19):\n"
            "        signal.signal(n, signal.SIG_IGN)\nctypes.PyDLL(None).sleep(600)"
        ),
        "TIMEOUT",
    ),
    "prints_for_ever": error("while True:\n    os.write(1, b'x' * (1 << 16))", "printed more than"),
    # forged and shared results
    "copy_returns": error(WRITE + "os.fork()", "the copy came back"),
    "forges_answers": error(
        "import socket\nfor fd in range(3, 60):\n    try:\n"
        "        socket.socket(fileno=os.dup(fd)).send(b'\\0' * 1021)\n    except OSError:\n"
        "        pass\noutput.zero_()",
        "",
    ),
    "kills_launcher": error(WRITE + "os.kill(os.getppid(), 9)\ntime.sleep(600)", ""),
    "stops_launcher": error(WRITE + "os.kill(os.getppid(), 19)\nos._exit(1)", ""),
    "reads_other_memory": error(
        "open(f'/proc/{os.getppid()}/mem', 'rb').close()", "PermissionError"
    ),
    "patches_sum": error(WRITE + "torch.isnan = lambda x: x", "replaced torch.isnan"),
    "shrinks_memory": Case(
        taking(
            "for fd in range(3, 60):\n    try:\n        os.ftruncate(fd, 0)\n"
            "    except OSError:\n        pass\n" + WRITE
        ),
        "PASSED",
    ),
}
CASES["returns_none"] = Case(returning("None"), "RUNTIME_ERROR", "returned None, expected output")
CASES["returns_dict"] = Case(returning("{'output': 1}"), "RUNTIME_ERROR", "returned a dict")
CASES["returns_three"] = Case(returning("(1, 2, 3)"), "RUNTIME_ERROR", "a tuple of 3, expected 1")
