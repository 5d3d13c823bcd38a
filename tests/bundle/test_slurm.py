"""scripts/slurm.sbatch, with what Slurm sets and an srun that runs its command here."""

import json
import os
import subprocess
import sys

import pytest
from bundle.paths import ROOT
from conftest import HAS_CUDA
from toy_bundle import control, make_bundle, packed

SRUN = '#!/bin/sh\necho "srun $@" >> "$LOG"\n[ "$1" = --ntasks=1 ] && shift\nexec "$@"\n'


@pytest.fixture
def task(tmp_path):
    """Runs one task of the array on a toy bundle; returns the process."""
    root = make_bundle(tmp_path / "bundle", {"one": control("good")})
    packed(root)
    for name in ("scripts", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)

    def run(number: int) -> subprocess.CompletedProcess:
        environment = os.environ | {
            "PATH": f"{srun.parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
            "LOG": str(tmp_path / "log"),
            "SLURM_SUBMIT_DIR": str(root),
            "SLURM_ARRAY_TASK_ID": str(number),
        }
        command = ["bash", ROOT / "scripts" / "slurm.sbatch", "--local", root, "--iterations", "1"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.skipif(HAS_CUDA, reason="on the CPU")
def test_tasks_store_a_workload_each_and_can_be_repeated(task, tmp_path):
    for number in (0, 1, 1):
        done = task(number)
        assert done.returncode == 0, done.stderr
    assert "Nothing left to run" in done.stdout
    paths = sorted((tmp_path / "bundle" / "traces_slurm").rglob("*.jsonl"))
    lines = [json.loads(path.read_text()) for path in paths]
    assert [line["workload"]["uuid"] for line in lines] == ["workload-3", "workload-8"]
    assert [path.relative_to(tmp_path).parts[2] for path in paths] == ["0", "1"]
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 3 and all(line.startswith("srun --ntasks=1 ") for line in log)


def test_number_beyond_the_workloads(task):
    done = task(2)
    assert done.returncode == 1
    assert "error: --array: expected numbers from 0 to 1, got 2" in done.stderr
