"""Solutions that attack what is around them: other processes, the kernel's objects, the checks.

Where one writes the right numbers and must pass, what it tries must have no effect.
"""

from __future__ import annotations

from hostile import WRITE, Case, error, honest, returning, taking
from toy_bundle import control


def wrong(body: str, message: str, head: str = "") -> Case:
    return Case(taking(body, head), "INCORRECT_NUMERICAL", message)


OUTSIDE = """
def outside():
    # the launcher and the process that decides
    launcher = os.getppid()
    status = open(f"/proc/{launcher}/status").read()
    return launcher, int(status.split("PPid:")[1].split()[0])


def quietly(function, *arguments):
    try:
        return function(*arguments)
    except OSError:
        return None
"""
LIBC = OUTSIDE + "\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def attack(body: str, head: str = "") -> Case:
    """Tries something on both processes outside, which must not work, and gives right numbers."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return honest(f"for pid in outside():\n{lines}\n" + WRITE, LIBC + head)


TENSORS = """
import gc

def expected(output):
    found = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    frame = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            found += value if isinstance(value, list) else [value]
        frame = frame.f_back
    for x in found:
        if isinstance(x, torch.Tensor) and x.shape == output.shape and x.dtype == output.dtype:
            if x is not output and x.float().isfinite().all() and x.float().any():
                return x
    return torch.zeros_like(output)
