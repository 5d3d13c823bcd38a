"""What is said of a solution's process that ends, faults, or says nothing more."""

import select
import subprocess
import sys

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import output_specs
from bundle.paths import ROOT
from bundle.runs.trials import draw_inputs
from bundle.sandbox.contract import Failure, Limits, Subject
from bundle.sandbox.launcher import Launcher
from bundle.sandbox.solution_process import SolutionProcess
from hostile import CASES, WRITE, taking
from toy_bundle import DEFINITION, control, make_bundle, packed

LIMITS = Limits(60.0, memory_bytes=2 << 30)
# with its last answer it closes its end, and goes on
SEND = """
def send(self, message):
    real(self, message)
    SENT.append(message)
    if len(SENT) == 4:  # after those to build, to load and to call
        self.shutdown(socket.SHUT_WR)

socket.socket.send = send
"""
SOURCES = {
    "good": control("good"),
    "segfault": CASES["segfault"].source,
    "sleeps": CASES["sleeps"].source,
    "says_no_more": taking(WRITE, "SENT = []\nreal = socket.socket.send\n" + SEND),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A function that makes the process of a solution by name; and the arguments."""
    root = make_bundle(tmp_path_factory.mktemp("bundle"), SOURCES, (8,))
    solutions = {solution.name: solution for solution in packed(root)}
    dataset = load_dataset(root)
    definition, row = dataset.definitions[DEFINITION], dataset.workloads[DEFINITION][0]
    inputs = draw_inputs(definition, row.workload, root)
    launcher = Launcher.start()

    def make(name, limits=LIMITS):
        subject = Subject(definition, solutions[name])
        return SolutionProcess(launcher, subject, inputs, output_specs(definition, inputs), limits)

    yield make, inputs
    launcher.close()


def fails(process, action):
    with pytest.raises(Failure) as caught:
        action()
    process._read_log()
    return caught.value.status.value, caught.value.message, str(process.printed)


def test_a_fault_ends_at_once_and_says_where(started):
    """No library's handler runs, which would look up C++ symbols for seconds."""
    make, inputs = started
    with make("segfault") as process:
        process.build()
        process.give(inputs)
        status, message, printed = fails(process, lambda: process.call([]))
    assert (status, message) == ("RUNTIME_ERROR", "killed by signal 11, SIGSEGV")
    assert printed.startswith("Fatal Python error: Segmentation fault")
    assert "main.py" in printed and "in run" in printed and "Segfault encountered" not in printed


def test_an_end_before_the_deadline_is_no_timeout(started):
    """However late this process looks."""
    make, _ = started
    with make("good") as process:
        process.build()
        process._connection.shutdown(1)
        select.select([process._pidfd], [], [])
        status, message, _ = fails(process, lambda: process._wait(deadline=0.0))
    assert status == "RUNTIME_ERROR" and "ended itself with exit status 0" in message


def test_an_answer_before_the_deadline_is_no_timeout(started):
    make, inputs = started
    with make("good") as process:
        process.build()
        real = process._wait

        def late(deadline):
            select.select([process._connection], [], [])
            return real(deadline=0.0)

        process._wait = late
        process.give(inputs)
        outputs, _ = process.call([])
    assert outputs[0].isfinite().all()


def test_a_timeout_says_how_much_was_run(started):
    make, inputs = started
    with make("sleeps", Limits(2.0)) as process:
        process.build()
        process.give(inputs)
        status, message, _ = fails(process, lambda: process.call([]))
    assert status == "TIMEOUT"
    assert message.startswith("no result within 2 seconds (") and "of a processor" in message


def test_a_process_that_says_no_more_ends_its_evaluation(started):
    make, inputs = started
    with make("says_no_more") as process:
        process.build()
        process.give(inputs)
        process.call([])
        process.end()


SIGNALS = """
import fcntl, os, signal, socket, struct, sys
from bundle.sandbox.system_calls import filter_calls

if not filter_calls(keep_signals_in=True):
    sys.exit("no filter")
end, _ = socket.socketpair()
other = os.getppid()
for attempt in (
    lambda: os.kill(other, 0),
    lambda: os.killpg(os.getpgid(other), 0),
    lambda: fcntl.fcntl(end, fcntl.F_SETOWN, other),
    lambda: fcntl.fcntl(end, 15, struct.pack("ii", 1, other)),
    lambda: fcntl.ioctl(end, 0x8901, struct.pack("i", other)),
    lambda: fcntl.ioctl(end, 0x8902, struct.pack("i", other)),
):
    try:
        attempt()
        sys.exit("a signal could leave")
    except PermissionError:
        pass
os.kill(os.getpid(), 0)
fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
fcntl.ioctl(end, 0x541B, bytes(4))  # FIONREAD
print("kept in")
"""


def test_no_signal_leaves_where_landlock_does_not_keep_it():
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.stderr.strip() == "no filter":
        pytest.skip("no seccomp here")
    assert done.stdout.strip() == "kept in", done.stderr
