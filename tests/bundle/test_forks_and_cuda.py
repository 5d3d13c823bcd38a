"""Solutions' processes can use CUDA: nothing has asked for a GPU in the process that forks them."""

import os
from pathlib import Path

import pytest
from bundle.dataset.loading import load_dataset
from bundle.harness import output_specs
from bundle.runs.trials import draw_inputs
from bundle.sandbox.contract import Limits, Subject
from bundle.sandbox.launcher import Launcher, LauncherError
from bundle.sandbox.solution_process import SolutionProcess
from hostile import WRITE, taking
from toy_bundle import DEFINITION, make_bundle, packed

MARKED_FORKS = Path(__file__).parents[1] / "support" / "marked_forks.py"
IS_MARKED = """
if torch.cuda._is_in_bad_fork():
    raise RuntimeError("CUDA cannot be used here")
child = os.fork()
if child == 0:
    os._exit(torch.cuda._is_in_bad_fork())
if os.waitpid(child, 0)[1] == 0:
    raise RuntimeError("nothing has looked for a GPU here, or that leaves no mark")
"""


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """A function to have all Python processes from now on mark forks, and run some lines first."""

    def prepare(lines=""):
        (tmp_path / "sitecustomize.py").write_text(MARKED_FORKS.read_text() + lines)
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return prepare


def test_a_solution_can_use_cuda(tmp_path, begin):
    """The harness looks for a GPU before it builds: in the solution's own process."""
    root = make_bundle(tmp_path / "bundle", {"looks": taking(IS_MARKED + WRITE)}, (8,))
    dataset = load_dataset(root)
    definition, row = dataset.definitions[DEFINITION], dataset.workloads[DEFINITION][0]
    inputs = draw_inputs(definition, row.workload, root)
    (solution,) = packed(root)
    specs = output_specs(definition, inputs)
    begin()
    launcher = Launcher.start("cuda:0")
    try:
        subject = Subject(definition, solution)
        with SolutionProcess(launcher, subject, inputs, specs, Limits(60.0)) as process:
            process.build()
            process.give(inputs)
            outputs, _ = process.call([])
        assert outputs[0].isfinite().all()
    finally:
        launcher.close()


def test_a_launcher_that_looked_for_a_gpu_is_refused(begin):
    """Whatever import does it: else every solution would fail, and be blamed for it."""
    begin("torch.cuda.is_available()\n")
    with pytest.raises(LauncherError, match="could use cuda:0: importing PyTorch"):
        Launcher.start("cuda:0")
    Launcher.start().close()  # on a CPU it does no harm