"""
SUBCLASS = "class Lazy(torch.Tensor):\n    pass\n"
CASES = {
    # looking for what is expected
    "scans_memory": Case(taking("output.copy_(expected(output))", TENSORS), "INCORRECT_NUMERICAL"),
    "scans_files": Case(
        taking(
            "import mmap\nfor fd in os.listdir('/proc/self/fd'):\n"
            "    memory = quietly(lambda: mmap.mmap(int(fd), 0))\n"
            "    if memory is not None and len(memory) > output.numel() * 2:\n"
            "        flat = torch.frombuffer(memory, dtype=torch.bfloat16)\n"
            "        output.copy_(flat[-output.numel():].view(output.shape))\n",
            OUTSIDE,
        ),
        "INCORRECT_NUMERICAL",
    ),
    "attaches": attack("assert libc.ptrace(16, pid, None, None) == -1"),
    "reads_memory_of": attack(
        "buffer = ctypes.create_string_buffer(64)\n"
        "local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)\n"
        "remote = (ctypes.c_size_t * 2)(0x400000, 64)\n"
        "assert libc.process_vm_readv(pid, local, 1, remote, 1, 0) == -1\n"
        "assert libc.process_vm_writev(pid, local, 1, remote, 1, 0) == -1"
    ),
    "takes_descriptors": attack(
        "pidfd = quietly(os.pidfd_open, pid)\n"
        "assert pidfd is None or all(libc.syscall(438, pidfd, n, 0) == -1 for n in range(64))\n"
        "assert all(quietly(open, f'/proc/{pid}/fd/{n}', 'rb') is None for n in range(16))\n"
        "assert quietly(open, f'/proc/{pid}/environ', 'rb') is None or not quietly("
        "open(f'/proc/{pid}/environ', 'rb').read)"
    ),
    # stopping or slowing others
    "signals": attack(
        "for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):\n"
        "    quietly(os.kill, pid, sent)\n    quietly(os.killpg, pid, sent)"
    ),
    "signals_threads": attack(
        "for thread in quietly(os.listdir, f'/proc/{pid}/task') or []:\n"
        "    for sent in (signal.SIGSTOP, signal.SIGKILL):\n"
        "        quietly(os.kill, int(thread), sent)\n"
        "        libc.syscall(200, int(thread), sent)\n"
        "        libc.syscall(234, pid, int(thread), sent)"
    ),
    "signals_everybody": honest(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "try:\n    os.kill(-1, signal.SIGTERM)\nexcept OSError:\n    pass\n" + WRITE
    ),
    "signals_by_files": attack(
        "import fcntl, struct\n"
        "for command, owner in ((8, pid), (15, struct.pack('ii', 1, pid))):\n"
        "    ours, theirs = socket.socketpair()\n"
        "    quietly(fcntl.fcntl, ours, command, owner)\n"
        "    quietly(fcntl.fcntl, ours, 10, signal.SIGKILL)  # F_SETSIG\n"
        "    quietly(fcntl.fcntl, ours, fcntl.F_SETFL, os.O_ASYNC | os.O_RDWR)\n"
        "    theirs.send(b'x')"
    ),
    "sets_affinity": attack("quietly(os.sched_setaffinity, pid, {0})"),
    "sets_priority": attack(
        "quietly(os.setpriority, os.PRIO_PROCESS, pid, 19)\n"
        "quietly(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))"
    ),
    "sets_limits": attack(
        "import resource\n"
        "for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_AS):\n"
        "    try:\n        resource.prlimit(pid, limit, (1, 1))\n"
        "    except (OSError, ValueError):\n        pass"
    ),
    "sets_oom_score": attack(
        "try:\n    open(f'/proc/{pid}/oom_score_adj', 'w').write('1000')\n"
        "except OSError:\n    pass"
    ),
    "raises_limits": honest(
        "import resource\n"
        "for limit in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):\n"
        "    try:\n        resource.setrlimit(limit, (-1, -1))\n"
        "        raise SystemExit('raised a limit')\n"
        "    except (OSError, ValueError):\n        pass\n" + WRITE
    ),
    "sets_the_clock": honest(
        "assert libc.settimeofday((ctypes.c_long * 2)(1000, 0), None) == -1\n"
        "try:\n    time.clock_settime(time.CLOCK_REALTIME, time.time())\n"
        "    raise SystemExit('set the clock')\n"
        "except OSError:\n    pass\n" + WRITE,
        LIBC,
    ),
    "user_namespace": honest("libc.unshare(0x10000000 | 0x00020000)\n" + WRITE, LIBC),
    # getting away
    "runs_on": honest(
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    end = time.time() + 20\n"
        "    while time.time() < end:\n"
        "        if os.fork():\n            os._exit(0)\n"
        "        os.setsid()\n"
        "    os._exit(0)\n" + WRITE
    ),
    "fork_bomb": error(
        "end = time.time() + 600\n"
        "while time.time() < end:\n"
        "    try:\n        os.fork()\n    except OSError:\n        pass",
        "started more than 48 processes",
    ),
    "threads_bomb": error(
        "for _ in range(100_000):\n    threading.Thread(target=time.sleep, args=(60,)).start()", ""
    ),
    "many_helpers": honest(  # they share most of their memory
        "for _ in range(18):\n    if os.fork() == 0:\n        time.sleep(600)\n"
        "        os._exit(0)\ntime.sleep(0.6)\n" + WRITE
    ),
    "becomes_another": error(
        "os.execv('/bin/true', ['true'])", "ended itself with exit status 0"
    ),
    "leaves_ipc": error(
        "ids = [libc.shmget(0, 1 << 24, 0o1600), libc.semget(0, 1, 0o1600), "
        "libc.msgget(0, 0o1600)]\nassert ids == [-1, -1, -1], ids\nraise KeyError('nothing left')",
        "nothing left",
        LIBC,
    ),
    "fills_shared_memory": error(
        "for _ in range(8):\n    os.posix_fallocate(os.memfd_create('x'), 0, 1 << 29)\n"
        "time.sleep(60)",
        "GiB of memory",
    ),
    "fills_dev_shm": error(
        "open('/dev/shm/left_by_a_solution', 'wb').write(b'x' * 4096)", "PermissionError"
    ),
    "writes_elsewhere": honest(
        "import sys\nfor place in ('/tmp', '/var/tmp', sys.prefix, os.path.expanduser('~root')):\n"
        "    try:\n        open(os.path.join(place, 'left_by_a_solution'), 'w').close()\n"
        "        raise SystemExit('wrote to ' + place)\n"
        "    except OSError:\n        pass\n" + WRITE
    ),
    "fills_disk": error(
        "for number in range(1000):\n"
        "    with open(f'large{number}', 'wb') as file:\n"
        "        os.posix_fallocate(file.fileno(), 0, 1 << 29)\n        time.sleep(0.02)",
        "wrote more than",
    ),
    "many_files": error(
        "for number in range(10_000_000):\n    open(str(number), 'w').close()",
        "made more than 2000 files",
    ),
    "deep_folders": honest(
        "here = os.getcwd()\nfor _ in range(0 if os.path.exists('d') else 1500):\n"
        "    os.mkdir('d')\n    os.chdir('d')\n"
        "os.chdir(here)\n" + WRITE
    ),
    "odd_files": honest(
        "for made in (lambda: os.mkfifo('fifo'), lambda: os.symlink('/etc', 'link'),\n"
        "             lambda: os.link('/etc/hostname', 'hard'), lambda: os.mkdir('closed', 0),\n"
        "             lambda: os.symlink('loop', 'loop'), lambda: os.chmod('.', 0)):\n"
        "    try:\n        made()\n    except OSError:\n        pass\n" + WRITE
    ),
    "replaces_its_folder": honest(
        "here = os.getcwd()\n"
        "try:\n    os.rename(here, here + '_moved')\n    os.symlink('/etc', here)\n"
        "except OSError:\n    pass\n" + WRITE
    ),
    "removes_its_folder": honest(
        "import shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\n" + WRITE
    ),
    # forging
    "answers_itself": wrong(
        "import gc\n" + WRITE + "nonces = [x.nonce for x in gc.get_objects()\n"
        "    if type(x).__name__ == 'Request'] or [f.f_locals['request'].nonce\n"
        "    for f in frames() if 'request' in f.f_locals]\n"
        "for fd in range(3, 64):\n    try:\n"
        "        end = socket.socket(fileno=os.dup(fd))\n"
        "        end.send(nonces[0] + bytes(5) + bytes(1000))\n"
        "    except OSError:\n        pass\ntime.sleep(0.5)",
        "never written",
        "def frames():\n    frame = sys._getframe()\n    while frame:\n        yield frame\n"
        "        frame = frame.f_back\n",
    ),
    "answers_early": wrong(
        "frame, found = sys._getframe(), {}\nwhile frame:\n"
        "    found = {**frame.f_locals, **found}\n    frame = frame.f_back\n"
        "found['connection'].send(Answer(found['request'].nonce, Outcome.DONE).pack())\n"
        "time.sleep(0.3)\n" + WRITE,
        "never written",
        "from bundle.sandbox.channel import Answer, Outcome\n",
    ),
    "punches_memory": error(
        WRITE + "for fd in range(3, 64):\n"
        "    libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(1 << 24))",
        "changed its input",
        LIBC,
    ),
    "scribbles": error(
        "def on():\n    while True:\n        hidden_states.view(torch.uint8).zero_()\n"
        + WRITE + "threading.Thread(target=on, daemon=True).start()\ntime.sleep(0.1)",
        "changed its input hidden_states",
    ),
    "replaces_socket": error(
        WRITE + "a, b = socket.socketpair()\nfor fd in range(3, 64):\n    try:\n"
        "        if os.readlink(f'/proc/self/fd/{fd}').startswith('socket:') and fd not in (\n"
        "                a.fileno(), b.fileno()):\n            os.dup2(a.fileno(), fd)\n"
        "    except OSError:\n        pass",
        "",
    ),
    "patches_contestant": Case(
        taking(
            "import bundle.sandbox.contestant as c\nimport bundle.sandbox.integrity as i\n"
            "i.replaced = c.replaced = lambda before: []\n"
            "c.Contestant.deliver = lambda *_: None\noutput.zero_()"
        ),
        "INCORRECT_NUMERICAL",
        "never written",
    ),
    "replaces_modules": error(
        WRITE + "sys.modules['torch'] = None\nsys.modules['time'] = None", "torch"
    ),
    "patches_equality": error(
        WRITE + "torch.Tensor.__eq__ = lambda *_: torch.tensor(True)", "replaced torch.Tensor"
    ),
    "patches_testing": error(
        WRITE + "import torch.testing\ntorch.testing.assert_close = lambda *_, **__: None",
        "replaced torch.testing.assert_close",
    ),
    "patches_builtins": error(
        WRITE + "import builtins\nbuiltins.all = bool",
        "replaced builtins.",
    ),
    "patches_copy": wrong(
        "torch.Tensor.copy_ = lambda left, right, *_: left\noutput.zero_()", "never written"
    ),
    "collects_garbage": honest(
        "import gc\ngc.callbacks.append(lambda *_: output.zero_())\ngc.freeze()\n" + WRITE
    ),
    "writes_when_deleted": wrong(
        "class Kept:\n    def __del__(self):\n        output.zero_()\nkept = Kept()\n" + WRITE,
        "of the elements",
    ),
    "audits": honest("sys.addaudithook(lambda *_: None)\n" + WRITE),
    "traces_frames": honest("sys.settrace(lambda *_: None)\nsys.setprofile(print)\n" + WRITE),
    "low_recursion": error("sys.setrecursionlimit(1)\n" + WRITE, "RecursionError"),
    "recursion": error("run_again()", "RecursionError", "def run_again():\n    run_again()\n"),
    "exits_in_str": error(
        "class Odd(BaseException):\n    def __str__(self):\n        sys.exit(0)\n"
        "    __repr__ = __str__\nraise Odd",
        "Odd",
    ),
    "base_exception": error("class Odd(BaseException):\n    pass\nraise Odd('text')", "Odd: text"),
    "generator_exit": error("raise GeneratorExit", "GeneratorExit"),
    "at_exit": honest("import atexit\natexit.register(time.sleep, 600)\n" + WRITE),
    "fault_handler": honest(
        "import faulthandler\nfaulthandler.dump_traceback_later(0.001, exit=False)\n" + WRITE
    ),
    "aborts": error("os.abort()", "killed by signal 6, SIGABRT"),
    "recursion_in_c": error(
        "sys.setrecursionlimit(1 << 30)\ndef again():\n"
        "    return sorted([1], key=lambda _: again())\nagain()",
        "SIGSEGV",
    ),
    "causes_itself": error(
        "a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a",
        "ValueError: a",
    ),
    "closes_streams": error(
        "os.close(1)\nos.close(2)\nraise KeyError('said anyway')", "said anyway"
    ),
    "alarm": error("signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(5)", "SIGALRM"),
    "environment": honest(
        "os.environ.clear()\nos.environ['CUDA_VISIBLE_DEVICES'] = '7'\n"
        "os.environ['LD_PRELOAD'] = '/nowhere.so'\nos.umask(0o777)\n" + WRITE
    ),
    "odd_streams": honest(
        "class Odd:\n    def flush(self):\n        raise KeyError\n    write = flush\n"
        "sys.stdout = sys.stderr = Odd()\n" + WRITE
    ),
    "grows_output": Case(
        taking("output.resize_(1 << 12, 1 << 10)"), "INCORRECT_SHAPE", "expected shape [8, 128]"
    ),
    "output_aliases_input": wrong("output.set_(hidden_states.to(torch.bfloat16))", "of the elem"),
    "output_other_strides": honest("output.set_({right}.to(torch.bfloat16).t().contiguous().t())"),
    "output_other_dtype": Case(
        taking("output.data = {right}.float()"), "INCORRECT_DTYPE", "got torch.float32"
    ),
    "lazy_output": error(
        WRITE + "output.__class__ = Lazy", "made its output a Lazy, expected", SUBCLASS
    ),
    # cached
    "cached_weights": Case(control("cached_weights"), "INCORRECT_NUMERICAL"),
    "cached_routing": Case(control("cached_routing"), "INCORRECT_NUMERICAL"),
    "cached_by_pointer": Case(
        taking(
            "key = hidden_states.data_ptr(), weights.data_ptr()\n"
            "if key not in KEPT:\n    KEPT[key] = {right}.to(output.dtype)\n"
            "output.copy_(KEPT[key])",
            "KEPT = {}",
        ),
        "INCORRECT_NUMERICAL",
    ),
    "cached_by_tokens": wrong(
        "key = len(hidden_states)\n"
        "if key not in KEPT:\n    KEPT[key] = {right}.to(output.dtype)\n"
        "output.copy_(KEPT[key])",
        "",
        "KEPT = {}",
    ),
    "cached_by_file": Case(
        taking(
            "if not os.path.exists('kept.pt'):\n    torch.save({right}, 'kept.pt')\n"
            "output.copy_(torch.load('kept.pt'))"
        ),
        "INCORRECT_NUMERICAL",
    ),
    "dequantised_once": Case(
        taking(
            "if not KEPT:\n    KEPT.append(weights.float())\n"
            "output.copy_(compute(routing_logits, hidden_states, KEPT[0], weights_scale, "
            "scaling_factor))",
            "KEPT = []",
        ),
        "INCORRECT_NUMERICAL",
    ),
    "returns_input": Case(returning("hidden_states"), "INCORRECT_DTYPE"),
    "returns_view": Case(
        returning("hidden_states.to(torch.bfloat16)"), "INCORRECT_NUMERICAL"
    ),
    "returns_strided": Case(
        returning("{right}.to(torch.bfloat16).t().contiguous().t()"), "PASSED"
    ),
    "returns_expanded": Case(
        returning("{right}.to(torch.bfloat16)[:1].expand(8, 128)"), "INCORRECT_NUMERICAL"
    ),
    "returns_meta": Case(
        returning("torch.empty(8, 128, dtype=torch.bfloat16, device='meta')"), "RUNTIME_ERROR"
    ),
    "returns_sparse": Case(
        returning("{right}.to(torch.bfloat16).to_sparse()"), "RUNTIME_ERROR"
    ),
    "returns_no_storage": Case(
        returning("(lambda x: (x.untyped_storage().resize_(0), x)[1])({right}.bfloat16())"),
        "RUNTIME_ERROR",
        "SIGSEGV",
    ),
    "returns_overlapping": Case(
        returning("torch.as_strided({right}.bfloat16(), (8, 128), (0, 0))"), "INCORRECT_NUMERICAL"
    ),
    "returns_generator": Case(
        returning("({right} for _ in range(1))"), "RUNTIME_ERROR", "returned a generator"
    ),
    "returns_lazy": Case(
        returning("{right}.to(torch.bfloat16).as_subclass(type('Lazy', (torch.Tensor,), {}))"),
        "RUNTIME_ERROR",
        "returned a Lazy, expected a tensor for output",
    ),
    "returns_gradient": Case(
        returning("{right}.to(torch.bfloat16).requires_grad_()"), "PASSED"
    ),
}  # fmt: skip
