"""scripts/setup: which Python it takes, what it installs on which machine, what it repairs.

It runs in a copy of the bundle's root, with a python3 and a nvidia-smi that only note what they
are asked for.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Answers for an interpreter: nothing is missing once pip has installed the project.
PYTHON = """\
#!/usr/bin/env bash
echo "$@" >> {log}
case "$1" in
-) cat > /dev/null; [[ -e {installed} ]] || echo "rich>=13.7, which is missing" ;;
-c) {answer} ;;
-m)
    if [[ $2 == venv ]]; then
        mkdir -p "${{!#}}/bin" && cp --remove-destination {python} "${{!#}}/bin/python"
    elif [[ "$*" == *+cpu ]]; then
        exit {cpu_build}
    elif [[ "$*" == *install* ]]; then
        touch {installed}
    fi ;;
esac
"""


@dataclass
class Machine:
    """A folder with the bundle's setup, and a PATH with the commands of a made-up machine."""

    root: Path
    commands: Path
    log: Path

    def command(self, name: str, text: str) -> None:
        path = self.commands / name
        path.write_text(text)
        path.chmod(0o755)

    def python(self, *, cpu_build: bool = True, answer: str = "[[ $2 != *torch* ]]") -> None:
        """A python3 without torch; `answer` is the exit status for `python3 -c`."""
        python = self.commands / "python3"
        text = PYTHON.format(
            log=self.log,
            installed=self.root / "installed",
            python=python,
            cpu_build=0 if cpu_build else 1,
            answer=answer,
        )
        self.command("python3", text)

    def gpu(self, capability: str) -> None:
        self.command("nvidia-smi", f"#!/bin/sh\necho {capability}\n")

    def setup(self, *extras: str) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{self.commands}:/usr/bin:/bin"}
        return subprocess.run(
            ["bash", self.root / "scripts" / "setup", *extras],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    root, commands = tmp_path / "bundle", tmp_path / "commands"
    (root / "scripts").mkdir(parents=True)
    commands.mkdir()
    for name in ("scripts/setup", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    machine = Machine(root, commands, tmp_path / "log")
    machine.command("cc", "#!/bin/sh\n")
    for missing in ("python3.10", "python3.11", "python3.12", "python3.13", "nvidia-smi", "nvcc"):
        machine.command(missing, "#!/bin/sh\nexit 127\n")
    (commands / "nvcc").unlink()
    machine.python()
    return machine


def test_a_python_that_has_everything_is_taken_as_it_is(machine):
    (machine.root / "installed").touch()
    done = machine.setup("test")
    assert done.returncode == 0
    assert done.stdout.strip() == str(machine.commands / "python3")
    assert not any("pip" in line for line in machine.asked())


def test_without_a_gpu_the_cpu_build_comes_first(machine):
    done = machine.setup("test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(machine.root / ".venv" / "bin" / "python")
    torch, project = [line for line in machine.asked() if "pip install" in line]
    assert torch.endswith("+cpu")
    assert project.endswith("[test,cutedsl]")  # there is a C compiler to emulate with


def test_a_machine_that_reaches_no_cpu_build_is_told_of_the_download(machine):
    machine.python(cpu_build=False)
    done = machine.setup()
    assert done.returncode == 0
    assert "a download of 3 GB" in done.stderr


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3"])
def test_a_gpu_brings_every_competitor_that_it_runs(machine, capability):
    machine.gpu(capability)
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    (project,) = [line for line in machine.asked() if "pip install" in line]
    assert project.endswith("[test,all]")
    assert ("There is no nvcc" in done.stderr) == (capability == "9.0")


def test_hopper_with_a_compiler_builds_flashinfers_module(machine):
    machine.gpu("9.0")
    machine.command("nvcc", "#!/bin/sh\n")
    assert machine.setup().returncode == 0
    assert machine.asked()[-1].endswith("build_flashinfer_sm90.py")


def test_another_gpu_brings_what_runs_anywhere(machine):
    machine.gpu("8.9")
    assert machine.setup().returncode == 0
    (project,) = [line for line in machine.asked() if "pip install" in line]
    assert project.endswith("[test]")


@pytest.mark.parametrize("rest", ["nothing", "a python that does not run"])
def test_a_broken_environment_is_made_anew(machine, rest):
    bin_folder = machine.root / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    if rest != "nothing":
        (bin_folder / "python").write_text("")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert any("-m venv --clear" in line for line in machine.asked())


def test_an_old_python_is_refused_before_anything_is_made(machine):
    machine.command(
        "python3", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.18" && exit\nexit 1\n'
    )
    done = machine.setup()
    assert done.returncode == 1
    assert "Python 3.10 or newer is needed, python3 is Python 3.8.18" in done.stderr
    assert not (machine.root / ".venv").exists()


def test_an_unknown_extra_is_refused(machine):
    done = machine.setup("blas")
    assert done.returncode == 2
    assert "no extra named blas" in done.stderr


def test_versions_count_not_only_names(tmp_path, machine):
    """The real check, by this interpreter, of a requirement that no release meets."""
    text = (machine.root / "pyproject.toml").read_text().replace('"rich>=13.7"', '"rich>=1300"')
    (machine.root / "pyproject.toml").write_text(text)
    script = (machine.root / "scripts" / "setup").read_text()
    check = script.split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
    done = subprocess.run(
        [sys.executable, "-", machine.root / "pyproject.toml"],
        input=check,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["rich>=1300"]


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_every_file_compiles_on_every_python(minor):
    """On the interpreters that this machine has."""
    python = shutil.which(f"python3.{minor}")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip(f"no Python 3.{minor} here")
    files = [str(path) for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    code = (
        "import sys\n"
        "for path in sys.stdin.read().splitlines():\n"
        "    compile(open(path, 'rb').read(), path, 'exec')\n"
    )
    done = subprocess.run(
        [python, "-c", code], input="\n".join(files), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
